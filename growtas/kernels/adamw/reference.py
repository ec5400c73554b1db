"""adamw_ in plain PyTorch, on any device: the specification.

Loshchilov and Hutter, "Decoupled Weight Decay Regularization", algorithm 2, without the schedule
multiplier; the order of operations is torch.optim.AdamW's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from growtas.kernels.adamw.row import Row


def unsupported(*tensors: Tensor) -> str | None:
    """Any floating-point tensor on any device will do."""
    return None


def step_(
    rows: Sequence[Row], lr: float, betas: tuple[float, float], eps: float, weight_decay: float
) -> None:
    """See :func:`growtas.kernels.adamw.api.adamw_`."""
    views = [
        (row, [None if array is None else array[box] for array in row.arrays])
        for row in rows
        for box in row.boxes
    ]
    if not views:
        return
    parameters, gradients, exp_avgs, exp_avg_sqs, counts, shadows = (
        list(column) for column in zip(*(view for _, view in views), strict=True)
    )
    torch._foreach_mul_(parameters, 1.0 - lr * weight_decay)
    torch._foreach_lerp_(exp_avgs, gradients, 1.0 - betas[0])
    torch._foreach_mul_(exp_avg_sqs, betas[1])
    torch._foreach_addcmul_(exp_avg_sqs, gradients, gradients, value=1.0 - betas[1])
    denominators = torch._foreach_sqrt(exp_avg_sqs)
    corrections: list[list[Tensor | float]] = [[], []]
    for (row, _), count in zip(views, counts, strict=True):
        updates = row.step if count is None else count.add_(1)
        for beta, found in zip(betas, corrections, strict=True):
            found.append(_one_minus_power(beta, updates))
    for denominator, correction in zip(denominators, corrections[1], strict=True):
        denominator.div_(correction**0.5)
    torch._foreach_add_(denominators, eps)
    for denominator, correction in zip(denominators, corrections[0], strict=True):
        denominator.mul_(correction)
    torch._foreach_addcdiv_(parameters, exp_avgs, denominators, value=-lr)
    for parameter, shadow in zip(parameters, shadows, strict=True):
        if shadow is not None:
            shadow.copy_(parameter)


def _one_minus_power(beta: float, count: Tensor | float) -> Tensor | float:
    """1 - beta**count without cancellation."""
    log = math.log(beta) if beta else -math.inf
    return -torch.expm1(count * log) if isinstance(count, Tensor) else -math.expm1(count * log)
