"""The measuring loop: correctness first, then A B C A B C ... in one process, pairs compared."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor

from benchmarks.cases import Case, make_batch
from benchmarks.rows import Provenance, Row, summary
from benchmarks.variants import Variant

Samples = dict[str, list[float]]  # metric -> seconds


class WrongResult(RuntimeError):
    """A variant does not compute what it is compared with; nothing is timed."""


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


def warm_up(steps: Mapping[str, Callable[[], object]], device: str = "cpu") -> dict[str, float]:
    """Call every step once, compilation and first allocations included; seconds of each."""
    return {name: measure_once(step, device)["wall_time"] for name, step in steps.items()}


def interleave(
    steps: Mapping[str, Callable[[], object]], effort: Effort, device: str = "cpu"
) -> dict[str, Samples]:
    """Time warm steps in turn, round after round, so that drift of the machine hits all alike."""
    samples: dict[str, Samples] = {name: {} for name in steps}
    with no_gc():
        start = time.perf_counter()
        rounds = 0
        while rounds < effort.min_rounds or (
            rounds < effort.max_rounds and time.perf_counter() - start < effort.seconds
        ):
            for name, step in steps.items():
                for metric, seconds in measure_once(step, device).items():
                    samples[name].setdefault(metric, []).append(seconds)
            rounds += 1
    return samples


def paired_ratios(numerator: Sequence[float], denominator: Sequence[float]) -> list[float]:
    """Round by round, because only the two times of one round saw the same machine."""
    return [a / b for a, b in zip(numerator, denominator, strict=True)]


class Rows:
    """Makes the rows of one case."""

    def __init__(
        self,
        where: Provenance,
        *,
        device: str,
        dtype: str,
        batch: int,
        space: str,
        subnet: str,
        task: str,
    ) -> None:
        self.rows: list[Row] = []
        self._template = Row(
            **asdict(where),
            device=device,
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
    def of_case(cls, where: Provenance, case: Case, device: str, task: str | None = None) -> Rows:
        return cls(
            where,
            device=device,
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
        self.rows.append(
            replace(
                self._template,
                variant=variant,
                metric=metric,
                unit=unit,
                median=median,
                q20=q20,
                q80=q80,
                n=n,
            )
        )

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


def relative_error(got: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """||got - expected|| / ||expected|| over all tensors taken together, in float64."""
    if got.keys() != expected.keys():
        raise WrongResult(f"other tensors: {sorted(got.keys() ^ expected.keys())}")
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


# In float32 summation order only. In bfloat16 the errors against the float32 naive supernet may
# be twice those of the naive supernet under autocast.
FLOAT32_TOLERANCE = 1e-4
BFLOAT16_FACTOR = 2.0


def check(
    variants: Mapping[str, Variant], case: Case, batch: tuple[Tensor, Tensor]
) -> dict[str, dict[str, float]]:
    """Call every variant once, and compare it with the naive supernet in float32 on the tensors to
    be timed.

    Returns:
        by variant: "warmup_time" in s, compilation included, and the relative errors "logit_error"
        and, for training, "gradient_error"; no errors where the function is another.

    Raises:
        WrongResult: an error is over its budget, or not finite.
    """
    reference, _ = results(variants["naive"], replace(case, dtype="float32"), batch)

    def call(variant: Variant) -> tuple[dict[str, float], dict[str, float]]:
        computed, seconds = results(variant, case, batch)
        errors = {name: relative_error(computed[name], reference[name]) for name in reference}
        return errors, {"warmup_time": seconds}

    allowed, time = call(variants["naive"])
    budget = dict.fromkeys(reference, FLOAT32_TOLERANCE)
    if case.dtype != "float32":
        for what, error in allowed.items():
            budget[what] += BFLOAT16_FACTOR * error
    found = {"naive": time | allowed}
    for name, variant in variants.items():
        if name == "naive":
            continue
        if not variant.same_function:
            found[name] = {"warmup_time": results(variant, case, batch)[1]}
            continue
        errors, time = call(variant)
        found[name] = time | errors
        for what, error in errors.items():
            if not error <= budget[what]:
                raise WrongResult(
                    f"{name}: {what} {error:.3g} exceeds {budget[what]:.3g} "
                    f"({case.task}, {case.dtype}, {case.subnet_name} of {case.space.name})"
                )
    return found


BASELINES = ("naive", "smart", "timm", "compile-static", "compile-dynamic", "extracted-graph")


def step_of(variant: Variant, case: Case, batch: tuple[Tensor, Tensor]) -> Callable[[], object]:
    """The timed call of a task."""
    images, labels = batch
    subnet = case.subnet
    if case.task == "forward":
        return lambda: variant.forward_step(case, images, subnet)
    if case.task == "train":
        return lambda: variant.train_step(case, images, labels, subnet)
    if case.task == "train_adamw":
        optimizer = variant.optimizer()

        def step() -> None:
            variant.train_step(case, images, labels, subnet)
            with variant.context():
                optimizer.step()

        return step
    raise ValueError(f"task must be forward, train or train_adamw: got {case.task!r}")


def run_case(
    variants: Mapping[str, Variant],
    case: Case,
    where: Provenance,
    effort: Effort,
    device: str = "cpu",
) -> list[Row]:
    """Check, then time, all variants of a case. `variants` must hold "naive"."""
    for variant in variants.values():
        variant.prepare(case.subnet)
        variant.model.train(case.task != "forward")
    batch = make_batch(case, device)
    rows = Rows.of_case(where, case, device)
    steps = {name: step_of(variant, case, batch) for name, variant in variants.items()}
    for name, found in check(variants, case, batch).items():
        for what, value in found.items():
            rows.add(name, what, "s" if what == "warmup_time" else "1", [value])
    if case.task == "train_adamw":
        warm_up(steps, device)  # the optimizer's state, which the check does not need
    rows.add_timings(interleave(steps, effort, device), BASELINES)
    for variant in variants.values():
        variant.model.zero_grad()
    return rows.rows
