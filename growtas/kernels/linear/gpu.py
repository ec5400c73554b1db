"""linear on the GPU: Triton where something is fused with the product, else cuBLAS on views.

The Triton kernels read slices of whole parameters, whatever their layout or dtype, and take GELU,
factor, residual and derivatives along. A plain product of one matrix in its own dtype is left to
cuBLAS, which takes a slice as a view.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from growtas.kernels.extents import LinearSizes
from growtas.kernels.layout import as_matrices, as_rows, as_vectors, result_dtype, shares
from growtas.kernels.linear.gpu_plan import (
    Fold,
    Options,
    Target,
    plan_fold,
    plan_forward,
    plan_input_gradient,
    plan_weight_gradient,
)
from growtas.kernels.triton.configs import TABLES, architecture
from growtas.kernels.triton.launch import Launch
from growtas.kernels.triton.support import dot_precision, interpreted, unsupported

__all__ = ["backward_", "forward", "unsupported"]

# Products that cuBLAS computes when nothing is fused with them, by architecture and bytes of a
# value. Not measured yet. Gradients of two-byte weights are summed in float32 buffers, which
# cuBLAS cannot add to.
CUBLAS: dict[int, dict[str, tuple[int, ...]]] = {
    table: {"forward": (2, 4), "input_gradient": (2, 4), "weight_gradient": (4,)}
    for table in TABLES
}


def left_to_cublas(product: str, options: Options, x: Tensor, *operands: Tensor | None) -> bool:
    """Whether a product of these operands, all that are not None, is one for cuBLAS."""
    plain = not (options.input_gelu or options.gelu or options.scale is not None)
    alike = all(t is None or (t.dtype == x.dtype and t.dim() <= 2) for t in operands)
    if interpreted() or not plain or not alike:
        return False
    return x.element_size() in CUBLAS[architecture(x.device)][product]


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
    """See :func:`growtas.kernels.linear.reference.forward`.

    Args:
        extents: sizes on the device: then ``out_features`` and the width of x are the largest
            that can occur, and what lies beyond the extents is neither read nor written.
    """
    options = Options(input_activation == "gelu", activation == "gelu", sample_scale)
    if residual is None and extents is None and left_to_cublas("forward", options, x, weight, bias):
        matrix = weight[:out_features, : x.shape[-1]]
        y = F.linear(x, matrix, None if bias is None else bias[:out_features])
        return y, x.new_empty(0)
    rows, matrices = as_rows(x), as_matrices(weight)
    shape = (*x.shape[:-1], matrices.shape[0] * out_features)
    y = x.new_empty(shape, dtype=result_dtype(x, residual))
    z = x.new_empty(shape if save and options.gelu else (0,))
    if rows.shape[0]:
        plan_forward(
            _target(x), rows, matrices, as_vectors(bias), out_features, options,
            None if residual is None else as_rows(residual), y.view(-1, shape[-1]),
            z.view(-1, shape[-1]) if z.numel() else None, extents,
        ).run()  # fmt: skip
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
    """See :func:`growtas.kernels.linear.reference.backward_`; `extents` as for `forward`.
    Deterministic."""
    options = Options(input_activation == "gelu", activation == "gelu", sample_scale)
    dx = x.new_empty(x.shape if need_dx else (0,))
    inputs, rows = as_rows(x), as_rows(dy)
    if not inputs.shape[0]:
        return dx
    z = as_rows(preactivation) if options.gelu else preactivation
    target, left = _target(x), None
    with_cublas = extents is None and left_to_cublas("input_gradient", options, x, weight, rows)
    if grad_weight is None and grad_bias is None:
        pass
    elif extents is None and left_to_cublas(
        "weight_gradient", options, inputs, rows, grad_weight, grad_bias
    ):
        if grad_weight is not None:
            grad_weight[:out_features, : x.shape[-1]].addmm_(rows.t(), inputs)
        if grad_bias is not None:
            grad_bias[:out_features] += rows.sum(0)
    else:
        groups = 1 if weight.dim() == 2 else weight.shape[0]
        if grad_weight is not None:
            grad_weight = grad_weight.view(groups, -1, weight.shape[-1])
        if grad_bias is not None and grad_bias.dim() > 1:
            grad_bias = grad_bias.view(groups, -1)
        for launch, fold in _plan_weight_gradients(
            target, rows, z, inputs, groups, out_features, options, grad_weight, grad_bias, extents
        ):
            launch.run()
            if need_dx and not with_cublas and fold.extents is extents:
                left = fold
            else:
                plan_fold(target, fold).run()
    if need_dx:
        out = dx.view(-1, x.shape[-1])
        if with_cublas:
            torch.mm(rows, weight[:out_features, : x.shape[-1]], out=out)
        else:
            plan_input_gradient(
                target, rows, z, as_matrices(weight), out_features, options, inputs, out, extents,
                left,
            ).run()  # fmt: skip
    return dx


def _plan_weight_gradients(
    target: Target,
    rows: Tensor,
    z: Tensor,
    inputs: Tensor,
    groups: int,
    out_features: int,
    options: Options,
    grad_weight: Tensor | None,
    grad_bias: Tensor | None,
    extents: LinearSizes | None,
) -> Iterator[tuple[Launch, Fold]]:
    """One, or more where one cannot sum the bias's gradient."""
    count = 1 if extents is None else len(extents.out_features)
    if extents is None or count == 1 or groups == 1 or grad_bias is None or grad_bias.dim() > 1:
        yield plan_weight_gradient(
            target, rows, z, inputs, groups, out_features, options, grad_weight, grad_bias, extents
        )
        return
    # An entry of a flat bias is another output's in every subnet: one subnet after another.
    if grad_weight is not None:
        yield plan_weight_gradient(
            target, rows, z, inputs, groups, out_features, options, grad_weight, None, extents
        )
    tensors = (rows, z, inputs, options.scale, *extents[:2])
    of_subnets: Iterator[Any] = zip(*(shares(t, count) for t in tensors), strict=True)
    for dy_, z_, x_, scale, out, in_ in of_subnets:
        yield plan_weight_gradient(
            target, dy_, z_, x_, groups, out_features, options._replace(scale=scale), None,
            grad_bias, LinearSizes(out, in_, extents.alignment),
        )  # fmt: skip


def _target(x: Tensor) -> Target:
    return Target(architecture(x.device), dot_precision(x.dtype))
