"""layer_norm, the specification: statistics over the sampled width only, in plain PyTorch.

Statistics, normalisation and parameter gradients are computed in float32 (float64 for float64),
whatever the storage dtype.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from growtas.kernels.extents import if_present, inside, masked
from growtas.kernels.layout import shares


def unsupported(*tensors: Tensor) -> str | None:
    """None: plain PyTorch takes every device and dtype."""
    return None


def statistics_dtype(dtype: torch.dtype) -> torch.dtype:
    """float32, or float64 for float64."""
    return torch.promote_types(dtype, torch.float32)


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    out_dtype: torch.dtype,
    extents: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns y like x ``[..., width]`` in out_dtype, and mean and 1/std per row ``[...]``.

    With the extent on the device what lies beyond is masked, so no size is read on the host.
    """
    if extents is not None and len(extents) > 1:
        return forward_one_by_one(forward, x, weight, bias, eps, out_dtype, extents)
    width, dtype = x.shape[-1], statistics_dtype(x.dtype)
    x = x.to(dtype)
    mean = _mean(x, extents)
    rstd = _mean((x - mean).square(), extents).add(eps).rsqrt()
    y = (x - mean) * rstd * weight[:width].to(dtype) + bias[:width].to(dtype)
    return y.to(out_dtype), mean.squeeze(-1), rstd.squeeze(-1)


def backward_(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    mean: Tensor,
    rstd: Tensor,
    grad_weight: Tensor | None,
    grad_bias: Tensor | None,
    extents: Tensor | None = None,
    present: Tensor | None = None,
    added: Tensor | None = None,
) -> Tensor:
    """Adds into the leading part of the max-size parameter gradients; returns dx plus ``added`` in
    x's dtype."""
    if extents is not None and len(extents) > 1:
        return backward_one_by_one(
            backward_, dy, x, weight, mean, rstd, grad_weight, grad_bias, extents, present, added
        )
    if present is not None:
        weight = if_present(weight, present)
    width, dtype = x.shape[-1], statistics_dtype(x.dtype)
    dy, rstd = dy.to(dtype), rstd.unsqueeze(-1)
    normalised = (x.to(dtype) - mean.unsqueeze(-1)) * rstd
    w = weight[:width].to(dtype)
    if extents is not None:
        covered = inside(width, extents)
        dy, normalised, w = (torch.where(covered, t, 0.0) for t in (dy, normalised, w))
    if grad_weight is not None:
        grad_weight[:width].add_((dy * normalised).reshape(-1, dy.shape[-1]).sum(0))
    if grad_bias is not None:
        grad_bias[:width].add_(dy.reshape(-1, dy.shape[-1]).sum(0))
    dn = dy * w
    dx = dn - _mean(dn, extents) - normalised * _mean(dn * normalised, extents)
    dx = rstd * dx
    return (dx if added is None else dx + added).to(x.dtype)


def forward_one_by_one(
    forward: Callable[..., tuple[Tensor, ...]],
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    out_dtype: torch.dtype,
    extents: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """A backend's `forward` for each of several subnets on its share of the batch."""
    of_subnets = zip(shares(x, len(extents)), extents.split(1), strict=True)
    parts = [forward(x_, weight, bias, eps, out_dtype, width) for x_, width in of_subnets]
    y, mean, rstd = (torch.cat(part) for part in zip(*parts, strict=True))
    return y, mean, rstd


def backward_one_by_one(
    backward_: Callable[..., Tensor],
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    mean: Tensor,
    rstd: Tensor,
    grad_weight: Tensor | None,
    grad_bias: Tensor | None,
    extents: Tensor,
    present: Tensor | None,
    added: Tensor | None,
) -> Tensor:
    """A backend's `backward_` for each of several subnets, in their order."""
    of_subnets = zip(
        *(shares(t, len(extents)) for t in (dy, x, mean, rstd, extents, present, added)),
        strict=True,
    )
    return torch.cat([
        backward_(dy_, x_, weight, mean_, rstd_, grad_weight, grad_bias, width, present_, added_)
        for dy_, x_, mean_, rstd_, width, present_, added_ in of_subnets
    ])  # fmt: skip


def _mean(x: Tensor, extents: Tensor | None) -> Tensor:
    """Over the last dimension, which stays, or over as much of it as the extent covers."""
    if extents is None:
        return x.mean(-1, keepdim=True)
    return masked(x, extents).sum(-1, keepdim=True) / extents.to(x.dtype)
