"""`python -m benchmarks.run`: measure, store rows, draw the chart and the table of targets.

The default is the CPU set (under ten minutes on two cores). `--quick` is a look of about a minute
that stores nothing unless `--out` names a folder. `--full` (most of an hour) adds batch 64, a
subnet of AutoFormer-S, the compiled baselines and more random subnets. With `--device cuda` the GPU
set runs instead. `--cases` runs some of the cases again; their new rows take the place of the old
ones in the chart and the tables.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch

from benchmarks import memory, operators, report, rows, switching
from benchmarks.cases import Case
from benchmarks.command import Say, measuring, measuring_parser
from benchmarks.runner import Effort, Rows, run_case, survived
from benchmarks.variants import VARIANTS, Variant, build, missing
from growtas.space import SearchSpace

PARTS = ("train", "forward", "switching", "memory", "operators")


Workload = tuple[str, str]  # a space and the name of one of its subnets


@dataclass(frozen=True)
class Plan:
    """Everything that a run measures."""

    workloads: tuple[Workload, ...]
    batches: tuple[int, ...]
    dtypes: tuple[str, ...]
    variants: tuple[str, ...]
    compiled_batches: tuple[int, ...]  # batch sizes at which the compiled baselines run too
    switching_variants: tuple[str, ...]
    switching_batch: int
    switching_count: int
    memory_workloads: tuple[Workload, ...]
    memory_batches: tuple[int, ...]
    memory_variants: tuple[str, ...]
    memory_dtypes: tuple[str, ...]
    operator_batch: int
    effort: Effort
    forward_effort: Effort
    operator_effort: Effort
    train_task: str = "train"


TINY, TINY_LARGEST = ("autoformer-tiny", "smallest"), ("autoformer-tiny", "largest")
SMALL = ("autoformer-small", "smallest")
COMPILED = ("compile-static", "compile-dynamic")
OURS_CPU = (
    "growtas-native-accumulate",
    "growtas-native-dense",
    "growtas-reference-dense",
    "growtas-reference-accumulate",
)
OURS_CUDA = tuple(f"growtas-triton-{mode}" for mode in ("dense", "accumulate", "graph"))

CPU = Plan(
    workloads=(TINY, TINY_LARGEST),
    batches=(16,),
    dtypes=("float32", "bfloat16"),
    variants=("naive", "smart", "timm", *OURS_CPU[:3]),
    compiled_batches=(),
    switching_variants=OURS_CPU[:2],
    switching_batch=4,
    switching_count=50,
    memory_workloads=(TINY,),
    memory_batches=(16,),
    memory_variants=("naive", "smart", "timm", *OURS_CPU[:3]),
    memory_dtypes=("float32",),
    operator_batch=16,
    effort=Effort(min_rounds=3, max_rounds=15, seconds=20),
    forward_effort=Effort(min_rounds=4, max_rounds=15, seconds=12),
    operator_effort=Effort(min_rounds=5, max_rounds=30, seconds=1.0),
)
# Compiling takes minutes on two cores and is done anew for each batch size, dtype and task.
CPU_FULL = replace(
    CPU,
    workloads=(TINY, TINY_LARGEST, SMALL),
    batches=(16, 64),
    variants=("naive", "timm", *COMPILED, OURS_CPU[0]),
    compiled_batches=(16,),
    switching_variants=OURS_CPU[:1],
    switching_count=200,
    memory_workloads=(TINY, TINY_LARGEST),
    memory_batches=(16, 64),
    memory_variants=("naive", "timm", OURS_CPU[0]),
    effort=Effort(min_rounds=3, max_rounds=15, seconds=30),
    forward_effort=Effort(min_rounds=3, max_rounds=15, seconds=15),
)
CPU_QUICK = replace(
    CPU,
    batches=(4,),
    workloads=(TINY,),
    variants=("naive", "smart", "timm", *OURS_CPU),
    switching_variants=OURS_CPU[:1],
    switching_batch=2,
    switching_count=10,
    memory_batches=(4,),
    memory_variants=("naive", OURS_CPU[0]),
    operator_batch=4,
    effort=Effort(min_rounds=3, max_rounds=5, seconds=3),
    forward_effort=Effort(min_rounds=3, max_rounds=5, seconds=1),
    operator_effort=Effort(min_rounds=3, max_rounds=10, seconds=0.2),
)
CUDA = Plan(
    workloads=tuple(
        (f"autoformer-{size}", name)
        for size in ("tiny", "small", "base")
        for name in ("smallest", "largest")
    ),
    batches=(32, 128),
    dtypes=("bfloat16",),
    # Ours come before what inductor compiles: from then on Triton keeps its builds elsewhere.
    variants=("naive", "smart", "timm", *OURS_CUDA, *COMPILED, "extracted-graph"),
    compiled_batches=(32, 128),
    switching_variants=("naive", *OURS_CUDA, "compile-dynamic"),
    switching_batch=128,
    switching_count=200,
    memory_workloads=(TINY,),
    memory_batches=(32,),
    memory_variants=("naive", *OURS_CUDA[::-1], "smart", "timm"),
    memory_dtypes=("bfloat16",),
    operator_batch=128,
    effort=Effort(min_rounds=10, max_rounds=50, seconds=6),
    forward_effort=Effort(min_rounds=10, max_rounds=50, seconds=4),
    operator_effort=Effort(min_rounds=20, max_rounds=200, seconds=2.0),
    train_task="train_adamw",
)
CUDA_QUICK = replace(
    CUDA,
    workloads=(TINY_LARGEST,),
    batches=(128,),
    variants=("naive", "smart", "timm", *OURS_CUDA),
    switching_variants=OURS_CUDA,
    switching_count=20,
    memory_variants=("naive", *OURS_CUDA),
    effort=Effort(min_rounds=5, max_rounds=20, seconds=2),
    forward_effort=Effort(min_rounds=5, max_rounds=20, seconds=1),
)


def choose_plan(device: str, *, quick: bool, full: bool) -> Plan:
    """The plan of the command line's flags.

    Raises:
        ValueError: both flags at once.
    """
    if quick and full:
        raise ValueError("--quick and --full exclude each other")
    if device == "cuda":
        return CUDA_QUICK if quick else CUDA
    return CPU_QUICK if quick else CPU_FULL if full else CPU


class Session:
    """Runs a plan. Models are built once per space and shared by its cases. Rows go into the book
    when they are known; what fails becomes a row and does not stop the rest.

    Args:
        names: only these variants, then at every batch size; naive runs in any case.
        patterns: only cases whose label matches one of these shell patterns.
    """

    def __init__(
        self,
        plan: Plan,
        book: rows.Book,
        say: Say,
        names: Sequence[str] | None = None,
        patterns: Sequence[str] = ("*",),
    ) -> None:
        self.plan, self.book, self.say = plan, book, say
        self.device = book.device
        self.names, self.patterns = names, patterns
        self.unavailable = {
            name: why for name in VARIANTS if (why := missing(name, self.device)) is not None
        }
        wanted = {*plan.variants, *plan.switching_variants, *plan.memory_variants}
        for name in sorted(wanted & self.unavailable.keys()):
            say(f"left out: {name} ({self.unavailable[name]})")

    def _runnable(self, names: Iterable[str]) -> list[str]:
        chosen = [n for n in names if self.names is None or n in self.names or n == "naive"]
        return [name for name in chosen if name not in self.unavailable]

    def cases(
        self,
        task: str,
        workloads: Sequence[Workload],
        batches: Sequence[int],
        dtypes: Sequence[str] | None = None,
    ) -> list[Case]:
        """Every combination that the patterns let through, in the order of the workloads."""
        found = (
            Case(SearchSpace.preset(space), subnet, batch, dtype, task)
            for space, subnet in workloads
            for batch in batches
            for dtype in (self.plan.dtypes if dtypes is None else dtypes)
        )
        return [c for c in found if any(fnmatch(c.label, p) for p in self.patterns)]

    def _variants_at(self, batch: int) -> list[str]:
        found = self._runnable(self.plan.variants if self.names is None else self.names)
        found = list(dict.fromkeys(["naive", *found]))
        if self.names is None and batch not in self.plan.compiled_batches:
            found = [name for name in found if name not in COMPILED]
        return found

    def steps(self, task: str) -> None:
        """Training or forward of every workload, batch and dtype."""
        effort = self.plan.forward_effort if task == "forward" else self.plan.effort
        cases = self.cases(task, self.plan.workloads, self.plan.batches)
        for space in dict.fromkeys(case.space.name for case in cases):
            built: dict[str, Variant] = {}
            for case in (c for c in cases if c.space.name == space):
                names = self._variants_at(case.batch)
                self._build([name for name in names if name not in built], case, built)
                self.say(case.label)
                with survived(Rows.of_case(self.book, case), "naive"):
                    variants = {name: built[name] for name in names if name in built}
                    for row in run_case(variants, case, self.book, effort):
                        if row.metric == "wall_time":
                            self.say(f"    {row.variant:32s} {row.median * 1000:9.2f} ms")

    def _build(self, names: Iterable[str], case: Case, built: dict[str, Variant]) -> None:
        for name in names:
            with survived(Rows.of_case(self.book, case), name):
                built[name] = build(name, case, self.device)

    def switching(self) -> None:
        plan = self.plan
        workloads = [(plan.workloads[0][0], f"random{plan.switching_count}")]
        for case in self.cases("switching", workloads, [plan.switching_batch], plan.dtypes[:1]):
            variants: dict[str, Variant] = {}
            sized = replace(case, subnet_name="smallest")
            self._build(self._runnable(plan.switching_variants), sized, variants)
            for row in switching.run_switching(variants, case, self.book, plan.switching_count):
                if row.metric == "random_over_fixed":
                    self.say(f"{case.label} {row.variant}: {row.median:.3f}")

    def memory(self) -> None:
        plan = self.plan
        if not memory.supported(self.device):
            self.say("left out: memory (needs Linux's /proc/self/clear_refs)")
            return
        for case in self.cases(
            "memory", plan.memory_workloads, plan.memory_batches, plan.memory_dtypes
        ):
            table = Rows.of_case(self.book, case)
            used: dict[str, int] = {}
            for name in self._runnable(plan.memory_variants):
                with survived(table, name):
                    used[name] = size = memory.extra_memory(name, case, self.device)
                    table.add(name, "extra_memory", "B", [size])
                    self.say(f"{case.label} {name}: {size / 1e6:.0f} MB")
                    if name.startswith("growtas") and "naive" in used:
                        ratio = [size / used["naive"]]
                        table.add(f"{name} / naive", "extra_memory_ratio", "1", ratio)

    def operators(self) -> None:
        plan = self.plan
        backends = sorted({n.split("-")[1] for n in self._runnable(VARIANTS) if "growtas" in n})
        for case in self.cases("operators", plan.workloads, [plan.operator_batch]):
            for name in operators.OPERATORS:
                with survived(Rows.of_case(self.book, case, task=name), "naive"):
                    operators.run_operator(name, case, backends, self.book, plan.operator_effort)
            self.say(f"{case.label}: done")

    def run(self, parts: Sequence[str]) -> None:
        """Measure the parts in order."""
        todo: dict[str, Callable[[], None]] = {
            "train": lambda: self.steps(self.plan.train_task),
            "forward": lambda: self.steps("forward"),
            "switching": self.switching,
            "memory": self.memory,
            "operators": self.operators,
        }
        for part in parts:
            start = time.perf_counter()
            todo[part]()
            self.say(f"{part}: {time.perf_counter() - start:.0f} s")


def command_line() -> argparse.ArgumentParser:
    """Everything that can be asked for."""
    parser = measuring_parser("run", __doc__, "space/subnet/batch/dtype/part")
    effort = parser.add_mutually_exclusive_group()
    effort.add_argument("--quick", action="store_true", help="about a minute; small cases")
    effort.add_argument("--full", action="store_true", help="all cases; most of an hour")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument(
        "--variants", nargs="+", choices=list(VARIANTS), help="only these (naive always runs)"
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    parser = command_line()
    args = parser.parse_args(arguments)
    plan = choose_plan(args.device, quick=args.quick, full=args.full)
    with measuring(args) as (book, say):
        Session(plan, book, say, args.variants, args.cases).run(args.parts)
    if not book.rows:
        parser.error(f"no case of these parts matches {' '.join(args.cases)}")
    print("\n" + report.table(book.rows))
    if book.path is not None:
        report.write(book.path)
        say(f"{len(book.rows)} rows appended to {book.path}")
    return book.exit_status()


if __name__ == "__main__":
    sys.exit(main())
