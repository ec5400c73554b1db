"""`python -m benchmarks.gpu_tests FOLDER...`: pytest in several processes at once.

On a GPU these tests spend their time in the compiler, on the CPU: every grid, head dim and dtype
is a compilation of its own. Arguments go to pytest; the exit status is 1 if a test fails.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack

from benchmarks.rows import ROOT

# One level of quiet, whatever the project's own settings add: then tests are listed by their names.
PYTEST = (sys.executable, "-W", "ignore", "-m", "pytest", "--verbosity=-1")


def collect(arguments: Sequence[str]) -> list[str]:
    """The tests that pytest finds.

    Raises:
        RuntimeError: it finds none, or cannot import one.
    """
    command = [*PYTEST, "--collect-only", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    found = [line for line in done.stdout.splitlines() if "::" in line]
    if done.returncode != 0 or not found:
        raise RuntimeError(f"pytest collects nothing from {arguments}:\n{done.stdout}{done.stderr}")
    return found


def run(tests: Sequence[str], processes: int) -> bool:
    """Whether all tests pass; what the processes print follows in order."""
    shares = [share for n in range(processes) if (share := tests[n::processes])]
    passed = True
    with ExitStack() as stack:
        outputs = [stack.enter_context(tempfile.TemporaryFile("w+")) for _ in shares]
        running = [
            subprocess.Popen([*PYTEST, *share], cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)
            for share, output in zip(shares, outputs, strict=True)
        ]
        for process, output in zip(running, outputs, strict=True):
            passed &= process.wait() == 0
            output.seek(0)
            print(output.read(), flush=True)
    return passed


def main(arguments: Sequence[str]) -> int:
    tests = collect(arguments)
    processes = max(1, min(8, (os.cpu_count() or 1) // 2))
    print(f"{len(tests)} tests in {processes} processes", flush=True)
    return int(not run(tests, processes))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
