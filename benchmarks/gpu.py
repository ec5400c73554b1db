"""`make gpu` (= `python -m benchmarks.gpu`): all that a machine with a GPU is asked for, in one go.

Such a machine is there rarely and for minutes, so what is worth most comes first: the compiler and
the installation, a first training step checked against the reference, seconds per kernel, training
steps beside other ways, then the roofline, the tests and the rest. Every step is a process group of
its own with a time limit; a failure or a cut does not stop the others, and what there is no time
for is named. Rows go into a CSV file when they are known, all output into `gpu.log`, and after
every step `gpu.md` shows what there is: in $OUT if that is set, else in benchmarks/results. SIGTERM
ends the running step and leaves the page. The exit status is 1 if a step failed, was cut or left
out.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import IO, NamedTuple

from benchmarks import processes, report, rows
from benchmarks.command import parser as new_parser
from benchmarks.gpu_toolchain import NO_DEVICE
from benchmarks.processes import Clock, Step, python

BUDGET = 540.0  # seconds, installation included; such a machine may be lent for ten minutes
QUICK_BUDGET = 240.0
RESERVE = 10.0  # seconds of the budget, to end the last step's processes and write the page
LEAST = 5.0  # seconds that a step must have left to be begun

OURS = tuple(f"growtas-triton-{mode}" for mode in ("dense", "accumulate", "graph"))
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
PROFILED = ("tiny/largest", "small/largest", "tiny/smallest")
TOOLCHAIN = "toolchain"


def steps(out: Path, *, quick: bool, sanitizer: str | None) -> list[Step]:
    """What is run, in order; without the memory check if there is no `sanitizer`. The limits up to
    the subnets per second fit into the budget together; what follows lives on what they leave."""
    place = ("--device", "cuda", "--out", str(out))
    install = ("pip", "install", "--quiet", "--no-build-isolation", "--no-deps", "-e", ".")

    def seconds(all_of_it: float, when_quick: float) -> float:
        return when_quick if quick else all_of_it

    def train(space: str, subnet: str, limit: float, *variants: str, name: str = "train") -> Step:
        cases = ("--cases", f"autoformer-{space}/{subnet}/128/*", "--variants", *variants)
        command = python("benchmarks.run", *place, "--parts", "train", *cases)
        return Step(f"{name}, {space}", command, limit)

    def compiled(variant: str) -> Step:
        # Ours runs first: inductor moves Triton's cache to an empty folder of its own.
        return train("tiny", "largest", 75, OURS[-1], variant, name=variant)

    found = [
        Step(TOOLCHAIN, python("benchmarks.gpu_toolchain"), seconds(25, 20)),
        Step(
            "install", python(*install), seconds(75, 45), (("GROWTAS_CUDA", "1"),),
            consequence="the rest runs uninstalled, with Triton's AdamW",
        ),
        Step("smoke", python("benchmarks.gpu_smoke", *place, "--apart"), seconds(60, 45)),
        Step(
            "kernels",
            python("benchmarks.gpu_kernels", *place, "--cases",
                   *(f"autoformer-{case}" for case in PROFILED[: 1 if quick else None])),
            seconds(60, 30),
        ),
        train("tiny", "largest" if quick else "*", seconds(75, 30), "smart", *OURS),
    ]  # fmt: skip
    if not quick:
        found += [train(space, "largest", 45, "smart", *OURS[1:]) for space in ("small", "base")]
    found += [
        Step(
            "roofline",
            python("benchmarks.roofline", "--out", str(out), "--rounds", "5" if quick else "20"),
            seconds(30, 15),
        ),
        Step("tests", python("benchmarks.gpu_tests", *place, *TESTS), seconds(70, 20)),
        Step(
            "subnets per second",
            python("benchmarks.subnets_per_second", *place, "--count", "40" if quick else "100",
                   "--cases", "autoformer-tiny/*/128/*/train_adamw",
                   "--variants", "smart", *OURS[1:]),
            seconds(45, 25),
        ),
    ]  # fmt: skip
    if quick:
        return found
    found += [
        Step("memory", python("benchmarks.run", *place, "--parts", "memory"), 60),
        *map(compiled, ("compile-dynamic", "compile-static", "extracted-graph")),
    ]
    if sanitizer is not None:
        check = (sanitizer, "--tool", "memcheck", "--error-exitcode", "1")
        command = (*check, *python("pytest", *TESTS, "-k", MEMORY_CHECKED))
        # Without the caching allocator every tensor is an allocation that can be overrun.
        found.append(Step("memory check", command, 90, (("PYTORCH_NO_CUDA_MEMORY_CACHING", "1"),)))
    return found


class NoDevice(Exception):
    """There is nothing that the steps could run on."""


class Outcome(NamedTuple):
    """How a step ended, and the seconds it took."""

    result: str
    seconds: float


def page(outcomes: Mapping[str, Outcome], found: Sequence[rows.Row]) -> str:
    """Markdown: the measurements, then every step with its outcome, which an output that is cut at
    its beginning still shows."""
    lines = [f"| {name} | {o.result} | {o.seconds:.0f} |" for name, o in outcomes.items()]
    table = "\n".join(["| step | outcome | s |", "|---|---|---|", *lines])
    return "\n\n".join(["# A run on a GPU", *report.sections(found), table]) + "\n"


class Run:
    """Runs steps within a budget, and keeps `gpu.log` and `gpu.md` in a folder.

    Args:
        out: the folder, made when there is something to keep.
        budget: seconds from `begun` on.
        begun: when, by the clock.

    Attributes:
        stopped: set from outside to end the running step and leave out the others.
    """

    def __init__(
        self, out: Path, budget: float, begun: float, clock: Clock = time.monotonic
    ) -> None:
        self.out, self.clock = out, clock
        self.begun, self.deadline = begun, begun + budget - RESERVE
        self.started = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        self.outcomes: dict[str, Outcome] = {}
        self.stopped = False
        self._early: list[str] = []  # said before the log is there
        self._log: IO[str] | None = None

    def say(self, line: str) -> None:
        print(line, flush=True)
        if self._log is None:
            self._early.append(line)
        else:
            print(line, file=self._log)

    def run(self, todo: Sequence[Step]) -> None:
        """Run the steps while there is time.

        Raises:
            NoDevice: the toolchain found none; nothing is written.
        """
        for step in todo:  # known from the start, so that an early end names them
            self.outcomes[step.name] = Outcome("not reached", 0.0)
        for step in todo:
            if self.stopped:
                return
            start = self.clock()
            limit = min(step.limit, self.deadline - start)
            if limit < LEAST:
                self.outcomes[step.name] = Outcome("left out: no time", 0.0)
                continue
            self.say(f"\n== {step.name} (at most {limit:.0f} s)")
            result = processes.run(
                step, limit, self.say, rows.ROOT, self.clock, lambda: self.stopped
            )
            self.outcomes[step.name] = Outcome(result, self.clock() - start)
            self.say(f"== {step.name}: {result}, {self.clock() - start:.0f} s")
            if step.name == TOOLCHAIN and result == f"failed with status {NO_DEVICE}":
                raise NoDevice
            self.write()

    def write(self) -> str:
        """The page of what there is so far; also its text."""
        if self._log is None:
            self.out.mkdir(parents=True, exist_ok=True)
            self._log = (self.out / "gpu.log").open("w", buffering=1, encoding="utf-8")
            self._log.writelines(f"{line}\n" for line in self._early)
        found = [
            row
            for path in sorted(self.out.glob("cuda-*.csv"))
            for row in rows.read(path)
            if row.timestamp >= self.started
        ]
        text = page(self.outcomes, found)
        (self.out / "gpu.md").write_text(text, encoding="utf-8")
        return text

    def end(self) -> int:
        """Write and print the page.

        Returns:
            the exit status.
        """
        self.say(f"\n{self.write()}\n{self.clock() - self.begun:.0f} s in all")
        assert self._log is not None  # opened by write
        self._log.close()
        return int(any(outcome.result != "done" for outcome in self.outcomes.values()))


def main(arguments: Sequence[str] | None = None, clock: Clock = time.monotonic) -> int:
    begun = clock()
    parser = new_parser("gpu", __doc__)
    parser.add_argument(
        "--quick",
        action="store_true",
        default=bool(os.environ.get("QUICK")),
        help="under four minutes instead of nine; also where $QUICK is set",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path(os.environ.get("OUT") or rows.RESULTS),
        help="folder for what is found; default $OUT, else benchmarks/results",
    )
    parser.add_argument("--list", action="store_true", help="print the commands, run nothing")
    args = parser.parse_args(arguments)
    out = args.out.absolute()
    todo = steps(out, quick=args.quick, sanitizer=shutil.which("compute-sanitizer"))
    if args.list:
        for step in todo:
            print(f"{step.name} ({step.limit:.0f} s): {' '.join(step.command)}")
        return 0

    run = Run(out, QUICK_BUDGET if args.quick else BUDGET, begun, clock)

    def stop(number: int, frame: FrameType | None) -> None:
        run.stopped = True

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        run.run(todo)
        return run.end()
    except NoDevice:
        return NO_DEVICE
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


if __name__ == "__main__":
    sys.exit(main())
