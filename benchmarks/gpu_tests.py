"""`python -m benchmarks.gpu_tests FOLDER...`: pytest in several processes at once, told live.

On a GPU these tests spend their time in the compiler, on the CPU: every grid, head dim and dtype
is a compilation of its own. Each test is told when it ends, with the traceback where it failed, so
a run that is cut has said what it knew; how many passed, failed and were skipped becomes rows in
any case. Arguments go to pytest, whose processes pytest-xdist feeds where it is installed, else
each gets its share of the tests. The exit status is 1 if a test fails.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

from benchmarks import command, rows
from benchmarks.processes import python, side_by_side
from benchmarks.rows import ROOT
from benchmarks.runner import Rows

PROCESSES = 8
# Exactly one level of quiet, whatever the project's settings add, lists the tests by their names.
COLLECT = python("pytest", "--verbosity=-1", "--collect-only")
TELL = python(
    "pytest", "--verbosity=-2", "--no-header", "--no-summary", "-p", "benchmarks.told_tests"
)
TOLD = re.compile(r"^[.sFEx]*\[(passed|failed|skipped)\] ")  # pytest's letter may stand before it


def collect(arguments: Sequence[str]) -> list[str]:
    """The tests that pytest finds.

    Raises:
        RuntimeError: it finds none, or cannot import one.
    """
    done = subprocess.run(
        [*COLLECT, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    found = [line for line in done.stdout.splitlines() if "::" in line]
    if done.returncode != 0 or not found:
        raise RuntimeError(f"pytest collects nothing from {arguments}:\n{done.stdout}{done.stderr}")
    return found


def commands(arguments: Sequence[str], processes: int) -> list[tuple[str, ...]]:
    """What to start, all at the same time."""
    if importlib.util.find_spec("xdist") is not None:
        return [(*TELL, "-n", str(processes), *arguments)]
    tests = collect(arguments)
    return [(*TELL, *share) for n in range(processes) if (share := tests[n::processes])]


def run(todo: Sequence[tuple[str, ...]], outcomes: Counter[str]) -> bool:
    """Whether all tests pass; how each ended is printed, and counted in `outcomes` as it does."""

    def say(line: str) -> None:
        if found := TOLD.match(line):
            outcomes[found[1]] += 1
        print(line, flush=True)

    places = (rows.ROOT, *filter(None, [os.environ.get("PYTHONPATH")]))
    environment = {"PYTHONPATH": os.pathsep.join(map(str, places))}
    return side_by_side(todo, say, ROOT, environment)


def stop(number: int, frame: FrameType | None) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(128 + number)


def command_line() -> argparse.ArgumentParser:
    """Everything that can be asked for, but for pytest's own."""
    parser = command.parser("gpu_tests", __doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--out", type=Path, help="folder of the rows; default: only printed")
    return parser


def main(arguments: Sequence[str]) -> int:
    args, rest = command_line().parse_known_args(arguments)
    # Made before the tests, because it imports PyTorch: a step that is cut has no time for that.
    book = rows.Book.in_folder(args.device, args.out)
    table = Rows(book, dtype="", batch=0, space="", subnet="", task="tests")
    signal.signal(signal.SIGTERM, stop)
    processes = max(1, min(PROCESSES, (os.cpu_count() or 1) // 2))
    outcomes: Counter[str] = Counter()
    try:
        return int(not run(commands(rest, processes), outcomes))
    finally:
        for outcome in ("passed", "failed", "skipped"):
            table.add("tests", f"tests_{outcome}", "1", [outcomes[outcome]])
        print(", ".join(f"{outcomes[row]} {row}" for row in ("passed", "failed", "skipped")))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
