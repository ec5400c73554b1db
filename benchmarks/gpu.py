"""`make gpu` (= `python -m benchmarks.gpu`): all that a machine with a GPU is asked for, in one go.

Tests of the operators and the model on the device, a memory check of a few of them where
compute-sanitizer is installed, then the measurements, the ones that decide about targets first.
Every step is a process of its own with a time limit, a failure does not stop the others, and what
there is no time for is named. Rows go to $OUT if that is set, else to benchmarks/results. The exit
status is 1 if a step failed or was cut short.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch

from benchmarks import report, rows
from benchmarks.run import OURS_CUDA

BUDGET = 570.0  # seconds, of the ten minutes that such a machine may be lent for
QUICK_BUDGET = 225.0
LEAST = 10.0  # seconds that a step must have left to be begun

TESTS = (
    "tests/kernels/gpu",
    "tests/supernet/test_static_triton.py",
    "tests/supernet/test_launches.py",
    "tests/training/test_graph_cuda.py",
    "tests/search/test_population_cuda.py",
    "--ignore",
    "tests/kernels/gpu/test_precompile.py",
)
MEMORY_CHECKED = (
    "(clamped and 1-cls) or boxes_of_many_rows or one_parameter_gradient or one_gradient_only "
    "or several_subnets"
)


@dataclass(frozen=True)
class Step:
    """A command and the seconds it may take at most."""

    name: str
    command: tuple[str, ...]
    limit: float
    environment: tuple[tuple[str, str], ...] = ()


def _python(*arguments: str) -> tuple[str, ...]:
    return sys.executable, "-W", "ignore", "-m", *arguments


def _measure(out: Path, parts: str, *arguments: str) -> tuple[str, ...]:
    return _python("benchmarks.run", *_place(out), "--parts", parts, *arguments)


def _place(out: Path) -> tuple[str, ...]:
    return "--device", "cuda", "--out", str(out)


def steps(out: Path, *, quick: bool, sanitizer: str | None) -> list[Step]:
    """What is run, in order; without the memory check if there is no `sanitizer`."""
    found = [Step("tests", _python("benchmarks.gpu_tests", *TESTS), 60 if quick else 150)]
    if sanitizer is not None:
        check = (sanitizer, "--tool", "memcheck", "--error-exitcode", "1")
        command = (*check, *_python("pytest", *TESTS, "-k", MEMORY_CHECKED))
        # Without the caching allocator every tensor is an allocation that can be overrun.
        uncached = (("PYTORCH_NO_CUDA_MEMORY_CACHING", "1"),)
        found.append(Step("memory check", command, 45 if quick else 90, uncached))
    roofline = _python("benchmarks.roofline", "--out", str(out))
    subnets = _python("benchmarks.subnets_per_second", *_place(out))
    if quick:
        return [
            *found,
            Step("train", _measure(out, "train", "--quick"), 60),
            Step("switching", _measure(out, "switching", "--quick"), 45),
            Step("roofline", (*roofline, "--rounds", "5"), 45),
            Step("subnets per second", (*subnets, "--quick"), 60),
        ]
    tiny = ("--cases", "autoformer-tiny/*")
    # Compiling a subnet as a whole takes long: there is one case of it.
    extracted = ("--variants", "extracted-graph", *OURS_CUDA)
    others = ("--variants", "smart", "timm", "compile-static", "compile-dynamic", *OURS_CUDA)
    small = ("--cases", "autoformer-tiny/smallest/128/*")
    # Compiling every block shape would take longer than all else; it is timed under "train".
    ways = ("--variants", "smart", "extracted", *OURS_CUDA[1:])
    switched = ("--cases", "autoformer-tiny/*/128/*", "--count", "200", *ways)
    return [
        *found,
        Step("train, T", _measure(out, "train", *tiny, *others), 180),
        Step("subnets per second, T", (*subnets, *switched), 120),
        Step("roofline", roofline, 60),
        Step("switching", _measure(out, "switching"), 90),
        Step("memory", _measure(out, "memory"), 90),
        Step("extracted, T", _measure(out, "train", *small, *extracted), 120),
        *(
            Step(
                f"train, {name}",
                _measure(out, "train", "--cases", f"{name}/largest/128/*", *others),
                120,
            )
            for name in ("autoformer-small", "autoformer-base")
        ),
        Step("forward, T", _measure(out, "forward", *tiny, *others), 90),
        Step("operators", _measure(out, "operators"), 90),
    ]


def run(todo: Sequence[Step], budget: float) -> dict[str, str]:
    """Run the steps while there is time.

    Returns:
        by name: "done", or what went wrong.
    """
    deadline = time.monotonic() + budget
    outcome = {}
    for step in todo:
        limit = min(step.limit, deadline - time.monotonic())
        if limit < LEAST:
            outcome[step.name] = "left out: no time"
            continue
        print(f"\n== {step.name} (at most {limit:.0f} s)", flush=True)
        environment = {**os.environ, **dict(step.environment)}
        start = time.monotonic()
        try:
            status = subprocess.run(
                step.command, cwd=rows.ROOT, env=environment, timeout=limit, check=False
            ).returncode
            result = "done" if status == 0 else f"failed with status {status}"
        except subprocess.TimeoutExpired:
            result = f"stopped after {limit:.0f} s"
        outcome[step.name] = result
        print(f"== {step.name}: {result}, {time.monotonic() - start:.0f} s", flush=True)
    return outcome


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="under four minutes instead of ten")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path(os.environ.get("OUT") or Path(__file__).parent / "results"),
        help="folder for the rows; default $OUT, else benchmarks/results",
    )
    parser.add_argument("--list", action="store_true", help="print the commands, run nothing")
    args = parser.parse_args(arguments)
    sanitizer = shutil.which("compute-sanitizer")
    todo = steps(args.out.absolute(), quick=args.quick, sanitizer=sanitizer)
    if args.list:
        for step in todo:
            print(f"{step.name} ({step.limit:.0f} s): {' '.join(step.command)}")
        return 0
    if not torch.cuda.is_available():
        parser.error("there is no CUDA device; `make gpu-compile` checks the kernels without one")
    started = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    if sanitizer is None:
        print("left out: memory check (compute-sanitizer is not installed)")
    outcome = run(todo, QUICK_BUDGET if args.quick else BUDGET)
    path = args.out / f"{rows.result_name('cuda')}.csv"
    if path.exists():
        found = [row for row in rows.read(path) if row.timestamp >= started]
        if found:
            page = report.page(found)
            path.with_suffix(".md").write_text(page)
            print(f"\n{page}")
    print("\n".join(f"{name}: {result}" for name, result in outcome.items()))
    return int(any(result != "done" for result in outcome.values()))


if __name__ == "__main__":
    sys.exit(main())
