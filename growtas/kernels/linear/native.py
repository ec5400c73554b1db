"""linear on the CPU: BLAS reads the weight's slice by its buffer strides, nothing is copied out.

Gradients of float32 weights under float32 activations go straight into the slice of the buffer.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from growtas.kernels.linear.reference import bias_slice, weight_slice

_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def unsupported(*tensors: Tensor) -> str | None:
    """Why the CPU path cannot take these tensors; None if it can."""
    for tensor in tensors:
        if tensor.device.type != "cpu":
            return f"it runs on the CPU, not on {tensor.device.type}"
        if tensor.dtype not in _DTYPES:
            return f"it takes floating-point tensors, not {tensor.dtype}"
    return None


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
    rows, inputs = dz.reshape(-1, dz.shape[-1]), x.reshape(-1, x.shape[-1])
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
