"""linear, the specification: y = residual + s (act(x) W^T + b) on slices, in plain PyTorch.

act is GELU or nothing, s is one factor per sample.

A weight of more than two dimensions stacks ``P`` matrices ``[P, ..., in]`` (q, k and v:
``[3, heads, head_dim, in]``); each contributes its first ``out_features`` rows, and the outputs
are laid side by side. A bias with as many leading dimensions is sliced like the weight; a flat
bias for a stacked weight is a plain prefix of ``P * out_features`` (AutoFormer's checkpoints).

With extents on the device everything beyond them is masked, so no size is read on the host.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from growtas.kernels.call import Grads
from growtas.kernels.dtypes import accumulation_dtype
from growtas.kernels.extents import LinearSizes, if_present, inside, masked
from growtas.kernels.linear.api import LinearCall


def _weight_slice(weight: Tensor, call: LinearCall) -> Tensor:
    """View ``[P, out_features, in]`` of a tensor like the weight."""
    stacked = weight.unsqueeze(0) if weight.dim() == 2 else weight.flatten(1, -2)
    return stacked[:, : call.out_features, : call.x.shape[-1]]


def _bias_slice(bias: Tensor, call: LinearCall) -> Tensor:
    """View ``[P, out_features]`` of a tensor like the bias."""
    if bias.dim() == 1:
        return bias[: call.parts * call.out_features].view(call.parts, call.out_features)
    return bias.flatten(1)[:, : call.out_features]


def _scaled(rows: Tensor, sample_scale: Tensor | None) -> Tensor:
    if sample_scale is None:
        return rows
    return rows * sample_scale.to(rows.dtype).view(-1, *(1,) * (rows.dim() - 1))


def forward(call: LinearCall) -> Tensor:
    """y."""
    x, w = call.x, _weight_slice(call.weight, call)
    b = None if call.bias is None else _bias_slice(call.bias, call)
    if call.extents is not None:
        x = masked(x, call.extents.in_features)
        w = torch.where(_rectangle(w, call.extents), w, 0.0)
        if call.bias is not None:
            b = _masked_bias(call.bias, call, call.extents)
    b = None if b is None else b.flatten().to(x.dtype)
    inputs = F.gelu(x) if call.around.input_gelu else x
    y = _scaled(F.linear(inputs, w.flatten(0, 1).to(x.dtype), b), call.around.sample_scale)
    return y if call.around.residual is None else call.around.residual + y


def backward(call: LinearCall, saved: Sequence[Tensor], dy: Tensor, grads: Grads) -> Tensor | None:
    """dx."""
    grad_weight, grad_bias = grads.parameters
    x, w = call.x, _weight_slice(call.weight, call)
    rectangle = None
    if call.extents is not None:
        rectangle = _rectangle(w, call.extents)
        w = torch.where(rectangle, w, 0.0)
        x = masked(x, call.extents.in_features)
        dy = masked(dy.unflatten(-1, w.shape[:2]), call.extents.out_features).flatten(-2)
    dz = _scaled(dy.to(x.dtype), call.around.sample_scale)
    rows = dz.reshape(-1, dz.shape[-1])
    if grad_weight is not None:
        inputs = F.gelu(x) if call.around.input_gelu else x
        dw = (rows.t() @ inputs.reshape(-1, x.shape[-1])).view(w.shape)
        if rectangle is not None:  # x may hold anything where there are no outputs
            dw = torch.where(rectangle, dw, 0.0)
        _weight_slice(grad_weight, call).add_(dw)
    if grad_bias is not None:
        db = rows.sum(0, dtype=accumulation_dtype(rows.dtype)).view(w.shape[:2])
        if call.extents is None:
            _bias_slice(grad_bias, call).add_(db)
        else:
            _add_masked_bias(grad_bias, db, call, call.extents)
    if not grads.dx:
        return None
    dx = dz @ w.flatten(0, 1).to(x.dtype)
    return torch.ops.aten.gelu_backward(dx, x) if call.around.input_gelu else dx


def _rectangle(w: Tensor, extents: LinearSizes) -> Tensor:
    """bool ``[out, in]``: what the extents cover of the launched slice."""
    rows = inside(w.shape[-2], extents.out_features)
    return rows.unsqueeze(-1) & inside(w.shape[-1], extents.in_features)


def _prefix(bias: Tensor, call: LinearCall, extents: LinearSizes) -> Tensor:
    """Entries ``[P, out_features]`` of a flat bias that the outputs read: part follows part, each
    as long as the extent says. Those beyond are not to be used."""
    first = torch.arange(call.parts, device=bias.device).unsqueeze(-1) * extents.out_features
    entry = first + torch.arange(call.out_features, device=bias.device)
    return entry.clamp_(max=bias.numel() - 1)


def _masked_bias(bias: Tensor, call: LinearCall, extents: LinearSizes) -> Tensor:
    flat = bias.dim() == 1
    values = bias[_prefix(bias, call, extents)] if flat else _bias_slice(bias, call)
    values = masked(values, extents.out_features)
    return if_present(values, extents.in_features)  # where there is no layer, it has no bias either


def _add_masked_bias(grad_bias: Tensor, db: Tensor, call: LinearCall, extents: LinearSizes) -> None:
    """db ``[P, out_features]``."""
    db = if_present(db, extents.in_features).to(grad_bias.dtype)
    if grad_bias.dim() == 1:
        grad_bias.index_add_(0, _prefix(grad_bias, call, extents).flatten(), db.flatten())
    else:
        _bias_slice(grad_bias, call).add_(db)
