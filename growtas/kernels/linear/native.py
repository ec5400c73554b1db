"""linear on the CPU by the compiled operators: products that read the weight's slice by its buffer
strides, add gradients straight into the slice of the buffer, and take GELU, factor and residual
along. Below ``MIN_ROWS`` rows plain PyTorch runs: packing the weight would cost more than it saves.
Extents in a tensor cost nothing to read here: the same kernels run on views of that size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from growtas.kernels.extents import LinearSizes
from growtas.kernels.layout import as_matrices, as_rows, as_vectors, result_dtype
from growtas.kernels.linear import reference
from growtas.kernels.native_library import operators, unavailable, unsupported

__all__ = ["available", "backward_", "forward", "unsupported"]

available = unavailable
MIN_ROWS = 128  # measured at 192 .. 2496 features, forward and backward


def _gradient(buffer: Tensor | None, dims: int) -> Tensor | None:
    """A contiguous buffer to write into, its middle dimensions (all but ``G``) made one."""
    if buffer is None or buffer.dim() == dims:
        return buffer
    return buffer.view(buffer.shape[0], -1, *buffer.shape[buffer.dim() - dims + 1 :])


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
    """See :func:`growtas.kernels.linear.reference.forward`."""
    if extents is not None and len(extents.out_features) > 1:
        return reference.forward_one_by_one(
            forward, x, weight, bias, out_features, input_activation, activation, sample_scale,
            residual, save, extents,
        )  # fmt: skip
    if extents is not None:
        return _forward_within(
            x, weight, bias, out_features, input_activation, activation, sample_scale, residual,
            save, extents,
        )  # fmt: skip
    rows = as_rows(x)
    if rows.shape[0] < MIN_ROWS:
        return reference.forward(
            x, weight, bias, out_features, input_activation, activation, sample_scale, residual,
            save,
        )  # fmt: skip
    groups = 1 if weight.dim() == 2 else weight.shape[0]
    shape = (*x.shape[:-1], groups * out_features)
    y = x.new_empty(shape, dtype=result_dtype(x, residual))
    z = x.new_empty(shape if save and activation == "gelu" else (0,))
    operators().linear_forward(
        rows,
        as_matrices(weight),
        as_vectors(bias),
        out_features,
        input_activation == "gelu",
        activation == "gelu",
        sample_scale,
        None if residual is None else as_rows(residual),
        y.view(-1, shape[-1]),
        z.view(-1, shape[-1]) if z.numel() else None,
    )
    return y, z


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
    """See :func:`growtas.kernels.linear.reference.backward_`."""
    if extents is not None and len(extents.out_features) > 1:
        return reference.backward_one_by_one(
            backward_, dy, x, weight, preactivation, out_features, input_activation, activation,
            sample_scale, need_dx, grad_weight, grad_bias, extents,
        )  # fmt: skip
    if extents is not None:
        return _backward_within(
            dy, x, weight, preactivation, out_features, input_activation, activation, sample_scale,
            need_dx, grad_weight, grad_bias, extents,
        )  # fmt: skip
    inputs = as_rows(x)
    if inputs.shape[0] < MIN_ROWS:
        return reference.backward_(
            dy, x, weight, preactivation, out_features, input_activation, activation, sample_scale,
            need_dx, grad_weight, grad_bias,
        )  # fmt: skip
    if activation == "gelu":
        dy = torch.ops.aten.gelu_backward(dy.to(x.dtype), preactivation)
    dx = x.new_empty(x.shape if need_dx else (0,))
    operators().linear_backward(
        as_rows(dy),
        inputs,
        as_matrices(weight),
        out_features,
        input_activation == "gelu",
        sample_scale,
        dx.view(-1, x.shape[-1]) if need_dx else None,
        _gradient(grad_weight, 2),
        _gradient(grad_bias, 1),
    )
    return dx


def _forward_within(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    launched: int,
    input_activation: str,
    activation: str,
    sample_scale: Tensor | None,
    residual: Tensor | None,
    save: bool,
    extents: LinearSizes,
) -> tuple[Tensor, Tensor]:
    """`forward` on views of the extents, its results in buffers of the launched size."""
    out, in_ = int(extents.out_features), int(extents.in_features)
    groups = 1 if weight.dim() == 2 else weight.shape[0]
    shape = (*x.shape[:-1], groups * launched)
    y = x.new_empty(shape, dtype=result_dtype(x, residual))
    z = x.new_empty(shape if save and activation == "gelu" else (0,))
    part = None if residual is None else _columns(residual, groups, out).flatten(-2)
    if out and in_:
        narrow_y, narrow_z = forward(
            x[..., :in_], weight, bias, out, input_activation, activation, sample_scale, part, save
        )
        _columns(y, groups, out).copy_(narrow_y.unflatten(-1, (groups, out)))
        if z.numel():
            _columns(z, groups, out).copy_(narrow_z.unflatten(-1, (groups, out)))
    elif out and part is not None:
        _columns(y, groups, out).copy_(part.unflatten(-1, (groups, out)))
    return y, z


def _backward_within(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    preactivation: Tensor,
    launched: int,
    input_activation: str,
    activation: str,
    sample_scale: Tensor | None,
    need_dx: bool,
    grad_weight: Tensor | None,
    grad_bias: Tensor | None,
    extents: LinearSizes,
) -> Tensor:
    """`backward_` on views of the extents."""
    out, in_ = int(extents.out_features), int(extents.in_features)
    groups = 1 if weight.dim() == 2 else weight.shape[0]
    dx = x.new_empty(x.shape if need_dx else (0,))
    if out and in_:
        if activation == "gelu":
            preactivation = _columns(preactivation, groups, out).flatten(-2)
        narrow = backward_(
            _columns(dy, groups, out).flatten(-2), x[..., :in_], weight, preactivation, out,
            input_activation, activation, sample_scale, need_dx, grad_weight, grad_bias,
        )  # fmt: skip
        if need_dx:
            dx[..., :in_] = narrow
    elif need_dx:
        dx[..., :in_] = 0
    return dx


def _columns(x: Tensor, groups: int, out: int) -> Tensor:
    """View ``[..., groups, out]`` of ``[..., groups * launched]``."""
    return x.unflatten(-1, (groups, -1))[..., :out]
