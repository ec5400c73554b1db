"""Watching a run's losses and weights for what is not a finite number."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from growtas.base.distributed import Process
from growtas.schedule import Phase, StepPlan

_NEVER = 2**62  # step number that stands for none


class NonFiniteLossError(RuntimeError):
    """Training diverged; raised on every process, with the last good checkpoint in place."""


class FiniteLosses:
    """Remembers the first step whose loss is not finite; the device is waited for only in `check`,
    which every process of the run calls after at most `between` steps."""

    def __init__(self, process: Process, checkpoint: Path, between: int) -> None:
        self.process = process
        self.checkpoint = checkpoint
        self._bad_step = torch.full((), _NEVER, dtype=torch.int64, device=process.device)
        self._recent: deque[tuple[int, StepPlan]] = deque(maxlen=between)

    def add(self, step: int, plan: StepPlan, losses: Tensor) -> None:
        """Take note of the losses of a step."""
        self._recent.append((step, plan))
        first_bad = (self._bad_step == _NEVER) & ~losses.isfinite().all()
        self._bad_step = torch.where(first_bad, step, self._bad_step)

    def check(self, phase: Phase, steps_per_epoch: int) -> None:
        """Raise NonFiniteLossError if a loss of any process was not finite."""
        bad = int(self.process.min(self._bad_step.clone()))
        if bad == _NEVER:
            return
        plan = dict(self._recent).get(bad)
        subnets = "" if plan is None else ", ".join(str(step.subnet) for step in plan.passes)
        path = self.checkpoint
        kept = f"the last good checkpoint is {path}" if path.exists() else "no checkpoint yet"
        raise NonFiniteLossError(
            f"the loss of step {bad} (epoch {bad // steps_per_epoch}, phase {phase.name!r}, subnet "
            f"{subnets}) is not finite; {kept}. Try bf16 or no mixed precision (train.amp), "
            "gradient clipping (optim.clip_grad) or a lower optim.lr"
        )


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether every value of every tensor is finite; waits for the device."""
    return bool(torch.stack(torch._foreach_norm(list(tensors))).isfinite().all())
