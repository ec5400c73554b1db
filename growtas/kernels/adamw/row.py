"""What an AdamW step is given: parameters with their state, what of them moves, and how fast."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

from torch import Tensor

Slices = tuple[slice, ...]  # part of a tensor: explicit bounds in every dimension
# Norm of the gradients, on their device, and the largest it may have: gradients count as scaled
# down to that, in the way of `torch.nn.utils.clip_grad_norm_`; they are not written.
Clip = tuple[Tensor, float]
# What a backend keeps on the device between calls with the same rows, for whoever makes the calls.
Tables = dict[Hashable, Any]


class Row(NamedTuple):
    """A parameter, its state, and the boxes of it that move.

    Attributes:
        parameter: the whole parameter.
        gradient: of the parameter's shape and dtype.
        exp_avg: first moment, likewise.
        exp_avg_sq: second moment, likewise.
        boxes: disjoint boxes, one slice with explicit bounds per dimension.
        step: updates of this parameter so far, this one included; not used where `counts` is given.
            A number, or a float32 tensor of one on the parameter's device.
        counts: updates of every weight before this one, float32; those in the boxes go up by one.
        shadow: bfloat16 copy of the parameter, rewritten inside the boxes.
    """

    parameter: Tensor
    gradient: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor
    boxes: Sequence[Slices]
    step: float | Tensor = 0.0
    counts: Tensor | None = None
    shadow: Tensor | None = None

    @property
    def arrays(self) -> tuple[Tensor | None, ...]:
        """Everything of the parameter's shape."""
        return (
            self.parameter, self.gradient, self.exp_avg, self.exp_avg_sq, self.counts, self.shadow,
        )  # fmt: skip


class Rates(NamedTuple):
    """Hyperparameters, as for :func:`growtas.kernels.adamw_`."""

    lr: float | Tensor
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0

    @property
    def numbers(self) -> tuple[Any, ...]:
        """What the formula is written in, in every language and in this order: lr, decay, blend_1,
        beta_2, blend_2, log_beta_1, log_beta_2, eps. ``blend = 1 - beta``, which float32 would
        lose."""
        beta_1, beta_2 = self.betas
        logarithms = [math.log(beta) if beta else -math.inf for beta in self.betas]
        return self.lr, self.weight_decay, 1.0 - beta_1, beta_2, 1.0 - beta_2, *logarithms, self.eps


RATES = 8  # numbers of a `Rates`


def clip_factor(norm: Tensor, largest: float) -> Tensor:
    """What gradients count times; NaN stays."""
    return (largest / (norm + 1e-6)).clamp(max=1.0)
