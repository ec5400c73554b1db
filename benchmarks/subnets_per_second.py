"""Another subnet at every step: training steps and evaluations per second over random subnets.

    python -m benchmarks.subnets_per_second --quick      # a minute, CPU, nothing stored
    python -m benchmarks.subnets_per_second              # CPU set, mostly compiling
    python -m benchmarks.subnets_per_second --device cuda --cases 'autoformer-tiny/*/128/*'

All variants take turns on the same chunks of subnets, and wait for the device only at the end of
a chunk: `subnets_per_second` is a chunk's length over its wall time, and `host_time` the part of
it until the last call has returned, per step. Compiled variants have run every block shape before;
what that took, from an empty cache, is `warmup_time`, and `subnets_per_second_from_cold` counts it
in. `extracted` is the bound: one stand-alone subnet of the random ones' mean size, compiled, on
CUDA replayed from a graph, and never another one.

Then a population as an evolution breeds it (half mutants, half crossed over, of ten parents) is
scored by the search's `Evaluator`: together (`score_many`) against one by one.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from functools import partial

import torch
from torch import Tensor

import growtas
from benchmarks import rows, switching
from benchmarks.cases import Case, make_batch, naive_to_growtas
from benchmarks.command import Say, measuring, measuring_parser
from benchmarks.runner import (
    Effort,
    Rows,
    WrongResult,
    check,
    interleave,
    no_gc,
    paired_ratios,
    step_of,
    survived,
)
from benchmarks.variants import ExtractedGraph, Variant, build, missing, weights_for
from growtas.search import Evaluator, Score, crossover, mutate
from growtas.search.population import turns
from growtas.space import SearchSpace, Subnet

COMPILED = ("compile-static", "compile-dynamic")
EXTRACTED = "extracted"
OURS = {
    "cpu": ("growtas-native-accumulate",),
    "cuda": ("growtas-triton-accumulate", "growtas-triton-graph"),
}
PARENTS = 10


class Extracted(ExtractedGraph):
    """The one subnet that it was prepared for, whatever it is asked for."""

    name = EXTRACTED

    def logits(self, images: Tensor, subnet: Subnet) -> Tensor:
        return super().logits(images, self.subnet)


@dataclass(frozen=True)
class Plan:
    """What is measured: every combination of spaces and batches."""

    spaces: tuple[str, ...]
    batches: tuple[int, ...]
    dtype: str
    train: str  # the training task of benchmarks.cases
    variants: tuple[str, ...]
    count: int  # random subnets
    chunk: int  # of them between two waits
    images: int  # of the search, for the population
    population: int
    effort: Effort  # for scoring the population
    image_size: int = 224

    def cases(self, patterns: Sequence[str] = ("*",)) -> Iterator[Case]:
        """Labels are space/random<count>/batch/dtype/task."""
        for space in self.spaces:
            for batch in self.batches:
                for task in (self.train, "forward", "evaluation"):
                    name = f"random{self.count}"
                    case = Case(
                        SearchSpace.preset(space), name, batch, self.dtype, task, self.image_size
                    )
                    if any(fnmatch(case.label, pattern) for pattern in patterns):
                        yield case


CPU = Plan(
    spaces=("autoformer-tiny",),
    batches=(16,),
    dtype="float32",
    train="train",
    variants=("naive", "smart", *COMPILED, EXTRACTED, *OURS["cpu"]),
    count=20,
    chunk=2,
    images=32,
    population=50,
    effort=Effort(min_rounds=3, max_rounds=5, seconds=60),
)
CPU_QUICK = replace(
    CPU,
    batches=(2,),
    variants=("naive", "smart", *OURS["cpu"]),
    count=4,
    images=4,
    population=12,
    image_size=64,
    effort=Effort(min_rounds=2, max_rounds=2, seconds=0),
)
CUDA = Plan(
    spaces=("autoformer-tiny", "autoformer-small", "autoformer-base"),
    batches=(32, 128, 256),
    dtype="bfloat16",
    train="train_adamw",
    variants=("naive", "smart", *OURS["cuda"], EXTRACTED, *COMPILED),
    count=1000,
    chunk=20,
    images=2048,
    population=50,
    effort=Effort(min_rounds=3, max_rounds=20, seconds=20),
)
CUDA_QUICK = replace(
    CUDA,
    spaces=("autoformer-tiny",),
    batches=(128,),
    variants=("naive", *OURS["cuda"]),
    count=100,
    images=512,
)


def run_steps(
    variants: Mapping[str, Variant],
    case: Case,
    book: rows.Book,
    subnets: Sequence[Subnet],
    chunk: int,
) -> list[rows.Row]:
    """Rates of a task over the subnets, chunk by chunk; correct on the smallest subnet first."""
    device = book.device
    batch = make_batch(case, device)
    table = Rows.of_case(book, case, task=f"subnets-{case.task}")
    warmup = check(variants, replace(case, subnet_name="smallest"), batch, table)
    shapes = switching.block_shapes(case.space)
    steps: dict[str, Callable[[Subnet], object]] = {}
    for name in list(warmup):
        with survived(table, name):
            variants[name].model.train(case.task != "forward")
            step = step_of(variants[name], case, batch)
            first = shapes if name in COMPILED else shapes[:1] * variants[name].settling
            warmup[name] += _time([partial(step, subnet) for subnet in first], device)[0]
            table.add(name, "warmup_time", "s", [warmup[name]])
            steps[name] = step
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    host: dict[str, list[float]] = {name: [] for name in steps}
    with no_gc():
        for start in range(0, len(subnets), chunk):
            some = subnets[start : start + chunk]
            for name in list(steps):
                step = steps.pop(name)
                with survived(table, name):
                    wall, until = _time([partial(step, subnet) for subnet in some], device)
                    seconds[name].append(wall / len(some))
                    host[name].append(until / len(some))
                    steps[name] = step
    for name in steps:
        total = len(subnets) * sum(seconds[name]) / len(seconds[name])
        table.add(name, "subnets_per_second", "1/s", [1 / s for s in seconds[name]])
        cold = len(subnets) / (warmup[name] + total)
        table.add(name, "subnets_per_second_from_cold", "1/s", [cold])
        if device == "cuda":
            table.add(name, "host_time", "s", host[name])
    for ours in (name for name in steps if name.startswith("growtas")):
        for other in (name for name in steps if not name.startswith("growtas")):
            ratios = paired_ratios(seconds[other], seconds[ours])
            table.add(f"{other} / {ours}", "wall_time_ratio", "1", ratios)
    for variant in variants.values():
        variant.model.zero_grad()
    return table.rows


def _time(calls: Sequence[Callable[[], object]], device: str) -> tuple[float, float]:
    """Seconds until the device has finished, and until the last call has returned."""
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    for call in calls:
        call()
    host = time.perf_counter() - start
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start, host


def bred(space: SearchSpace, count: int, seed: int = 0) -> list[Subnet]:
    """A generation of an evolution: half mutants of `PARENTS` random subnets, half children of two
    of them; all different."""
    rng = random.Random(seed)
    parents = switching.random_subnets(space, PARENTS, seed)
    found: dict[Subnet, None] = {}
    while len(found) < count // 2:
        found[mutate(rng.choice(parents), space, rng)] = None
    while len(found) < count:
        one, other = rng.sample(parents, 2)
        found[crossover(one, other, rng)] = None
    return list(found)


def blocks_computed(subnets: Sequence[Subnet]) -> float:
    """Share of the blocks that are left to compute where subnets share what they begin with."""
    computed = sum(subnets[t.which].depth - max(t.shared, 0) for t in turns(subnets))
    return computed / sum(subnet.depth for subnet in subnets)


def run_population(case: Case, book: rows.Book, plan: Plan, backend: str) -> list[rows.Row]:
    """A population scored together against one by one, on random images and weights.

    Raises:
        WrongResult: other scores: on the CPU by a bit, else by more than 2 % of the loss.
    """
    device = book.device
    images, labels = make_batch(replace(case, batch=plan.images), device)
    model = growtas.Supernet(case.space, **case.model_sizes).to(device)
    model.load_state_dict(naive_to_growtas(weights_for(case), case.space))
    amp = "bf16" if case.dtype == "bfloat16" else "off"
    evaluator = Evaluator(model, images, labels, batch_size=case.batch, amp=amp)
    subnets = bred(case.space, plan.population)
    found: dict[str, list[Score]] = {}
    ways: dict[str, Callable[[], list[Score]]] = {
        "one by one": lambda: [evaluator.score(subnet) for subnet in subnets],
        "together": lambda: evaluator.score_many(subnets),
    }
    table = Rows.of_case(book, case, task="subnets-evaluation")
    with growtas.kernels.use_backend(backend):
        for way, score in ways.items():
            found[way] = score()
        for one, other in zip(*found.values(), strict=True):
            allowed = 0.0 if device == "cpu" else 0.02
            error = abs(one.loss - other.loss) / one.loss
            if one != other and (device == "cpu" or not error <= allowed):
                raise WrongResult("together, against one by one: loss", error, allowed)
        samples = interleave(ways, plan.effort, device)
    times = {way: samples[way]["wall_time"] for way in ways}
    for way, seconds in times.items():
        name = f"growtas-{backend}, {way}"
        table.add(name, "subnets_per_second", "1/s", [len(subnets) / s for s in seconds])
    if not model.reads_extents_on_device():
        table.add(
            f"growtas-{backend}, together", "blocks_computed", "1", [blocks_computed(subnets)]
        )
    ratios = paired_ratios(times["one by one"], times["together"])
    table.add(f"one by one / together, growtas-{backend}", "wall_time_ratio", "1", ratios)
    return table.rows


class Study:
    """Runs a plan. `say` gets a line for every rate and ratio."""

    def __init__(self, plan: Plan, book: rows.Book, say: Say) -> None:
        self.plan, self.book, self.say = plan, book, say
        self.device = book.device
        self.names = []
        for name in plan.variants:
            why = None if name == EXTRACTED else missing(name, self.device)
            if why is None:
                self.names.append(name)
            else:
                say(f"left out: {name} ({why})")

    def run(self, case: Case) -> None:
        """All rows of a case; what fails becomes one."""
        before = len(self.book.rows)
        table = Rows.of_case(self.book, case, task=f"subnets-{case.task}")
        with survived(table, "naive" if case.task in ("forward", self.plan.train) else "growtas"):
            if case.task == "evaluation":
                if any(name in self.names for name in OURS[self.device]):
                    backend = OURS[self.device][0].split("-")[1]
                    run_population(case, self.book, self.plan, backend)
            else:
                self._steps(case)
        for row in self.book.rows[before:]:
            if row.metric in ("subnets_per_second", "wall_time_ratio"):
                self.say(f"{case.label} {row.variant} {row.metric}: {row.median:.4g} {row.unit}")

    def _steps(self, case: Case) -> None:
        subnets = switching.random_subnets(case.space, self.plan.count)
        sized = replace(case, subnet_name="smallest")
        table = Rows.of_case(self.book, case, task=f"subnets-{case.task}")
        variants: dict[str, Variant] = {}
        for name in self.names:
            with survived(table, name):
                if name == EXTRACTED:
                    extracted = Extracted(sized, weights_for(sized), self.device)
                    extracted.prepare(switching.mean_size_subnet(case, subnets))
                    variants[name] = extracted
                else:
                    variants[name] = build(name, sized, self.device)
        run_steps(variants, case, self.book, subnets, self.plan.chunk)


def choose_plan(device: str, *, quick: bool) -> Plan:
    """The plan of the command line's flags."""
    if device == "cuda":
        return CUDA_QUICK if quick else CUDA
    return CPU_QUICK if quick else CPU


def command_line() -> argparse.ArgumentParser:
    """Everything that can be asked for."""
    parser = measuring_parser("subnets_per_second", __doc__, "space/random<count>/batch/dtype/task")
    parser.add_argument("--quick", action="store_true", help="small cases; nothing compiled on CPU")
    parser.add_argument("--count", type=int, help="random subnets")
    parser.add_argument("--variants", nargs="+", metavar="NAME", help="only these, and naive")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    args = command_line().parse_args(arguments)
    plan = choose_plan(args.device, quick=args.quick)
    if args.count is not None:
        plan = replace(plan, count=args.count)
    if args.variants is not None:
        plan = replace(plan, variants=tuple(dict.fromkeys(["naive", *args.variants])))
    with measuring(args) as (book, say):
        study = Study(plan, book, say)
        for case in plan.cases(args.cases):
            study.run(case)
    return book.exit_status()


if __name__ == "__main__":
    sys.exit(main())
