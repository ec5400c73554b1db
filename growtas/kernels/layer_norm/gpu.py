"""layer_norm on the GPU: one pass forward, one backward, parameter gradients in a fixed order."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from growtas.kernels.triton_support import power_of_two, unavailable, unsupported

__all__ = ["available", "backward_", "forward", "unsupported"]

available = unavailable

PROGRAMS = 264  # of the backward: two for each of a large GPU's processors


@triton.jit
def layer_norm_forward_kernel(
    x,  # [rows, width] by row stride
    weight,
    bias,  # [width_max], the first `width` read
    y,  # [rows, width] by row stride
    mean,
    rstd,  # [rows] float32
    extents,  # int32: width of this subnet; read with DEVICE_EXTENTS
    rows,
    width,
    x_stride,
    y_stride,
    eps,
    DEVICE_EXTENTS: tl.constexpr,
    ALIGNMENT: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    if DEVICE_EXTENTS:
        width = tl.multiple_of(tl.load(extents), ALIGNMENT)
    r = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    e = tl.arange(0, BLOCK_E)
    inside = (r < rows)[:, None] & (e < width)[None, :]
    row = r.to(tl.int64)[:, None]
    values = tl.load(x + row * x_stride + e[None, :], inside, 0.0).to(tl.float32)
    centre = tl.sum(values, 1) / width
    difference = tl.where(inside, values - centre[:, None], 0.0)
    scale = 1.0 / tl.sqrt(tl.sum(difference * difference, 1) / width + eps)
    w = tl.load(weight + e, e < width, 0.0).to(tl.float32)
    b = tl.load(bias + e, e < width, 0.0).to(tl.float32)
    out = difference * scale[:, None] * w[None, :] + b[None, :]
    tl.store(y + row * y_stride + e[None, :], out.to(y.dtype.element_ty), inside)
    tl.store(mean + r, centre, r < rows)
    tl.store(rstd + r, scale, r < rows)


@triton.jit
def layer_norm_backward_kernel(
    dy,
    x,  # [rows, width] by row stride
    weight,
    mean,
    rstd,
    dx,  # [rows, width] by row stride
    partials,  # [programs, 2, BLOCK_E] float32: weight and bias gradient of a program's rows
    extents,
    rows,
    width,
    dy_stride,
    x_stride,
    dx_stride,
    DEVICE_EXTENTS: tl.constexpr,
    ALIGNMENT: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    if DEVICE_EXTENTS:
        width = tl.multiple_of(tl.load(extents), ALIGNMENT)
    e = tl.arange(0, BLOCK_E)
    w = tl.load(weight + e, e < width, 0.0).to(tl.float32)
    dweight = tl.zeros([BLOCK_E], tl.float32)
    dbias = tl.zeros([BLOCK_E], tl.float32)
    # Every program takes the same share of rows, in order: its sums do not depend on the others.
    share = tl.cdiv(rows, tl.num_programs(0) * BLOCK_R) * BLOCK_R
    first = tl.program_id(0) * share
    for start in range(first, tl.minimum(first + share, rows), BLOCK_R):
        r = start + tl.arange(0, BLOCK_R)
        inside = (r < rows)[:, None] & (e < width)[None, :]
        row = r.to(tl.int64)[:, None]
        g = tl.load(dy + row * dy_stride + e[None, :], inside, 0.0).to(tl.float32)
        values = tl.load(x + row * x_stride + e[None, :], inside, 0.0).to(tl.float32)
        centre = tl.load(mean + r, r < rows, 0.0)
        scale = tl.load(rstd + r, r < rows, 0.0)
        normal = tl.where(inside, (values - centre[:, None]) * scale[:, None], 0.0)
        dweight += tl.sum(g * normal, 0)
        dbias += tl.sum(g, 0)
        g = g * w[None, :]
        average = tl.sum(g, 1) / width
        slope = tl.sum(g * normal, 1) / width
        gradient = (g - average[:, None] - normal * slope[:, None]) * scale[:, None]
        tl.store(dx + row * dx_stride + e[None, :], gradient.to(dx.dtype.element_ty), inside)
    mine = partials + tl.program_id(0) * 2 * BLOCK_E
    tl.store(mine + e, dweight)
    tl.store(mine + BLOCK_E + e, dbias)


@triton.jit
def layer_norm_parameter_gradient_kernel(
    partials,  # [programs, 2, BLOCK_E] float32
    dweight,
    dbias,  # [width_max], the first `width` added to
    extents,
    programs,
    width,
    WEIGHT: tl.constexpr,
    BIAS: tl.constexpr,
    DEVICE_EXTENTS: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    if DEVICE_EXTENTS:
        width = tl.load(extents)
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    for which in tl.static_range(2):
        total = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
        for start in range(0, programs, BLOCK_P):
            p = start + tl.arange(0, BLOCK_P)
            at = (p * 2 + which)[:, None] * BLOCK_E + c[None, :]
            total += tl.load(partials + at, (p < programs)[:, None] & (c < width)[None, :], 0.0)
        added = tl.sum(total, 0)
        if which == 0 and WEIGHT:
            before = tl.load(dweight + c, c < width, 0.0).to(tl.float32)
            tl.store(dweight + c, (before + added).to(dweight.dtype.element_ty), c < width)
        if which == 1 and BIAS:
            before = tl.load(dbias + c, c < width, 0.0).to(tl.float32)
            tl.store(dbias + c, (before + added).to(dbias.dtype.element_ty), c < width)


def _rows(x: Tensor) -> Tensor:
    rows = x.reshape(-1, x.shape[-1])
    return rows if rows.stride(-1) == 1 else rows.contiguous()


def _block_rows(width: int) -> int:
    """Rows per tile: some four thousand values."""
    return max(1, min(16, 4096 // power_of_two(width)))


def forward(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, out_dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """See :func:`growtas.kernels.layer_norm.reference.forward`."""
    rows = _rows(x)
    y = x.new_empty(x.shape, dtype=out_dtype)
    mean = x.new_empty(x.shape[:-1], dtype=torch.float32)
    rstd = torch.empty_like(mean)
    count, width = rows.shape
    if count:
        block = _block_rows(width)
        layer_norm_forward_kernel[(triton.cdiv(count, block),)](
            rows, weight, bias, y, mean, rstd, mean, count, width, rows.stride(0), width, eps,
            DEVICE_EXTENTS=False, ALIGNMENT=1, BLOCK_R=block, BLOCK_E=power_of_two(width),
            num_warps=4,
        )  # fmt: skip
    return y, mean, rstd


def backward_(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    mean: Tensor,
    rstd: Tensor,
    grad_weight: Tensor | None,
    grad_bias: Tensor | None,
) -> Tensor:
    """See :func:`growtas.kernels.layer_norm.reference.backward_`. Deterministic."""
    dy_rows, rows = _rows(dy), _rows(x)
    dx = x.new_empty(x.shape)
    count, width = rows.shape
    if count == 0:
        return dx
    block, block_e = _block_rows(width), power_of_two(width)
    programs = min(PROGRAMS, triton.cdiv(count, block))
    partials = mean.new_empty(programs, 2, block_e)
    layer_norm_backward_kernel[(programs,)](
        dy_rows, rows, weight, mean, rstd, dx, partials, mean, count, width,
        dy_rows.stride(0), rows.stride(0), width,
        DEVICE_EXTENTS=False, ALIGNMENT=1, BLOCK_R=block, BLOCK_E=block_e, num_warps=4,
    )  # fmt: skip
    if grad_weight is not None or grad_bias is not None:
        columns = min(64, block_e)
        layer_norm_parameter_gradient_kernel[(triton.cdiv(width, columns),)](
            partials, partials if grad_weight is None else grad_weight,
            partials if grad_bias is None else grad_bias, mean, programs, width,
            WEIGHT=grad_weight is not None, BIAS=grad_bias is not None, DEVICE_EXTENTS=False,
            BLOCK_E=block_e, BLOCK_P=32, BLOCK_C=columns, num_warps=4,
        )  # fmt: skip
    return dx
