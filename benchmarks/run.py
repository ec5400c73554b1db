"""`python -m benchmarks.run`: measure, store rows, draw the chart and the table of targets.

The default is the CPU set (under ten minutes on two cores). `--quick` is a look of about a minute
that stores nothing unless `--out` names a folder. `--full` adds batch 64, the compiled baselines
and more subnets. With `--device cuda` the GPU set runs instead.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks import memory, operators, plot, report, rows, switching
from benchmarks.cases import Case, supernet_cases
from benchmarks.runner import Effort, Rows, run_case
from benchmarks.variants import VARIANTS, Variant, build, missing
from growtas.space import SearchSpace

PARTS = ("train", "forward", "switching", "memory", "operators")


@dataclass(frozen=True)
class Plan:
    """Everything that a run measures."""

    spaces: tuple[str, ...]
    batches: tuple[int, ...]
    dtypes: tuple[str, ...]
    subnets: tuple[str, ...]
    variants: tuple[str, ...]
    switching_variants: tuple[str, ...]
    switching_batch: int
    switching_count: int
    memory_variants: tuple[str, ...]
    memory_dtypes: tuple[str, ...]
    operator_batch: int
    effort: Effort
    forward_effort: Effort
    operator_effort: Effort
    train_task: str = "train"


OURS_CPU = (
    "growtas-native-accumulate",
    "growtas-native-dense",
    "growtas-reference-dense",
    "growtas-reference-accumulate",
)
OURS_CUDA = tuple(f"growtas-triton-{mode}" for mode in ("dense", "accumulate"))

CPU = Plan(
    spaces=("autoformer-tiny",),
    batches=(16,),
    dtypes=("float32", "bfloat16"),
    subnets=("smallest", "largest"),
    variants=("naive", "smart", "timm", *OURS_CPU[:3]),
    switching_variants=OURS_CPU[:2],
    switching_batch=4,
    switching_count=50,
    memory_variants=("naive", "smart", "timm", *OURS_CPU[:3]),
    memory_dtypes=("float32",),
    operator_batch=16,
    effort=Effort(min_rounds=3, max_rounds=15, seconds=20),
    forward_effort=Effort(min_rounds=4, max_rounds=15, seconds=12),
    operator_effort=Effort(min_rounds=5, max_rounds=30, seconds=1.0),
)
CPU_FULL = replace(
    CPU,
    batches=(16, 64),
    variants=("naive", "smart", "timm", "compile-static", "compile-dynamic", *OURS_CPU),
    switching_variants=("naive", "smart", "compile-static", *OURS_CPU),
    switching_batch=16,
    switching_count=200,
    memory_variants=("naive", "smart", "timm", "compile-static", "compile-dynamic", *OURS_CPU),
    memory_dtypes=("float32", "bfloat16"),
    effort=Effort(min_rounds=7, max_rounds=30, seconds=60),
    forward_effort=Effort(min_rounds=10, max_rounds=30, seconds=30),
    operator_effort=Effort(min_rounds=10, max_rounds=50, seconds=3.0),
)
CPU_QUICK = replace(
    CPU,
    batches=(4,),
    subnets=("smallest",),
    variants=("naive", "smart", "timm", *OURS_CPU),
    switching_variants=("growtas-native-accumulate",),
    switching_batch=2,
    switching_count=10,
    memory_variants=("naive", "growtas-native-accumulate"),
    operator_batch=4,
    effort=Effort(min_rounds=3, max_rounds=5, seconds=3),
    forward_effort=Effort(min_rounds=3, max_rounds=5, seconds=1),
    operator_effort=Effort(min_rounds=3, max_rounds=10, seconds=0.2),
)
CUDA = Plan(
    spaces=("autoformer-tiny", "autoformer-small", "autoformer-base"),
    batches=(32, 128),
    dtypes=("bfloat16",),
    subnets=("smallest", "largest"),
    variants=(
        "naive",
        "smart",
        "timm",
        "compile-static",
        "compile-dynamic",
        "extracted-graph",
        *OURS_CUDA,
    ),
    switching_variants=("naive", "compile-dynamic", *OURS_CUDA),
    switching_batch=128,
    switching_count=200,
    memory_variants=("naive", "smart", "timm", *OURS_CUDA),
    memory_dtypes=("bfloat16",),
    operator_batch=128,
    effort=Effort(min_rounds=20, max_rounds=100, seconds=10),
    forward_effort=Effort(min_rounds=20, max_rounds=100, seconds=5),
    operator_effort=Effort(min_rounds=20, max_rounds=200, seconds=2.0),
    train_task="train_adamw",
)
CUDA_QUICK = replace(
    CUDA,
    spaces=("autoformer-tiny",),
    batches=(32,),
    subnets=("smallest",),
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
    """Runs a plan. Models are built once per space and shared by its cases."""

    def __init__(
        self, plan: Plan, device: str, say: Callable[[str], None], names: Sequence[str] | None
    ) -> None:
        self.plan, self.device, self.say, self.names = plan, device, say, names
        self.where = rows.provenance(device)
        self.unavailable = {
            name: why for name in VARIANTS if (why := missing(name, device)) is not None
        }
        wanted = {*plan.variants, *plan.switching_variants, *plan.memory_variants}
        for name in sorted(wanted & self.unavailable.keys()):
            say(f"left out: {name} ({self.unavailable[name]})")

    def _runnable(self, names: Iterable[str]) -> list[str]:
        chosen = [n for n in names if self.names is None or n in self.names or n == "naive"]
        return [name for name in chosen if name not in self.unavailable]

    def _cases(self, space: SearchSpace, task: str) -> list[Case]:
        found = supernet_cases(space, list(self.plan.batches), [task])
        return [
            c for c in found if c.dtype in self.plan.dtypes and c.subnet_name in self.plan.subnets
        ]

    def steps(self, task: str) -> list[rows.Row]:
        """Training or forward of every space, batch, dtype and subnet."""
        made = []
        effort = self.plan.forward_effort if task == "forward" else self.plan.effort
        for name in self.plan.spaces:
            cases = self._cases(SearchSpace.preset(name), task)
            variants = self._build(self.plan.variants, cases[0])
            for case in cases:
                found = run_case(variants, case, self.where, effort, self.device)
                made += found
                self.say(f"{task} {case.dtype} batch {case.batch} {case.subnet_name} of {name}")
                for row in found:
                    if row.metric == "wall_time":
                        self.say(f"    {row.variant:32s} {row.median * 1000:9.2f} ms")
        return made

    def _build(self, names: Sequence[str], case: Case) -> dict[str, Variant]:
        return {name: build(name, case, self.device) for name in self._runnable(names)}

    def switching(self) -> list[rows.Row]:
        plan = self.plan
        space = SearchSpace.preset(plan.spaces[0])
        made = []
        for dtype in plan.dtypes[:1]:
            case = Case(
                space, f"random{plan.switching_count}", plan.switching_batch, dtype, "train"
            )
            variants = self._build(plan.switching_variants, replace(case, subnet_name="smallest"))
            found = switching.run_switching(
                variants, case, self.where, plan.switching_count, self.device
            )
            made += found
            for row in found:
                if row.metric == "random_over_fixed":
                    self.say(f"switching {dtype} {row.variant}: {row.median:.3f}")
        return made

    def memory(self) -> list[rows.Row]:
        plan = self.plan
        if not memory.supported(self.device):
            self.say("left out: memory (needs Linux's /proc/self/clear_refs)")
            return []
        made: list[rows.Row] = []
        for dtype in plan.memory_dtypes:
            case = Case(
                SearchSpace.preset(plan.spaces[0]), "smallest", plan.batches[0], dtype, "train"
            )
            table = Rows.of_case(self.where, case, self.device, task="memory")
            used = {
                name: memory.extra_memory(name, case, self.device)
                for name in self._runnable(plan.memory_variants)
            }
            for name, size in used.items():
                table.add(name, "extra_memory", "B", [size])
                self.say(f"memory {dtype} {name}: {size / 1e6:.0f} MB")
                if name.startswith("growtas"):
                    ratio = [size / used["naive"]]
                    table.add(f"{name} / naive", "extra_memory_ratio", "1", ratio)
            made += table.rows
        return made

    def operators(self) -> list[rows.Row]:
        plan = self.plan
        backends = sorted({n.split("-")[1] for n in self._runnable(VARIANTS) if "growtas" in n})
        made = []
        for subnet in plan.subnets:
            for dtype in plan.dtypes:
                space = SearchSpace.preset(plan.spaces[0])
                case = Case(space, subnet, plan.operator_batch, dtype, "forward")
                for name in operators.OPERATORS:
                    made += operators.run_operator(
                        name, case, backends, self.where, plan.operator_effort, self.device
                    )
                self.say(f"operators {dtype} {subnet}: done")
        return made

    def run(self, parts: Sequence[str], store: Callable[[list[rows.Row]], None]) -> None:
        """Measure the parts in order; rows are stored as soon as a part is complete."""
        todo: dict[str, Callable[[], list[rows.Row]]] = {
            "train": lambda: self.steps(self.plan.train_task),
            "forward": lambda: self.steps("forward"),
            "switching": self.switching,
            "memory": self.memory,
            "operators": self.operators,
        }
        for part in parts:
            start = time.perf_counter()
            store(todo[part]())
            self.say(f"{part}: {time.perf_counter() - start:.0f} s")


def command_line() -> argparse.ArgumentParser:
    """Everything that can be asked for."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.run",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    effort = parser.add_mutually_exclusive_group()
    effort.add_argument("--quick", action="store_true", help="about a minute; small cases")
    effort.add_argument("--full", action="store_true", help="batch 64 too, more subnets; an hour")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument(
        "--variants", nargs="+", choices=list(VARIANTS), help="only these (naive always runs)"
    )
    parser.add_argument("--spaces", nargs="+", help="instead of the plan's, the first for all")
    parser.add_argument("--batches", nargs="+", type=int, help="instead of the plan's")
    parser.add_argument("--subnets", nargs="+", choices=("smallest", "largest"))
    parser.add_argument("--threads", type=int, help="default: PyTorch's")
    parser.add_argument("--out", type=Path, help="folder; default benchmarks/results, not --quick")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    args = command_line().parse_args(arguments)
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    out = args.out or (None if args.quick else Path(__file__).parent / "results")
    plan = choose_plan(args.device, quick=args.quick, full=args.full)
    given = {name: getattr(args, name) for name in ("spaces", "batches", "subnets")}
    chosen: dict[str, Any] = {name: tuple(value) for name, value in given.items() if value}
    plan = replace(plan, **chosen)
    start = time.perf_counter()

    def say(text: str) -> None:
        print(f"[{time.perf_counter() - start:6.1f} s] {text}", flush=True)

    found: list[rows.Row] = []
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as cache:
        # An empty compile cache, so that the stored warm-up times mean the same in every run.
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
        Session(plan, args.device, say, args.variants).run(args.parts, found.extend)
    print("\n" + report.table(found))
    if out is not None:
        path = out / f"{rows.result_name(args.device)}.csv"
        rows.append(path, found)
        path.with_suffix(".md").write_text(report.page(found))
        if importlib.util.find_spec("matplotlib") is None:
            say("no chart: matplotlib is not installed")
        else:
            plot.chart(found, path.with_suffix(".png"))
        say(f"{len(found)} rows appended to {path}")


if __name__ == "__main__":
    main()
