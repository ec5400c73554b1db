"""The measuring loop: correctness first, then A B C A B C ... in one process, pairs compared.

A variant that is wrong or raises costs its own numbers only: that becomes a row, and the others go
on without it.
"""

from __future__ import annotations

import gc
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial

import torch
from torch import Tensor

from benchmarks.cases import Case, make_batch
from benchmarks.rows import Book, Row, summary
from benchmarks.variants import Variant
from growtas.space import Subnet

Samples = dict[str, list[float]]  # metric -> seconds


class WrongResult(RuntimeError):
    """A variant does not compute what it is compared with; it is not timed.

    Args:
        what: was computed, by whom.
        error, allowed: the error and its budget.
    """

    def __init__(self, what: str, error: float, allowed: float) -> None:
        super().__init__(f"{what} {error:.3g} exceeds {allowed:.3g}")
        self.excess = error / allowed if allowed else float("inf")


@dataclass(frozen=True)
class Effort:
    """How long to measure: at least `min_rounds`, then until `seconds` or `max_rounds`."""

    min_rounds: int = 5
    max_rounds: int = 30
    seconds: float = 20.0


def measure_once(step: Callable[[], object], device: str) -> dict[str, float]:
    """Wall time of a call; on CUDA until the device is done, and apart from it the time between
    events, which hides what the host costs while it runs ahead, and the host's own time."""
    if device != "cuda":
        start = time.perf_counter()
        step()
        return {"wall_time": time.perf_counter() - start}
    before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start = time.perf_counter()
    before.record()
    step()
    after.record()
    host = time.perf_counter() - start
    torch.cuda.synchronize()
    wall = time.perf_counter() - start
    events = before.elapsed_time(after) / 1000
    return {"wall_time": wall, "event_time": events, "host_time": host}


@contextmanager
def no_gc() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def warm_up(steps: Mapping[str, Callable[[], object]]) -> None:
    """Call every step once, compilation and first allocations included."""
    for step in steps.values():
        step()


Guard = Callable[[str], AbstractContextManager[None]]  # around what one variant does


def _unguarded(name: str) -> AbstractContextManager[None]:
    return nullcontext()


def interleave(
    steps: Mapping[str, Callable[[], object]],
    effort: Effort,
    device: str = "cpu",
    guard: Guard = _unguarded,
) -> dict[str, Samples]:
    """Time warm steps in turn, round after round, so that drift of the machine hits all alike.

    Returns:
        by variant; without those that raised something which `guard` took.
    """
    samples: dict[str, Samples] = {name: {} for name in steps}
    with no_gc():
        start = time.perf_counter()
        rounds = 0
        while rounds < effort.min_rounds or (
            rounds < effort.max_rounds and time.perf_counter() - start < effort.seconds
        ):
            for name in list(samples):
                found: dict[str, float] = {}
                with guard(name):
                    found = measure_once(steps[name], device)
                if not found:
                    del samples[name]
                for metric, seconds in found.items():
                    samples[name].setdefault(metric, []).append(seconds)
            rounds += 1
    return samples


def paired_ratios(numerator: Sequence[float], denominator: Sequence[float]) -> list[float]:
    """Round by round, because only the two times of one round saw the same machine."""
    return [a / b for a, b in zip(numerator, denominator, strict=True)]


class Rows:
    """Makes the rows of one case; each goes into the book at once. What is not given here is the
    book's: facts of the machine, and the device."""

    def __init__(
        self, book: Book, *, dtype: str, batch: int, space: str, subnet: str, task: str
    ) -> None:
        self.rows: list[Row] = []
        self.book = book
        self._template = Row(
            **(asdict(book.where) | {"threads": torch.get_num_threads()}),
            device=book.device,
            dtype=dtype,
            batch=batch,
            space=space,
            subnet=subnet,
            task=task,
            variant="",
            metric="",
            unit="",
            median=0.0,
            q20=0.0,
            q80=0.0,
            n=0,
        )

    @classmethod
    def of_case(cls, book: Book, case: Case, task: str | None = None) -> Rows:
        return cls(
            book,
            dtype=case.dtype,
            batch=case.batch,
            space=case.space.name,
            subnet=case.subnet_name,
            task=task or case.task,
        )

    def add(self, variant: str, metric: str, unit: str, samples: Sequence[float]) -> None:
        self.add_summary(variant, metric, unit, **summary(samples))

    def add_summary(
        self, variant: str, metric: str, unit: str, *, median: float, q20: float, q80: float, n: int
    ) -> None:
        row = replace(
            self._template,
            variant=variant,
            metric=metric,
            unit=unit,
            median=median,
            q20=q20,
            q80=q80,
            n=n,
        )
        self.rows.append(row)
        self.book.store(row)

    def add_failure(self, variant: str, error: Exception) -> None:
        """A variant that was wrong ("wrong_result": how many times its budget) or raised
        ("failed", the exception's name as the unit)."""
        where = self._template
        label = f"{where.space}/{where.subnet}/{where.batch}/{where.dtype}/{where.task}"
        self.book.failures.append(f"{label} {variant}: {type(error).__name__}: {error}")
        print(self.book.failures[-1], flush=True)
        if isinstance(error, WrongResult):
            self.add(variant, "wrong_result", "1", [error.excess])
        else:
            traceback.print_exception(error)
            self.add(variant, "failed", type(error).__name__, [1.0])

    def add_timings(self, samples: Mapping[str, Samples], baselines: Sequence[str]) -> None:
        """Times of every variant, and every baseline / ours, pair by pair."""
        for name, metrics in samples.items():
            for metric, seconds in sorted(metrics.items()):
                self.add(name, metric, "s", seconds)
        for baseline in (name for name in baselines if name in samples):
            for ours in (name for name in samples if name.startswith("growtas")):
                for metric in sorted(samples[ours]):
                    ratios = paired_ratios(samples[baseline][metric], samples[ours][metric])
                    self.add(f"{baseline} / {ours}", f"{metric}_ratio", "1", ratios)


