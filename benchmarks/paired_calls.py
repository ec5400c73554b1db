"""What calls cost the host on two checkouts, in turns.

    python -m benchmarks.paired_calls BEFORE AFTER [--cases 'pre_norm*'] [--launches 6] [--out DIR]

Processes of one program differ by several percent from launch to launch, so one run on each commit
says little. Here two processes, one per checkout and on one core, take turns of a few milliseconds.
A sample is the median ratio after / before of one launch of both; the row of a case, which goes to
benchmarks/results or another folder, has the median and the quantiles of these samples.
"""

from __future__ import annotations

import fnmatch
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import command, rows

TURNS, SECONDS = 60, 0.002  # of each process in a launch; that a turn takes at least


class Worker:
    """A process that calls the growtas of a checkout."""

    def __init__(self, checkout: Path) -> None:
        self.checkout = checkout
        self.process = subprocess.Popen(
            [sys.executable, "-P", str(Path(__file__).with_name("call_cases.py"))],
            cwd=checkout,
            env=os.environ | {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.names: list[str] = self._answer()

    def seconds(self, name: str, calls: int) -> float:
        """That so many calls take."""
        stdin: Any = self.process.stdin
        stdin.write(json.dumps([name, calls]) + "\n")
        stdin.flush()
        return self._answer()

    def close(self) -> None:
        self.process.communicate()

    def _answer(self) -> Any:
        stdout: Any = self.process.stdout
        line = stdout.readline()
        if not line:
            raise RuntimeError(f"the process on {self.checkout} ended; what it said is above")
        return json.loads(line)


def ratios(checkouts: Sequence[Path], patterns: Sequence[str], turns: int) -> dict[str, float]:
    """The median of after / before of every case, in one launch of both."""
    before, after = workers = [Worker(checkout) for checkout in checkouts]
    found = {}
    for name in after.names:
        if not any(fnmatch.fnmatch(name, pattern) for pattern in patterns):
            continue
        for worker in workers:
            worker.seconds(name, 3)  # warm
        calls = max(1, round(SECONDS / before.seconds(name, 1)))
        pairs = []
        for turn in range(turns):
            order = workers[:: -1 if turn % 2 else 1]
            times = {id(worker): worker.seconds(name, calls) for worker in order}
            pairs.append(times[id(after)] / times[id(before)])
        found[name] = statistics.median(pairs)
    for worker in workers:
        worker.close()
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = command.parser("paired_calls", __doc__)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--cases", nargs="+", default=["*"], metavar="PATTERN")
    parser.add_argument("--launches", type=int, default=6)
    parser.add_argument("--turns", type=int, default=TURNS)
    parser.add_argument("--out", type=Path, default=rows.RESULTS, help="folder of the rows")
    args = parser.parse_args(arguments)
    import torch

    from benchmarks.runner import Rows

    checkouts = [args.before.resolve(), args.after.resolve()]
    torch.set_num_threads(1)  # which the rows tell
    book = rows.Book.in_folder("cpu", args.out)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    launches = [ratios(checkouts, args.cases, args.turns) for _ in range(args.launches)]
    commits = [rows.git_state(checkout)[0] for checkout in checkouts]
    for name in launches[0]:
        table = Rows(book, dtype="float32", batch=1, space="", subnet="", task=f"call-{name}")
        table.add(f"{commits[1]} / {commits[0]}", "ratio", "", [found[name] for found in launches])
        row = table.rows[-1]
        print(f"{name:40s} {row.median:.3f}  [{row.q20:.3f}, {row.q80:.3f}] of {row.n}")


if __name__ == "__main__":
    main()
