"""layer_norm, the specification: statistics over the sampled width only, in plain PyTorch.

Statistics, normalisation and parameter gradients are computed in float32 (float64 for float64),
whatever the storage dtype. With the extent on the device what lies beyond is masked, so no size is
read on the host.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from growtas.kernels.call import Grads
from growtas.kernels.dtypes import accumulation_dtype
from growtas.kernels.extents import if_present, inside, masked
from growtas.kernels.layer_norm.api import LayerNormCall


def forward(call: LayerNormCall) -> tuple[Tensor, Tensor, Tensor]:
    """y like x ``[..., width]`` in the call's dtype, and mean and 1/std per row ``[...]``."""
    dtype = accumulation_dtype(call.x.dtype)
    x = call.x.to(dtype)
    mean = _mean(x, call.extents)
    rstd = _mean((x - mean).square(), call.extents).add(call.eps).rsqrt()
    # Nothing reads an output that is not present: its weight only has no part in a derivative.
    w = _weight(call if torch.is_grad_enabled() else call._replace(present=None), dtype)
    y = (x - mean) * rstd * w + call.bias[: x.shape[-1]].to(dtype)
    return y.to(call.out_dtype), mean.squeeze(-1), rstd.squeeze(-1)


def backward(call: LayerNormCall, saved: Sequence[Tensor], dy: Tensor, grads: Grads) -> Tensor:
    """dx."""
    mean, rstd = (statistic.unsqueeze(-1) for statistic in saved)
    width, dtype = call.x.shape[-1], accumulation_dtype(call.x.dtype)
    dy, w = dy.to(dtype), _weight(call, dtype)
    normalised = (call.x.to(dtype) - mean) * rstd
    if call.extents is not None:
        covered = inside(width, call.extents)
        dy, normalised, w = (torch.where(covered, t, 0.0) for t in (dy, normalised, w))
    grad_weight, grad_bias = grads.parameters
    if grad_weight is not None:
        grad_weight[:width].add_((dy * normalised).reshape(-1, width).sum(0))
    if grad_bias is not None:
        grad_bias[:width].add_(dy.reshape(-1, width).sum(0))
    dn = dy * w
    dx = dn - _mean(dn, call.extents) - normalised * _mean(dn * normalised, call.extents)
    dx = rstd * dx
    return (dx if grads.added is None else dx + grads.added).to(call.x.dtype)


def _weight(call: LayerNormCall, dtype: torch.dtype) -> Tensor:
    weight = call.weight if call.present is None else if_present(call.weight, call.present)
    return weight[: call.x.shape[-1]].to(dtype)


def _mean(x: Tensor, extents: Tensor | None) -> Tensor:
    """Over the last dimension, which stays, or over as much of it as the extent covers."""
    if extents is None:
        return x.mean(-1, keepdim=True)
    return masked(x, extents).sum(-1, keepdim=True) / extents.to(x.dtype)
