"""linear on the GPU: Triton where something is fused with the product, else cuBLAS on views.

The Triton kernels read slices of whole parameters, whatever their layout or dtype, and take GELU,
factor, residual and derivatives along. A plain product of one matrix in its own dtype is left to
cuBLAS, which takes a slice as a view. With extents on the device ``out_features`` and the width of
x are the largest that can occur; what lies beyond the extents is neither read nor written.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from growtas.kernels.call import Grads
from growtas.kernels.layout import as_rows
from growtas.kernels.linear.api import LINEAR, LinearCall
from growtas.kernels.linear.gpu_plan import (
    Fold,
    Target,
    in_rows,
    plan_fold,
    plan_forward,
    plan_input_gradient,
    plan_weight_gradient,
)
from growtas.kernels.triton.configs import TABLES, architecture
from growtas.kernels.triton.launch import Launch
from growtas.kernels.triton.support import dot_precision, interpreted

SEVERAL_SUBNETS = True

# Products that cuBLAS computes when nothing is fused with them, by architecture and bytes of a
# value. Not measured yet. Gradients of two-byte weights are summed in float32 buffers, which
# cuBLAS cannot add to.
CUBLAS: dict[int, dict[str, tuple[int, ...]]] = {
    table: {"forward": (2, 4), "input_gradient": (2, 4), "weight_gradient": (4,)}
    for table in TABLES
}


def left_to_cublas(product: str, call: LinearCall, *operands: Tensor | None) -> bool:
    """Whether a product of x and these operands, all that are not None, is one for cuBLAS."""
    x, around = call.x, call.around
    plain = not around.input_gelu and around.sample_scale is None and around.residual is None
    alike = all(t is None or (t.dtype == x.dtype and t.dim() <= 2) for t in operands)
    if interpreted() or not plain or not alike or call.extents is not None:
        return False
    return x.element_size() in CUBLAS[architecture(x.device)][product]


def forward(call: LinearCall) -> Tensor:
    """y."""
    if left_to_cublas("forward", call, call.weight, call.bias):
        bias = None if call.bias is None else call.bias[: call.out_features]
        return F.linear(call.x, _slice(call.weight, call), bias)
    y, rows = call.outputs(), in_rows(call)
    if rows.x.shape[0]:
        plan_forward(_target(call.x), rows, y.view(-1, y.shape[-1])).run()
    return y


def backward(call: LinearCall, saved: Sequence[Tensor], dy: Tensor, grads: Grads) -> Tensor | None:
    """dx. Deterministic."""
    x = call.x
    dx = x.new_empty(x.shape) if grads.dx else None
    rows, dy = in_rows(call), as_rows(dy)
    if not rows.x.shape[0]:
        return dx
    target, left = _target(x), None
    with_cublas = left_to_cublas("input_gradient", call, call.weight, dy)
    grad_weight, grad_bias = grads.parameters
    if grad_weight is None and grad_bias is None:
        pass
    elif left_to_cublas("weight_gradient", call, dy, grad_weight, grad_bias):
        if grad_weight is not None:
            _slice(grad_weight, call).addmm_(dy.t(), rows.x)
        if grad_bias is not None:
            grad_bias[: call.out_features] += dy.sum(0)
    else:
        if grad_weight is not None:
            grad_weight = grad_weight.view(call.parts, -1, call.weight.shape[-1])
        if grad_bias is not None and grad_bias.dim() > 1:
            grad_bias = grad_bias.view(call.parts, -1)
        for launch, fold in _plan_weight_gradients(target, rows, dy, grad_weight, grad_bias):
            launch.run()
            if dx is not None and not with_cublas and fold.extents is call.extents:
                left = fold
            else:
                plan_fold(target, fold).run()
    if dx is not None:
        out = dx.view(-1, x.shape[-1])
        if with_cublas:
            torch.mm(dy, _slice(call.weight, call), out=out)
        else:
            plan_input_gradient(target, rows, dy, out, left).run()
    return dx


def _plan_weight_gradients(
    target: Target,
    call: LinearCall,
    dy: Tensor,
    grad_weight: Tensor | None,
    grad_bias: Tensor | None,
) -> Iterator[tuple[Launch, Fold]]:
    """One, or more where one cannot sum the bias's gradient."""
    count = 1 if call.extents is None else len(call.extents.out_features)
    if count == 1 or call.parts == 1 or grad_bias is None or grad_bias.dim() > 1:
        yield plan_weight_gradient(target, call, dy, grad_weight, grad_bias)
        return
    # An entry of a flat bias is another output's in every subnet: one subnet after another.
    if grad_weight is not None:
        yield plan_weight_gradient(target, call, dy, grad_weight, None)
    for one, share in zip(LINEAR.of_subnets(call), dy.tensor_split(count), strict=True):
        yield plan_weight_gradient(target, one, share, None, grad_bias)


def _slice(weight: Tensor, call: LinearCall) -> Tensor:
    return weight[: call.out_features, : call.x.shape[-1]]


def _target(x: Tensor) -> Target:
    return Target(architecture(x.device), dot_precision(x.dtype))
