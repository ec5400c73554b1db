"""GrowTAS: sample from small subnets first and widen the space in stages (arXiv 2512.12296).

Equation 4 of the paper: P(t) = U(A_k) for T_{k-1} <= t < T_k, with nested A_1 < ... < A_K = A.
GrowTAS+ then trains for a few more epochs on A - A_1 while everything that a subnet of A_1 reads
is frozen, so that the small subnets keep their outputs bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from growtas.checks import listed, mapping
from growtas.schedule.plan import Phase
from growtas.schedule.uniform import Uniform
from growtas.space import SearchSpace
from growtas.subnet import AXES


@dataclass(frozen=True)
class Stage:
    """One stage: from `start` on, sample the space restricted to `restrict`.

    Args:
        start: T_{k-1}. Below 1 it is a fraction of the run's epochs, otherwise a number of epochs.
        restrict: choices kept per axis, as for `SearchSpace.restrict`; empty for the whole space.
    """

    start: float
    restrict: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not (math.isfinite(self.start) and self.start >= 0):
            raise ValueError(f"a stage starts at {self.start}; use epochs, or a fraction below 1")

    def start_epoch(self, epochs: int) -> float:
        """Start in epochs of a run of `epochs`."""
        # rounded, or 0.7 of 10 epochs would begin just after epoch 7 does
        return round(self.start * epochs, 6) if self.start < 1 else float(self.start)


@dataclass(frozen=True)
class PlusPhase:
    """The fine-tuning phase of GrowTAS+.

    Args:
        epochs: its length, added after the ordinary epochs.
        lr: learning rate at its start; scaled with the batch size if the run's own lr is.
        min_lr: learning rate at its end.
        freeze: the restriction that gives the frozen space; the rest of the space is sampled.
        warmup_epochs: epochs of warm-up at its start.
    """

    epochs: int
    lr: float
    min_lr: float
    freeze: Mapping[str, Any]
    warmup_epochs: int = 0

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise ValueError(f"epochs must be at least 1, got {self.epochs}")
        if not 0 <= self.min_lr <= self.lr:
            raise ValueError(f"min_lr must be in 0..lr, got min_lr {self.min_lr}, lr {self.lr}")
        if not 0 <= self.warmup_epochs <= self.epochs:
            raise ValueError(f"warmup_epochs must be in 0..{self.epochs}, got {self.warmup_epochs}")


class GrowTAS(Uniform):
    """Uniform sampling whose space grows in K stages, and optionally the GrowTAS+ phase.

    Args:
        stages: `Stage`s or (start, restriction) pairs. The first starts at 0, the last is the
            whole space, each contains the one before.
        plus: the GrowTAS+ phase, None for GrowTAS.

    Raises:
        ValueError: no stage, or a first stage that does not start at 0. What depends on the space
            and on the epochs is checked by `phases`.
    """

    def __init__(
        self,
        stages: Sequence[Stage | tuple[float, Mapping[str, Any]]],
        plus: PlusPhase | None = None,
    ) -> None:
        self.stages = tuple(s if isinstance(s, Stage) else Stage(*s) for s in stages)
        self.plus = plus
        if not self.stages:
            raise ValueError("GrowTAS needs at least one stage")
        if self.stages[0].start != 0:
            raise ValueError(f"the first stage must start at 0, got {self.stages[0].start}")

    @property
    def extra_epochs(self) -> int:
        """Epochs of the GrowTAS+ phase."""
        return self.plus.epochs if self.plus else 0

    def phases(self, space: SearchSpace, epochs: int) -> list[Phase]:
        """One phase per stage, and the GrowTAS+ phase from `epochs` on.

        Raises:
            ValueError: a restriction names a value that `space` lacks, stages are not nested, do
                not end with the whole space or do not start one after the other within `epochs`,
                or the frozen space is the whole space.
        """
        if epochs < 1:
            raise ValueError(f"epochs must be at least 1, got {epochs}")
        phases: list[Phase] = []
        for number, stage in enumerate(self.stages, start=1):
            phase = Phase(
                stage.start_epoch(epochs),
                _restricted(space, stage.restrict, f"stage {number}"),
                f"stage {number}/{len(self.stages)}",
            )
            if phases:
                _check_follows(phases[-1], phase, number)
            if phase.start >= epochs:
                raise ValueError(
                    f"stage {number} starts at epoch {phase.start:g}, but the run has {epochs}; "
                    "a start below 1 is a fraction of the run"
                )
            phases.append(phase)
        if phases[-1].space != space:
            raise ValueError(
                f"the last stage restricts {listed(self.stages[-1].restrict)}; it must be the "
                "whole space, else the rest never trains (restrict the space itself instead)"
            )
        return [*phases, self._plus_phase(self.plus, space, epochs)] if self.plus else phases

    def _plus_phase(self, plus: PlusPhase, space: SearchSpace, epochs: int) -> Phase:
        frozen = _restricted(space, plus.freeze, "plus freeze")
        if frozen == space:
            raise ValueError("plus freezes the whole space; freeze must leave out some choice")
        recipe = {
            "epochs": plus.epochs,
            "lr": plus.lr,
            "min_lr": plus.min_lr,
            "warmup_epochs": plus.warmup_epochs,
        }
        return Phase(float(epochs), space - frozen, "plus", freeze=frozen, recipe=recipe)


def _restricted(space: SearchSpace, restriction: Mapping[str, Any], label: str) -> SearchSpace:
    try:
        return space.restrict(**mapping("restriction", restriction, optional=AXES))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{label}: {error}") from None


def _check_follows(before: Phase, phase: Phase, number: int) -> None:
    if not before.start < phase.start:
        raise ValueError(
            f"stage {number} starts at epoch {phase.start:g}, not after stage {number - 1} "
            f"at {before.start:g}"
        )
    if not before.space <= phase.space:  # type: ignore[operator]
        raise ValueError(
            f"stage {number} does not contain stage {number - 1}: each stage must only add choices"
        )
