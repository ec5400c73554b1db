"""What a training strategy and the trainer say to each other, as plain data.

A strategy answers three questions: which phases a run has (`phases`, asked once), which of them
holds now (`phase`) and what one optimizer step does (`plan`, both asked every step). The trainer
executes the answers and never asks which method they come from, so a plan can be logged, replayed
and tested without a model.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal, Protocol, get_args

from growtas.base.checks import at_least, check, listed, positive_float
from growtas.space import SearchSpace, SpaceDifference, Subnet

SPLITS = ("train", "search")
GrowthInit = Literal["none", "reinit", "zero"]
GROWTH_INITS = get_args(GrowthInit)
PHASE_RECIPE = ("epochs", "lr", "min_lr", "warmup_epochs")
_TAG = re.compile(r"[A-Za-z0-9_.-]+")


@dataclass(frozen=True)
class Pass:
    """One forward and, unless the loss is "eval", one backward of a subnet on the step's batch.

    Args:
        subnet: the architecture to run.
        split: "train" or "search", the part of the data that the batch comes from.
        loss: "ce" (labels), "kd:TAG" (cross-entropy with the detached softmax of the pass tagged
            TAG), "ce+kd:TAG" (the sum of both), or "eval" (cross-entropy with the labels, forward
            only, reported to `observe`).
        tag: name under which later passes of the same plan find this pass's logits.
        scale: factor of this pass's loss; the gradients of all passes are summed.
        regularise: whether drop path and label mixing apply.

    Raises:
        TypeError: `subnet` is not a Subnet.
        ValueError: an unknown split or loss, a malformed tag, or a scale that is not positive.
    """

    subnet: Subnet
    split: str = "train"
    loss: str = "ce"
    tag: str | None = None
    scale: float = 1.0
    regularise: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.subnet, Subnet):
            raise TypeError(f"a pass needs a Subnet, got {self.subnet!r}")
        check(self.split in SPLITS, "split", self.split, listed(SPLITS))
        head, _, tag = self.loss.partition("kd:")
        known = self.loss in ("ce", "eval") or (head in ("", "ce+") and _TAG.fullmatch(tag))
        check(bool(known), "loss", self.loss, "ce, kd:TAG, ce+kd:TAG, eval")
        if self.tag is not None and not _TAG.fullmatch(self.tag):
            raise ValueError(f"tag is {self.tag!r}; use letters, digits, '_', '.' and '-'")
        positive_float("scale", self.scale)

    @property
    def teacher(self) -> str | None:
        """Tag of the pass whose logits this one distils from, None without distillation."""
        return self.loss.partition("kd:")[2] or None

    @property
    def uses_labels(self) -> bool:
        """Whether the loss contains the cross-entropy with the labels."""
        return not self.loss.startswith("kd:")


@dataclass(frozen=True)
class StepPlan:
    """One optimizer step: passes in order, their gradients summed.

    Args:
        passes: at least one; a "kd:TAG" pass comes after the pass with that tag.
        lr_scale: factor on the scheduled learning rate of this step.

    Raises:
        ValueError: no pass, a tag used twice, a teacher that does not come before its student, or
            an lr_scale out of range.
    """

    passes: tuple[Pass, ...]
    lr_scale: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "passes", tuple(self.passes))
        if not self.passes:
            raise ValueError("a plan needs at least one pass")
        tags: list[str] = []
        for index, step in enumerate(self.passes):
            if step.teacher is not None and step.teacher not in tags:
                known = ", ".join(tags) or "none"
                raise ValueError(
                    f"pass {index} distils from {step.teacher!r}; tags of earlier passes: {known}"
                )
            if step.tag in tags:
                raise ValueError(f"pass {index} uses the tag {step.tag!r} a second time")
            if step.tag is not None:
                tags.append(step.tag)
        positive_float("lr_scale", self.lr_scale)


@dataclass(frozen=True)
class Phase:
    """A part of the run with its own space, from epoch `start` to the start of the next phase.

    Args:
        start: epoch at which the phase begins; may be fractional.
        space: what is sampled.
        name: label for logs and the progress bar.
        freeze: weights that any subnet of this space reads stay as they are: no gradient, no weight
            decay, no motion from old moments.
        recipe: training settings that differ in this phase: epochs, lr, min_lr, warmup_epochs, each
            with the meaning it has for the whole run (lr is scaled with the batch size if the
            run's is).
        growth_init: what the weights start from that the largest subnet of this space reads and
            that of the phase before does not: "none" (what has become of them), "reinit" (new
            random values, as at the start of the run) or "zero" (the same, but zero where they
            read a new unit, so that new units have no effect at first). Without meaning in the
            first phase.
        reset_moments: whether the optimizer forgets their moments and step counts.

    Raises:
        ValueError: a negative start, an unknown recipe field or growth_init, or `freeze` of another
            supernet.
    """

    start: float
    space: SearchSpace | SpaceDifference
    name: str
    freeze: SearchSpace | None = None
    recipe: Mapping[str, float] = field(default_factory=dict, hash=False)
    growth_init: GrowthInit = "none"
    reset_moments: bool = False

    def __post_init__(self) -> None:
        if not (math.isfinite(self.start) and self.start >= 0):
            raise ValueError(
                f"phase {self.name!r} starts at epoch {self.start}; it must be 0 or more"
            )
        object.__setattr__(self, "recipe", dict(self.recipe))
        for key in self.recipe:
            if key not in PHASE_RECIPE:
                raise ValueError(
                    f"phase {self.name!r} overrides {key!r}; allowed: {', '.join(PHASE_RECIPE)}"
                )
        known = self.growth_init in GROWTH_INITS
        check(known, "growth_init", self.growth_init, listed(GROWTH_INITS))
        if self.freeze is not None and self.freeze.supernet != self.space.supernet:
            raise ValueError(
                f"phase {self.name!r} freezes a space of {self.freeze.supernet}, "
                f"but samples one of {self.space.supernet}"
            )


@dataclass(frozen=True)
class StepContext:
    """What a strategy may look at when it plans a step.

    Args:
        rng: randomness of this step, made from the run's seed and `step`; the same on all ranks and
            after a resume.
        step: optimizer steps taken so far in the whole run.
        epoch: the same position in epochs, fractional.
        phase: the current phase.
        position: steps taken so far in this epoch.
    """

    rng: random.Random
    step: int
    epoch: float
    phase: Phase
    position: int

    @property
    def epoch_index(self) -> int:
        """Epochs finished before this step: 0 in the first epoch."""
        return int(self.epoch)


class Strategy(Protocol):
    """A training method: a generator of step plans. Who inherits from it gets what is optional."""

    @property
    def extra_epochs(self) -> int:
        """Epochs that the method adds after the ordinary ones, such as a fine-tuning phase."""
        return 0

    def phases(self, space: SearchSpace, epochs: int) -> list[Phase]:
        """The phases of a run of `epochs` ordinary epochs in order of their start, first at 0."""

    def phase(self, phases: Sequence[Phase], epoch: float) -> Phase:
        """The one of `phases` that holds at `epoch`, never one before an earlier answer."""
        return phase_at(phases, epoch)

    def plan(self, context: StepContext) -> StepPlan:
        """What the next optimizer step does; depends on `context` and the strategy's state only."""

    def observe(self, plan: StepPlan, losses: Sequence[float]) -> None:
        """Called after each step with the loss of every pass of `plan`, equal on all ranks."""
        return

    def end_epoch(self, phases: Sequence[Phase], epoch: int, loss: float) -> None:
        """Called when `epoch` epochs are done with the mean objective of the last one's images,
        equal on all ranks."""
        return

    def notes(self) -> list[str]:
        """What happened since the last call and is worth telling, a line each."""
        return []

    def state_dict(self) -> dict[str, Any]:
        """Plain values that `load_state_dict` needs to continue the sequence of plans."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""


class Stateless(Strategy):
    """Base of strategies whose plans depend on the position in the run only."""

    def state_dict(self) -> dict[str, Any]:
        """Nothing to save."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Accept only the empty state; ValueError for the state of another strategy."""
        if state:
            raise ValueError(f"{type(self).__name__} has no state, got fields {', '.join(state)}")


def total_epochs(strategy: Strategy, epochs: int) -> int:
    """Length of the run: the ordinary epochs and those that the strategy adds (GrowTAS+)."""
    return at_least("epochs", epochs, 1) + strategy.extra_epochs


def phase_at(phases: Sequence[Phase], epoch: float) -> Phase:
    """The phase that covers `epoch`: the last one that has started.

    Raises:
        ValueError: there is no phase, the first does not start at 0, the starts do not increase, or
            `epoch` is negative.
    """
    starts = [phase.start for phase in phases]
    if not starts or starts[0] != 0:
        raise ValueError(f"the first phase must start at epoch 0, got starts {starts}")
    if any(left >= right for left, right in pairwise(starts)):
        raise ValueError(f"phases must start one after the other, got starts {starts}")
    if not epoch >= 0:
        raise ValueError(f"epoch must be 0 or more, got {epoch}")
    return [phase for phase in phases if phase.start <= epoch][-1]
