"""What a training call of every operator costs the host on two checkouts, in turns.

    python -m benchmarks.paired_calls BEFORE AFTER [--launches 6]

Processes of one program differ by several percent from launch to launch, so one run of
`test_call_overhead.py` on each commit says little. Here two processes, one per checkout and on one
core, take turns of a few milliseconds; printed is the ratio after / before: the median over the
launches of each launch's median, and the smallest and largest of these.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

TURNS, CALLS = 60, 20  # of each process in a launch; in a turn


def steps() -> dict[str, Callable[[], None]]:
    """The cases, on the growtas that this process imports."""
    import torch

    from growtas import kernels

    torch.set_num_threads(1)
    torch.manual_seed(0)
    place = Path(__file__).with_name("test_call_overhead.py")
    spec = importlib.util.spec_from_file_location("test_call_overhead", place)
    assert spec is not None
    assert spec.loader is not None
    cases: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(cases)

    def trained(name: str, accumulate: bool) -> Callable[[], None]:
        call, inputs, parameters = cases.OPERATORS[name]()
        leaves = [*inputs, *parameters]
        options = {"gradients": kernels.GradientAccumulator(parameters)} if accumulate else {}
        fresh = inputs if accumulate else leaves
        upstream = torch.ones_like(call(*leaves))

        def step() -> None:
            for value in fresh:
                value.grad = None
            call(*leaves, **options).backward(upstream)

        return step

    return {
        f"{name}, {'accumulate' if accumulate else 'dense'}": trained(name, accumulate)
        for name in cases.OPERATORS
        for accumulate in (False, True)
    }


def work() -> None:
    """Times what is asked for, a line each, until nobody asks."""
    cases = steps()
    print(json.dumps(list(cases)), flush=True)
    for line in sys.stdin:
        step = cases[line.rstrip("\n")]
        start = time.perf_counter_ns()
        for _ in range(CALLS):
            step()
        print(time.perf_counter_ns() - start, flush=True)


def launch(checkout: Path) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, __file__, "--work"],
        cwd=checkout,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def ask(process: subprocess.Popen[str], name: str) -> int:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(name + "\n")
    process.stdin.flush()
    return int(process.stdout.readline())


def ratios(before: Path, after: Path) -> dict[str, float]:
    """The median ratio of every case in one launch of both."""
    processes = [launch(before.resolve()), launch(after.resolve())]
    offered = [json.loads(p.stdout.readline()) for p in processes if p.stdout is not None]
    found = {}
    for name in offered[0]:
        pairs = []
        for turn in range(TURNS):
            first, second = processes[:: -1 if turn % 2 else 1]
            times = {first.pid: ask(first, name), second.pid: ask(second, name)}
            pairs.append(times[processes[1].pid] / times[processes[0].pid])
        found[name] = statistics.median(pairs)
    for process in processes:
        process.communicate()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.paired_calls", description=__doc__)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--launches", type=int, default=6)
    args = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    launches = [ratios(args.before, args.after) for _ in range(args.launches)]
    for name in launches[0]:
        values = sorted(found[name] for found in launches)
        middle = statistics.median(values)
        print(f"{name:36s} {middle:.3f}  [{values[0]:.3f}, {values[-1]:.3f}]")


if __name__ == "__main__":
    if sys.argv[1:] == ["--work"]:
        work()
    else:
        main()