@contextmanager
def survived(table: Rows, variant: str) -> Iterator[None]:
    """What goes wrong inside becomes a row, and the program goes on after it.

    Raises:
        Exception: the CUDA device cannot be used any more, as after an illegal access: whatever
            followed would fail for the same reason.
    """
    failed = False
    try:
        yield
    except Exception as error:
        table.add_failure(variant, error)
        failed = True
    if failed:  # after the handler, which keeps the frames alive and with them their tensors
        gc.collect()
        if table.book.device == "cuda":
            torch.cuda.synchronize()
            torch.cuda.empty_cache()


def relative_error(got: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """||got - expected|| / ||expected|| over all tensors taken together, in float64."""
    if got.keys() != expected.keys():
        raise ValueError(f"other tensors: {sorted(got.keys() ^ expected.keys())}")
    error = sum(float((got[k].double() - expected[k].double()).square().sum()) for k in expected)
    size = sum(float(value.double().square().sum()) for value in expected.values())
    return (error / size) ** 0.5


Tensors = dict[str, Tensor]


def results(
    variant: Variant, case: Case, batch: tuple[Tensor, Tensor]
) -> tuple[dict[str, Tensors], float]:
    """({"logit_error": logits, "gradient_error": gradients}, seconds): what a case's task computes,
    and how long it took."""
    images, labels = batch
    device = images.device.type
    found: list[Tensor] = []
    if case.task == "forward":
        time = measure_once(
            lambda: found.append(variant.forward_step(case, images, case.subnet)), device
        )
        return {"logit_error": {"": found[0]}}, time["wall_time"]
    time = measure_once(
        lambda: found.append(variant.train_step(case, images, labels, case.subnet)), device
    )
    gradients = {name: grad.clone() for name, grad in variant.gradients().items()}
    return {"logit_error": {"": found[0]}, "gradient_error": gradients}, time["wall_time"]


# In float32 variants differ in the order of sums only. In bfloat16 their errors against the float32
# naive supernet may be twice those of the naive supernet under autocast.
FLOAT32_TOLERANCE = 1e-4
BFLOAT16_FACTOR = 2.0


def check(
    variants: Mapping[str, Variant], case: Case, batch: tuple[Tensor, Tensor], table: Rows
) -> dict[str, float]:
    """Call every variant once, and compare it with the naive supernet in float32 on the tensors to
    be timed. The relative errors "logit_error" and, for training, "gradient_error" become rows, and
    so does what is wrong with a variant whose error is over its budget or that raises.

    Returns:
        by variant that can be timed: seconds of the call, compilation included.

    Raises:
        Exception: what the naive supernet raised, without which there is nothing to compare with.
    """
    naive = variants["naive"]
    reference, _ = results(naive, replace(case, dtype="float32"), batch)
    budget = dict.fromkeys(reference, FLOAT32_TOLERANCE)
    passed: dict[str, float] = {}

    def errors(name: str, variant: Variant) -> dict[str, float]:
        computed, passed[name] = results(variant, case, batch)
        if not variant.same_function:
            return {}
        found = {what: relative_error(computed[what], reference[what]) for what in reference}
        for what, error in found.items():
            table.add(name, what, "1", [error])
        return found

    allowed = errors("naive", naive)
    if case.dtype != "float32":
        for what, error in allowed.items():
            budget[what] += BFLOAT16_FACTOR * error
    for name, variant in variants.items():
        if name == "naive":
            continue
        with survived(table, name):
            for what, error in errors(name, variant).items():
                if not error <= budget[what]:
                    del passed[name]
                    raise WrongResult(what, error, budget[what])
    return passed


BASELINES = ("naive", "smart", "timm", "compile-static", "compile-dynamic", "extracted-graph")


def step_of(
    variant: Variant, case: Case, batch: tuple[Tensor, Tensor]
) -> Callable[[Subnet], object]:
    """The timed call of a task, on whatever subnet."""
    images, labels = batch
    if case.task == "forward":
        return lambda subnet: variant.forward_step(case, images, subnet)
    if case.task not in ("train", "train_adamw"):
        raise ValueError(f"task must be forward, train or train_adamw: got {case.task!r}")
    optimizer = variant.optimizer() if case.task == "train_adamw" else None

    def step(subnet: Subnet) -> None:
        variant.train_step(case, images, labels, subnet)
        if optimizer is not None:
            with variant.context():
                optimizer.step()

    return step


def run_case(variants: Mapping[str, Variant], case: Case, book: Book, effort: Effort) -> list[Row]:
    """Check, then time, all variants of a case. `variants` must hold "naive"."""
    table = Rows.of_case(book, case)
    guard = partial(survived, table)
    batch = make_batch(case, book.device)
    ready: dict[str, Variant] = {}
    for name, variant in variants.items():
        with guard(name):
            variant.prepare(case.subnet)
            variant.model.train(case.task != "forward")
            ready[name] = variant
    steps: dict[str, Callable[[], object]] = {}
    for name, seconds in check(ready, case, batch, table).items():
        table.add(name, "warmup_time", "s", [seconds])
        with guard(name):
            step = partial(step_of(ready[name], case, batch), case.subnet)
            if case.task == "train_adamw":
                step()  # makes the optimizer's state, which the check has not done
            steps[name] = step
    table.add_timings(interleave(steps, effort, book.device, guard), BASELINES)
    for variant in ready.values():
        variant.model.zero_grad()
    return table.rows
