"""linear on the CPU: products that read the weight's slice by its buffer strides and add gradients
straight into the slice of the buffer.

The compiled core runs them, with bias, GELU and residual on the way; BLAS on views does where the
core is not built or there are too few rows to pay for packing the weight.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from growtas.kernels.linear.reference import bias_slice, weight_slice
from growtas.kernels.native_library import DTYPES, operators, unavailable

# Below, packing the weight costs more than it saves (measured at 192 .. 2496 features).
MIN_ROWS = 64


def unsupported(*tensors: Tensor) -> str | None:
    """Why the CPU path cannot take these tensors; None if it can."""
    for tensor in tensors:
        if tensor.device.type != "cpu":
            return f"it runs on the CPU, not on {tensor.device.type}"
        if tensor.dtype not in DTYPES:
            return f"it takes floating-point tensors, not {tensor.dtype}"
    return None


def _by_blas(rows: Tensor) -> bool:
    return rows.shape[0] < MIN_ROWS or unavailable() is not None


def _rows(x: Tensor) -> Tensor:
    """``[..., width]`` as ``[rows, width]`` with contiguous rows; a copy only if it must be."""
    rows = x.reshape(-1, x.shape[-1])
    return rows if rows.stride(-1) == 1 or rows.shape[-1] == 1 else rows.contiguous()


def _matrices(weight: Tensor) -> Tensor:
    """A weight as ``[out_max, in_max]`` or ``[G, out_max, in_max]`` with contiguous rows; a copy
    only if it must be."""
    weight = weight if weight.dim() == 2 else weight.flatten(1, -2)
    return weight if weight.stride(-1) == 1 or weight.shape[-1] == 1 else weight.contiguous()


def _vectors(bias: Tensor | None) -> Tensor | None:
    """A bias as ``[entries]`` or ``[G, out_max]``."""
    if bias is None:
        return None
    return (bias if bias.dim() == 1 else bias.flatten(1)).contiguous()


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
    activation: str,
    residual: Tensor | None,
    save: bool,
) -> tuple[Tensor, Tensor]:
    """See :func:`growtas.kernels.linear.reference.forward`."""
    rows = _rows(x)
    if _by_blas(rows):
        return _forward_by_blas(x, weight, bias, out_features, activation, residual, save)
    groups = 1 if weight.dim() == 2 else weight.shape[0]
    shape = (*x.shape[:-1], groups * out_features)
    dtype = x.dtype if residual is None else torch.promote_types(x.dtype, residual.dtype)
    y = x.new_empty(shape, dtype=dtype)
    z = x.new_empty(shape if save and activation == "gelu" else (0,))
    operators().linear_forward(
        rows,
        _matrices(weight),
        _vectors(bias),
        out_features,
        False,
        activation == "gelu",
        None,
        None if residual is None else _rows(residual),
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
    activation: str,
    need_dx: bool,
    grad_weight: Tensor | None,
    grad_bias: Tensor | None,
) -> Tensor:
    """See :func:`growtas.kernels.linear.reference.backward_`."""
    dz = dy.to(x.dtype)
    if activation == "gelu":
        dz = torch.ops.aten.gelu_backward(dz, preactivation)
    rows = _rows(dz)
    if _by_blas(rows):
        return _backward_by_blas_(rows, x, weight, out_features, need_dx, grad_weight, grad_bias)
    if grad_weight is not None or grad_bias is not None:
        operators().linear_weight_gradient(
            rows,
            _rows(x),
            out_features,
            False,
            None,
            _gradient(grad_weight, 2),
            _gradient(grad_bias, 1),
        )
    dx = x.new_empty(x.shape if need_dx else (0,))
    if need_dx:
        operators().linear_input_gradient(
            rows, _matrices(weight), out_features, None, None, dx.view(-1, x.shape[-1])
        )
    return dx


def _forward_by_blas(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    out_features: int,
    activation: str,
    residual: Tensor | None,
    save: bool,
) -> tuple[Tensor, Tensor]:
    w = weight_slice(weight, out_features, x.shape[-1]).to(x.dtype)
    groups = w.shape[0]
    b = None if bias is None else bias_slice(bias, groups, out_features).to(x.dtype)
    if groups == 1:
        z = F.linear(x, w[0], None if b is None else b[0])
    else:
        rows = x.reshape(-1, x.shape[-1])
        flat = torch.empty(rows.shape[0], groups * out_features, dtype=x.dtype, device=x.device)
        for group in range(groups):
            out = flat[:, group * out_features : (group + 1) * out_features]
            if b is None:
                torch.mm(rows, w[group].t(), out=out)
            else:
                torch.addmm(b[group], rows, w[group].t(), out=out)
        z = flat.view(*x.shape[:-1], groups * out_features)
    keep = save and activation == "gelu"
    y = F.gelu(z) if activation == "gelu" else z
    if residual is not None:
        # y is ours and never what the backward keeps, so the sum may reuse its memory
        y = y.add_(residual) if y.dtype == residual.dtype else residual + y
    return y, z if keep else x.new_empty(0)


def _backward_by_blas_(
    rows: Tensor,
    x: Tensor,
    weight: Tensor,
    out_features: int,
    need_dx: bool,
    grad_weight: Tensor | None,
    grad_bias: Tensor | None,
) -> Tensor:
    inputs = x.reshape(-1, x.shape[-1])
    w = weight_slice(weight, out_features, x.shape[-1]).to(x.dtype)
    groups = w.shape[0]
    dx = torch.empty_like(inputs) if need_dx else x.new_empty(0)
    for group in range(groups):
        part = rows[:, group * out_features : (group + 1) * out_features]
        if grad_weight is not None:
            target = weight_slice(grad_weight, out_features, x.shape[-1])[group]
            if target.dtype == part.dtype:
                target.addmm_(part.t(), inputs)
            else:
                target.add_(part.t() @ inputs)
        if need_dx:
            if group == 0:
                torch.mm(part, w[group], out=dx)
            else:
                dx.addmm_(part, w[group])
    if grad_bias is not None:
        db = rows.sum(0, dtype=torch.promote_types(rows.dtype, torch.float32))
        bias_slice(grad_bias, groups, out_features).add_(db.view(groups, out_features))
    return dx.view_as(x) if need_dx else dx
