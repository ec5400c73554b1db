"""linear, the specification: y = residual + s act(act'(x) W^T + b) on slices, in plain PyTorch.

act and act' (of the input) are GELU or nothing, s is one factor per sample.

A weight of more than two dimensions is ``G`` stacked matrices ``[G, ..., in]`` (q, k and v:
``[3, heads, head_dim, in]``); each contributes its first ``out_features`` rows, and the outputs
are laid side by side. A bias with as many leading dimensions is sliced like the weight; a flat
bias for a stacked weight is a plain prefix of ``G * out_features`` (AutoFormer's checkpoints).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def unsupported(*tensors: Tensor) -> str | None:
    """None: plain PyTorch takes every device and dtype."""
    return None


def weight_slice(weight: Tensor, out_features: int, in_features: int) -> Tensor:
    """View ``[G, out_features, in_features]`` of a weight ``[out, in]`` or ``[G, ..., in]``."""
    stacked = weight.unsqueeze(0) if weight.dim() == 2 else weight.flatten(1, -2)
    return stacked[:, :out_features, :in_features]


def bias_slice(bias: Tensor, groups: int, out_features: int) -> Tensor:
    """View ``[G, out_features]`` of a bias: ``[out]``, ``[G, ...]``, or flat for ``G`` > 1."""
    if bias.dim() == 1:
        return bias[: groups * out_features].view(groups, out_features)
    return bias.flatten(1)[:, :out_features]


def _scaled(rows: Tensor, sample_scale: Tensor | None) -> Tensor:
    if sample_scale is None:
        return rows
    return rows * sample_scale.to(rows.dtype).view(-1, *(1,) * (rows.dim() - 1))


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    out_features: int,
    input_activation: str,
    activation: str,
    sample_scale: Tensor | None,
    residual: Tensor | None,
    save: bool,
) -> tuple[Tensor, Tensor]:
    """Returns y ``[..., G * out_features]`` and, if ``save``, the GELU's input (else empty)."""
    w = weight_slice(weight, out_features, x.shape[-1])
    b = None if bias is None else bias_slice(bias, w.shape[0], out_features).flatten().to(x.dtype)
    inputs = F.gelu(x) if input_activation == "gelu" else x
    z = F.linear(inputs, w.flatten(0, 1).to(x.dtype), b)
    y = _scaled(F.gelu(z) if activation == "gelu" else z, sample_scale)
    if residual is not None:
        y = residual + y
    return y, z if save and activation == "gelu" else x.new_empty(0)


def backward_(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    preactivation: Tensor,
    out_features: int,
    input_activation: str,
    activation: str,
    sample_scale: Tensor | None,
    need_dx: bool,
    grad_weight: Tensor | None,
    grad_bias: Tensor | None,
) -> Tensor:
    """Adds into the slices of the max-size ``grad_weight`` and ``grad_bias``; returns dx."""
    dz = _scaled(dy.to(x.dtype), sample_scale)
    if activation == "gelu":
        dz = torch.ops.aten.gelu_backward(dz, preactivation)
    w = weight_slice(weight, out_features, x.shape[-1])
    rows = dz.reshape(-1, dz.shape[-1])
    if grad_weight is not None:
        inputs = F.gelu(x) if input_activation == "gelu" else x
        dw = rows.t() @ inputs.reshape(-1, x.shape[-1])
        weight_slice(grad_weight, out_features, x.shape[-1]).add_(dw.view(w.shape))
    if grad_bias is not None:
        db = rows.sum(0, dtype=torch.promote_types(rows.dtype, torch.float32))
        bias_slice(grad_bias, w.shape[0], out_features).add_(db.view(w.shape[0], out_features))
    if not need_dx:
        return x.new_empty(0)
    dx = dz @ w.flatten(0, 1).to(x.dtype)
    return torch.ops.aten.gelu_backward(dx, x) if input_activation == "gelu" else dx
