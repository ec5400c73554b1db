"""adamw_ in plain PyTorch, on any device: the specification, by torch's own AdamW where it has one.

Loshchilov and Hutter, "Decoupled Weight Decay Regularization", algorithm 2, without the schedule
multiplier.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from growtas.kernels.adamw.row import Clip, Row, clipped, packed

_Views = tuple[Tensor, ...]


def unsupported(*tensors: Tensor) -> str | None:
    """Any floating-point tensor on any device will do."""
    return None


def step_(
    rows: Sequence[Row],
    lr: float | Tensor,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    clip: Clip | None,
) -> None:
    """See :func:`growtas.kernels.adamw.api.adamw_`."""
    rows, lr = clipped(rows, clip), float(lr)
    whole: list[Row] = []
    parts: list[tuple[_Views, float]] = []
    counted: list[_Views] = []
    for row in rows:
        if row.counts is None and _fusible(row):
            whole.append(row)
            continue
        arrays = (row.parameter, row.gradient, row.exp_avg, row.exp_avg_sq)
        for box in row.boxes:
            if row.counts is None:
                parts.append((tuple(array[box] for array in arrays), float(row.step)))
            else:
                counted.append(tuple(array[box] for array in (*arrays, row.counts)))
    arguments = (lr, betas, eps, weight_decay)
    if whole:
        views: list[_Views] = [(r.parameter, r.gradient, r.exp_avg, r.exp_avg_sq) for r in whole]
        _torch(views, [float(r.step) for r in whole], *arguments, fused=True)
    if parts:
        _torch([views for views, _ in parts], [step for _, step in parts], *arguments, fused=False)
    if counted:
        _counted(counted, *arguments)
    for row in rows:
        if row.shadow is not None:
            for box in row.boxes:
                row.shadow[box] = row.parameter[box].to(row.shadow.dtype)


def gradient_norm(rows: Sequence[Row]) -> Tensor:
    """See :func:`growtas.kernels.adamw.api.gradient_norm`."""
    parts = [row.gradient[box] for row in rows for box in row.boxes]
    norms = torch._foreach_norm(parts) if parts else [rows[0].gradient.new_zeros(())]
    return torch.linalg.vector_norm(torch.stack(list(norms)))


def _fusible(row: Row) -> bool:
    """Whether torch's one-kernel AdamW takes the row (it ignores strides)."""
    shape = tuple(row.parameter.shape)
    covers = [tuple((side.start, side.stop) for side in box) for box in row.boxes]
    return (
        covers == [tuple((0, size) for size in shape)]
        and row.parameter.device.type in ("cpu", "cuda")
        and packed(row)
    )


def _torch(
    views: list[_Views],
    steps: list[float],
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    fused: bool,
) -> None:
    parameters, gradients, exp_avgs, exp_avg_sqs = map(list, zip(*views, strict=True))
    # torch adds one to each count, so each row needs its own; only the fused kernel reads it on the
    # device. Filled there: a copy from the host would wait for the device.
    device = parameters[0].device if fused else torch.device("cpu")
    filled = {
        step: list(torch.full((steps.count(step),), step - 1.0, device=device).unbind())
        for step in set(steps)
    }
    adamw(
        parameters,
        gradients,
        exp_avgs,
        exp_avg_sqs,
        [],
        [filled[step].pop() for step in steps],
        foreach=not fused,
        fused=fused,
        amsgrad=False,
        beta1=betas[0],
        beta2=betas[1],
        lr=lr,
        weight_decay=weight_decay,
        eps=eps,
        maximize=False,
    )


def _counted(
    views: list[_Views], lr: float, betas: tuple[float, float], eps: float, weight_decay: float
) -> None:
    parameters, gradients, exp_avgs, exp_avg_sqs, counts = map(list, zip(*views, strict=True))
    torch._foreach_add_(counts, 1.0)
    torch._foreach_mul_(parameters, 1.0 - lr * weight_decay)
    torch._foreach_lerp_(exp_avgs, gradients, 1.0 - betas[0])
    torch._foreach_mul_(exp_avg_sqs, betas[1])
    torch._foreach_addcmul_(exp_avg_sqs, gradients, gradients, value=1.0 - betas[1])
    # 1 - beta**count = -expm1(count * log(beta)), so the signs below come in pairs.
    root = torch._foreach_div(exp_avg_sqs, _minus_bias(counts, betas[1]))
    torch._foreach_neg_(root)
    torch._foreach_sqrt_(root)
    torch._foreach_add_(root, eps)
    torch._foreach_mul_(root, _minus_bias(counts, betas[0]))
    torch._foreach_addcdiv_(parameters, exp_avgs, root, value=lr)


def _minus_bias(counts: list[Tensor], beta: float) -> list[Tensor]:
    """beta**count - 1 of each count."""
    powers = torch._foreach_mul(counts, math.log(beta) if beta else -math.inf)
    torch._foreach_expm1_(powers)
    return list(powers)
