"""The learning rate over a run: a cosine with warm-up, and a new one where a phase asks for it.

With t in epochs from the start of a stretch of T epochs: w + t (p - w) / W below t = W, the length
of the warm-up from w = warmup_lr, then m + (p - m) (1 + cos(pi t / T)) / 2 with m = min_lr. Only
the peak p is scaled with the batch size, and the warm-up takes the place of the first part of the
cosine instead of delaying it (timm's default, which AutoFormer and the GrowTAS authors use).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from growtas.base.optional import require
from growtas.schedule import Phase
from growtas.training.config import OptimConfig

_RATE_FIELDS = ("lr", "min_lr", "warmup_epochs")


@dataclass(frozen=True)
class Segment:
    """A stretch of the run with one cosine.

    Attributes:
        start: first epoch; may be fractional.
        epochs: length.
        optim: the settings that hold in it.
    """

    start: float
    epochs: float
    optim: OptimConfig


def has_own_rate(phase: Phase) -> bool:
    """Whether the phase starts a cosine (and fresh moments) of its own."""
    return any(field in phase.recipe for field in _RATE_FIELDS)


def segment_of(phases: Sequence[Phase], index: int, total: float, optim: OptimConfig) -> Segment:
    """The stretch that phase `index` belongs to.

    A phase whose recipe has lr, min_lr or warmup_epochs starts one, without warm-up unless it says
    so; other phases continue the one before. Rates of a recipe are in the terms of `optim.lr`;
    `total` is the epochs of the whole run, `optim` its settings.
    """
    starts = [i for i in range(len(phases)) if i == 0 or has_own_rate(phases[i])]
    own = max(i for i in starts if i <= index)
    after = [phases[i].start for i in starts if i > index]
    start = phases[own].start
    if has_own_rate(phases[own]):
        values: dict[str, Any] = {"warmup_epochs": 0.0, **phases[own].recipe}
        optim = replace(
            optim, **{field: values[field] for field in _RATE_FIELDS if field in values}
        )
    return Segment(start, (after[0] if after else total) - start, optim)


class LearningRate:
    """timm's cosine schedule over one segment; a pure function of the position in the run.

    With ``schedule="autoformer"`` the k-th epoch of the segment (from 0) has the rate of t = k - 1,
    the first that of t = 0: AutoFormer's loop steps its scheduler after the epoch, with the number
    of the epoch that is over.

    Args:
        optimizer: its groups' rates are set.
        segment: the stretch of the run.
        batch_size: images per step over all processes, which scales the peak rate.
        steps_per_epoch: optimizer steps.

    Raises:
        ValueError: the warm-up is longer than the stretch, or the final rate above the peak.
    """

    def __init__(
        self, optimizer: Any, segment: Segment, batch_size: int, steps_per_epoch: int
    ) -> None:
        optim = segment.optim
        peak = optim.peak_lr(batch_size)
        if optim.warmup_epochs > segment.epochs:
            raise ValueError(
                f"optim.warmup_epochs is {optim.warmup_epochs:g}; allowed: at most "
                f"{segment.epochs:g}, the epochs it is a part of"
            )
        if optim.min_lr > peak:
            raise ValueError(
                f"min_lr is {optim.min_lr:g}; allowed: at most {peak:g}, the peak learning rate "
                f"for a batch of {batch_size} images (lr {optim.lr:g} at {optim.lr_base_batch})"
            )
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] = peak
        self.segment = segment
        self.unit = steps_per_epoch if optim.sched_on_updates else 1
        self.steps_per_epoch = steps_per_epoch
        self.late = int(optim.schedule == "autoformer")
        self.schedule = require("timm.scheduler", "train").CosineLRScheduler(
            optimizer,
            t_initial=max(1, round(segment.epochs * self.unit)),
            lr_min=optim.min_lr,
            warmup_t=optim.warmup_epochs * self.unit,
            warmup_lr_init=optim.warmup_lr,
        )

    def set(self, step: int) -> None:
        """Set the rate for optimizer step `step` of the run (0 is the first)."""
        position = step - self.segment.start * self.steps_per_epoch
        count = math.floor(position * self.unit / self.steps_per_epoch + 1e-6)
        self.schedule.step(max(0, count - self.late))
