"""layer_norm, the specification: statistics over the sampled width only, in plain PyTorch.

Statistics, normalisation and parameter gradients are computed in float32 (float64 for float64),
whatever the storage dtype.
"""

from __future__ import annotations

import torch
from torch import Tensor


def unsupported(*tensors: Tensor) -> str | None:
    """None: plain PyTorch takes every device and dtype."""
    return None


def statistics_dtype(dtype: torch.dtype) -> torch.dtype:
    """float32, or float64 for float64."""
    return torch.promote_types(dtype, torch.float32)


def forward(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, out_dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns y like x ``[..., width]`` in out_dtype, and mean and 1/std per row ``[...]``."""
    width, dtype = x.shape[-1], statistics_dtype(x.dtype)
    x = x.to(dtype)
    mean = x.mean(-1, keepdim=True)
    rstd = (x - mean).square().mean(-1, keepdim=True).add(eps).rsqrt()
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
) -> Tensor:
    """Adds into the leading part of the max-size parameter gradients; returns dx in x's dtype."""
    width, dtype = x.shape[-1], statistics_dtype(x.dtype)
    dy, rstd = dy.to(dtype), rstd.unsqueeze(-1)
    normalised = (x.to(dtype) - mean.unsqueeze(-1)) * rstd
    if grad_weight is not None:
        grad_weight[:width].add_((dy * normalised).reshape(-1, dy.shape[-1]).sum(0))
    if grad_bias is not None:
        grad_bias[:width].add_(dy.reshape(-1, dy.shape[-1]).sum(0))
    dn = dy * weight[:width].to(dtype)
    dx = dn - dn.mean(-1, keepdim=True) - normalised * (dn * normalised).mean(-1, keepdim=True)
    return (rstd * dx).to(x.dtype)
