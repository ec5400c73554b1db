"""linear, the specification: y = residual + s act(act'(x) W^T + b) on slices, in plain PyTorch.

act and act' (of the input) are GELU or nothing, s is one factor per sample.

A weight of more than two dimensions is ``G`` stacked matrices ``[G, ..., in]`` (q, k and v:
``[3, heads, head_dim, in]``); each contributes its first ``out_features`` rows, and the outputs
are laid side by side. A bias with as many leading dimensions is sliced like the weight; a flat
bias for a stacked weight is a plain prefix of ``G * out_features`` (AutoFormer's checkpoints).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from growtas.kernels.extents import LinearSizes, if_present, inside, masked
from growtas.kernels.layout import shares


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
    extents: LinearSizes | None = None,
) -> tuple[Tensor, Tensor]:
    """Returns y ``[..., G * out_features]`` and, if ``save``, the GELU's input (else empty).

    With extents on the device everything beyond them is masked, so no size is read on the host.
    """
    if extents is not None and len(extents.out_features) > 1:
        return forward_one_by_one(
            forward, x, weight, bias, out_features, input_activation, activation, sample_scale,
            residual, save, extents,
        )  # fmt: skip
    w = weight_slice(weight, out_features, x.shape[-1])
    b = None if bias is None else bias_slice(bias, w.shape[0], out_features)
    if extents is not None:
        x = masked(x, extents.in_features)
        w = torch.where(_rectangle(w, extents), w, 0.0)
        if bias is not None:
            b = _masked_bias(bias, w.shape[0], out_features, extents)
    b = None if b is None else b.flatten().to(x.dtype)
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
    extents: LinearSizes | None = None,
) -> Tensor:
    """Adds into the slices of the max-size ``grad_weight`` and ``grad_bias``; returns dx."""
    if extents is not None and len(extents.out_features) > 1:
        return backward_one_by_one(
            backward_, dy, x, weight, preactivation, out_features, input_activation, activation,
            sample_scale, need_dx, grad_weight, grad_bias, extents,
        )  # fmt: skip
    w = weight_slice(weight, out_features, x.shape[-1])
    rectangle = None
    if extents is not None:
        rectangle = _rectangle(w, extents)
        w = torch.where(rectangle, w, 0.0)
        x = masked(x, extents.in_features)
        dy, preactivation = (
            masked(t.unflatten(-1, w.shape[:2]), extents.out_features).flatten(-2)
            if t.numel() else t
            for t in (dy, preactivation)
        )  # fmt: skip
    dz = _scaled(dy.to(x.dtype), sample_scale)
    if activation == "gelu":
        dz = torch.ops.aten.gelu_backward(dz, preactivation)
    rows = dz.reshape(-1, dz.shape[-1])
    if grad_weight is not None:
        inputs = F.gelu(x) if input_activation == "gelu" else x
        dw = (rows.t() @ inputs.reshape(-1, x.shape[-1])).view(w.shape)
        if rectangle is not None:  # x may hold anything where there are no outputs
            dw = torch.where(rectangle, dw, 0.0)
        weight_slice(grad_weight, out_features, x.shape[-1]).add_(dw)
    if grad_bias is not None:
        db = rows.sum(0, dtype=torch.promote_types(rows.dtype, torch.float32))
        db = db.view(w.shape[0], out_features)
        if extents is None:
            bias_slice(grad_bias, w.shape[0], out_features).add_(db)
        else:
            _add_masked_bias(grad_bias, db, extents)
    if not need_dx:
        return x.new_empty(0)
    dx = dz @ w.flatten(0, 1).to(x.dtype)
    return torch.ops.aten.gelu_backward(dx, x) if input_activation == "gelu" else dx


def forward_one_by_one(
    forward: Callable[..., tuple[Tensor, Tensor]],
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    out_features: int,
    input_activation: str,
    activation: str,
    sample_scale: Tensor | None,
    residual: Tensor | None,
    save: bool,
    extents: LinearSizes,
) -> tuple[Tensor, Tensor]:
    """A backend's `forward` for each of several subnets on its share of the batch."""
    count = len(extents.out_features)
    of_subnets = zip(
        *(shares(t, count) for t in (x, sample_scale, residual, *extents[:2])), strict=True
    )
    parts = [
        forward(
            x_, weight, bias, out_features, input_activation, activation, scale_, residual_, save,
            LinearSizes(out, in_, extents.alignment),
        )
        for x_, scale_, residual_, out, in_ in of_subnets
    ]  # fmt: skip
    y, preactivation = (torch.cat(part) for part in zip(*parts, strict=True))
    return y, preactivation


def backward_one_by_one(
    backward_: Callable[..., Tensor],
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
    extents: LinearSizes,
) -> Tensor:
    """A backend's `backward_` for each of several subnets, in their order."""
    count = len(extents.out_features)
    of_subnets = zip(
        *(shares(t, count) for t in (dy, x, preactivation, sample_scale, *extents[:2])), strict=True
    )
    return torch.cat([
        backward_(
            dy_, x_, weight, z_, out_features, input_activation, activation, scale_, need_dx,
            grad_weight, grad_bias, LinearSizes(out, in_, extents.alignment),
        )
        for dy_, x_, z_, scale_, out, in_ in of_subnets
    ])  # fmt: skip


def _rectangle(w: Tensor, extents: LinearSizes) -> Tensor:
    """bool ``[out, in]``: what the extents cover of the launched slice."""
    rows = inside(w.shape[-2], extents.out_features)
    return rows.unsqueeze(-1) & inside(w.shape[-1], extents.in_features)


def _prefix(bias: Tensor, groups: int, out_features: int, extents: LinearSizes) -> Tensor:
    """Entries of a flat bias that ``[G, out_features]`` outputs read: group follows group, each as
    long as the extent says. Those beyond are not to be used."""
    first = torch.arange(groups, device=bias.device).unsqueeze(-1) * extents.out_features
    entry = first + torch.arange(out_features, device=bias.device)
    return entry.clamp_(max=bias.numel() - 1)


def _masked_bias(bias: Tensor, groups: int, out_features: int, extents: LinearSizes) -> Tensor:
    if bias.dim() == 1:
        values = bias[_prefix(bias, groups, out_features, extents)]
    else:
        values = bias_slice(bias, groups, out_features)
    values = masked(values, extents.out_features)
    return if_present(values, extents.in_features)  # where there is no layer, it has no bias either


def _add_masked_bias(grad_bias: Tensor, db: Tensor, extents: LinearSizes) -> None:
    """db ``[G, out_features]``."""
    db = if_present(db, extents.in_features).to(grad_bias.dtype)
    if grad_bias.dim() == 1:
        grad_bias.index_add_(
            0, _prefix(grad_bias, db.shape[0], db.shape[1], extents).flatten(), db.flatten()
        )
    else:
        bias_slice(grad_bias, db.shape[0], db.shape[1]).add_(db)
