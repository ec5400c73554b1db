"""GrowTAS: sample from small subnets first and widen the space in stages (arXiv 2512.12296).

Equation 4 of the paper: P(t) = U(A_k) for T_{k-1} <= t < T_k, with nested A_1 < ... < A_K = A.
GrowTAS+ then trains for a few more epochs on A - A_1 while everything that a subnet of A_1 reads
is frozen, so that the small subnets keep their outputs bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from growtas.base.checks import at_least, listed, mapping
from growtas.base.config import nearest
from growtas.schedule.plan import PHASE_RECIPE, GrowthInit, Phase
from growtas.schedule.sequence import SequenceName
from growtas.schedule.stratify import Stratify
from growtas.schedule.transition import Plateau, PlateauWatch
from growtas.schedule.uniform import Uniform
from growtas.space import SearchSpace
from growtas.space.cost import CostFunction
from growtas.space.subnet import AXES

Variant = Literal["code", "paper", "committed"]


@dataclass(frozen=True)
class Stage:
    """One stage: from `start` on, sample the space restricted to `restrict`.

    Args:
        start: T_{k-1}. Below 1 it is a fraction of the run's epochs, otherwise a number of epochs.
            The latest one if transitions are adaptive.
        restrict: choices kept per axis, as for `SearchSpace.restrict`; empty for the whole space.
    """

    start: float
    restrict: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not (math.isfinite(self.start) and self.start >= 0):
            raise ValueError(f"a stage starts at {self.start}; use epochs, or a fraction below 1")

    def start_epoch(self, epochs: int) -> float:
        """Start in epochs of a run of `epochs`."""
        # Unrounded, 0.7 of 10 epochs would begin just after epoch 7 does.
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
        at_least("epochs", self.epochs, 1)
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
        growth_init: what the weights that a stage adds start from, see `Phase`.
        reset_moments: whether the optimizer forgets what it knows of them, see `Phase`.
        transition: None for stages that begin at their start, or the rule by which they begin
            earlier; decided at the end of an epoch. No learning rate depends on it.
        sequence, stratify, cost: how subnets are drawn from the space of a phase, see `Uniform`.

    Raises:
        ValueError: no stage, a first stage that does not start at 0, or a rule of transition for a
            single stage. What depends on the space and on the epochs is checked by `phases`.
    """

    def __init__(
        self,
        stages: Sequence[Stage | tuple[float, Mapping[str, Any]]],
        plus: PlusPhase | None = None,
        growth_init: GrowthInit = "none",
        reset_moments: bool = False,
        *,
        transition: Plateau | None = None,
        sequence: str | None = None,
        stratify: Stratify | None = None,
        cost: CostFunction | None = None,
    ) -> None:
        super().__init__(sequence=sequence, stratify=stratify, cost=cost)
        self.stages = tuple(s if isinstance(s, Stage) else Stage(*s) for s in stages)
        self.plus = plus
        self.growth_init = growth_init
        self.reset_moments = reset_moments
        self._watch = PlateauWatch(transition, len(self.stages)) if transition else None
        if not self.stages:
            raise ValueError("GrowTAS needs at least one stage")
        if self.stages[0].start != 0:
            raise ValueError(f"the first stage must start at 0, got {self.stages[0].start}")
        if transition is not None and len(self.stages) == 1:
            raise ValueError("a rule of transition needs at least two stages, got one")

    @property
    def extra_epochs(self) -> int:
        """Epochs of the GrowTAS+ phase."""
        return self.plus.epochs if self.plus else 0

    def phases(self, space: SearchSpace, epochs: int) -> list[Phase]:
        """One phase per stage, and the GrowTAS+ phase from `epochs` on.

        Raises:
            ValueError: a restriction names a value that `space` lacks, stages are not nested, do
                not end with the whole space or do not start one after the other within `epochs`,
                or the frozen space is the whole space. With a sequence or a rule of transition: a
                stage starts within an epoch, or the rule cannot apply before the second stage
                starts.
        """
        at_least("epochs", epochs, 1)
        phases: list[Phase] = []
        for number, stage in enumerate(self.stages, start=1):
            phase = Phase(
                stage.start_epoch(epochs),
                _restricted(space, stage.restrict, f"stage {number}"),
                f"stage {number}/{len(self.stages)}",
                growth_init=self.growth_init if phases else "none",
                reset_moments=self.reset_moments and bool(phases),
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
        self._check_starts(phases)
        if self.plus:
            phases.append(self._plus_phase(self.plus, space, epochs))
        return self._prepared(phases)

    def phase(self, phases: Sequence[Phase], epoch: float) -> Phase:
        """The last phase that has started, by its start or by the rule of transition."""
        if self._watch is None:
            return super().phase(phases, epoch)
        return phases[self._watch.index(phases, epoch)]

    def end_epoch(self, phases: Sequence[Phase], epoch: int, loss: float) -> None:
        """Apply the rule of transition, if there is one."""
        if self._watch is not None:
            self._watch.end_epoch(phases, epoch, loss)

    def notes(self) -> list[str]:
        """Which stages have begun by the rule of transition, and which bins are empty."""
        return super().notes() + (self._watch.notes() if self._watch else [])

    def state_dict(self) -> dict[str, Any]:
        """Settings of the draws, and what the rule of transition has seen."""
        state = super().state_dict()
        return {**state, "transition": self._watch.state_dict()} if self._watch else state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue; ValueError if the state is of other draws or of another rule."""
        rest = {key: value for key, value in state.items() if key != "transition"}
        super().load_state_dict(rest)
        before = "loss" if "transition" in state else "calendar"
        now = "loss" if self._watch else "calendar"
        if before != now:
            raise ValueError(f"the run's stages ended by the {before}, now by the {now}")
        if self._watch is not None:
            self._watch.load_state_dict(state["transition"])

    def _check_starts(self, phases: Sequence[Phase]) -> None:
        needs = f"sequence {self.sequence!r}" if self.sequence else "an adaptive transition"
        for number, phase in enumerate(phases, start=1):
            if (self.sequence or self._watch) and phase.start != int(phase.start):
                raise ValueError(
                    f"stage {number} starts at epoch {phase.start:g}; {needs} needs whole epochs, "
                    f"such as {math.floor(phase.start)} or {math.ceil(phase.start)}"
                )
        if self._watch is not None and len(phases) > 1:
            shortest = self._watch.rule.shortest
            if shortest > phases[1].start:
                raise ValueError(
                    f"the transition never ends a stage before {shortest} epochs (min_epochs, "
                    f"patience + 1), but stage 2 starts at epoch {phases[1].start:g} at the latest"
                )

    def _plus_phase(self, plus: PlusPhase, space: SearchSpace, epochs: int) -> Phase:
        frozen = _restricted(space, plus.freeze, "plus freeze")
        if frozen == space:
            raise ValueError("plus freezes the whole space; freeze must leave out some choice")
        recipe = {name: getattr(plus, name) for name in PHASE_RECIPE}
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


# T_1 as a fraction of the epochs; then epochs, lr and min_lr of the plus phase, both rates at a
# batch of 512 images, like the run's lr.
# Section 4.1.2: T_1 = 250, 225, 200 of 500 epochs; fine-tuning from 5e-5, 5e-5, 2e-7 with the
# paper's batch of 8 x 128 images, hence half of that at 512.
_PAPER = {
    "autoformer-tiny": (0.5, (20, 2.5e-5, 1e-5)),
    "autoformer-small": (0.45, (20, 2.5e-5, 1e-5)),
    "autoformer-base": (0.4, (10, 1e-7, 1e-7)),
}
# The authors' files as committed: T_1 = 400, 400, 200, and 1e-5 in S. Their number of fine-tuning
# epochs varies (20 or 40), so the paper's stay.
_COMMITTED = _PAPER | {
    "autoformer-tiny": (0.8, (20, 2.5e-5, 1e-5)),
    "autoformer-small": (0.8, (20, 1e-5, 1e-5)),
}


def growtas_preset(name: str, *, variant: Variant = "code", plus: bool = False) -> GrowTAS:
    """GrowTAS with published settings for one of the AutoFormer spaces.

    The paper's text and its authors' code differ, in A_1 and in numbers:

    - "code": the code's sub-spaces with the paper's numbers (section 4.1.2). Stage 1 samples the
      two smaller embedding dims with everything else free; the plus phase freezes what the smallest
      embedding dim reads and samples the other two.
    - "paper": one A_1 for both, the smallest embedding dim with the smallest MLP ratio, the two
      axes of the paper's footnote 1; the paper's numbers.
    - "committed": the sub-spaces of "code" with the numbers in the code's files: the transition at
      epoch 400 of 500 in T and S (200 in B), fine-tuning of S from 1e-5 (at 512 images).

    Args:
        name: "autoformer-tiny", "autoformer-small" or "autoformer-base".
        variant: which reading.
        plus: whether to add the GrowTAS+ phase.

    Raises:
        ValueError: the name or the variant is unknown.
    """
    if name not in _PAPER:
        raise ValueError(
            f"no GrowTAS preset for space {name!r}{nearest(name, _PAPER)}; "
            f"known: {listed(_PAPER)}. Other spaces need stages and, for plus, its values"
        )
    space = SearchSpace.preset(name)
    transition, fine_tuning = (_COMMITTED if variant == "committed" else _PAPER)[name]
    first: dict[str, tuple[float, ...]]
    frozen: dict[str, tuple[float, ...]]
    if variant in ("code", "committed"):
        first, frozen = {"embed_dim": space.embed_dim[:-1]}, {"embed_dim": space.embed_dim[:1]}
    elif variant == "paper":
        first = frozen = {"embed_dim": space.embed_dim[:1], "mlp_ratio": space.mlp_ratio[:1]}
    else:
        raise ValueError(f"variant is {variant!r}; known: {listed(get_args(Variant))}")
    stages = [Stage(0.0, first), Stage(transition)]
    return GrowTAS(stages, plus=PlusPhase(*fine_tuning, freeze=frozen) if plus else None)


@dataclass(frozen=True)
class GrowTASConfig:
    """Recipe values of `GrowTAS`; what is not given comes from `growtas_preset`."""

    preset: str | None = None  # space whose published settings to use; default: the run's own space
    variant: Variant = "code"  # which reading of them: code, paper or committed
    stages: tuple[Stage, ...] = ()  # start and restrict of each; none: the preset's
    # true: the preset's GrowTAS+ phase; or epochs, lr, min_lr, freeze
    plus: bool | PlusPhase = False
    growth_init: GrowthInit = "none"  # start of the weights that a stage adds: none, reinit, zero
    reset_moments: bool = False  # let AdamW forget moments and step counts of these weights
    # When a stage begins: at its start ("epoch"), or earlier, once the loss of the stage before has
    # stopped falling ("plateau", or its min_delta, patience and min_epochs).
    transition: Literal["epoch", "plateau"] | Plateau = "epoch"
    sequence: SequenceName | None = None  # whose draws to repeat; null: our own, by train.seed
    stratify: Stratify | None = None  # axis, min, max, bins: draw all sizes equally often

    def build(self, space: SearchSpace, cost: CostFunction | None) -> GrowTAS:
        """The strategy for `space`."""
        rule = Plateau() if self.transition == "plateau" else self.transition
        stages = self.stages
        plus = self.plus if isinstance(self.plus, PlusPhase) else None
        if not stages or self.plus is True:
            preset = growtas_preset(self.preset or space.name, variant=self.variant, plus=True)
            stages = stages or preset.stages
            plus = preset.plus if self.plus is True else plus
        return GrowTAS(
            stages,
            plus,
            self.growth_init,
            self.reset_moments,
            transition=rule if isinstance(rule, Plateau) else None,
            sequence=self.sequence,
            stratify=self.stratify,
            cost=cost,
        )
