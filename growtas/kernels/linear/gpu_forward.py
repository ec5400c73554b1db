"""linear forward in one kernel: GELU, product, bias, factor per sample, residual."""

from __future__ import annotations

import triton
import triton.language as tl

from growtas.kernels.triton.functions import aligned, dot, extent, gelu, tile_of_rows


@triton.jit(
    do_not_specialize=[
        "rows",
        "out_features",
        "in_features",
        "out_step",
        "in_step",
        "x_stride",
        "weight_stride_part",
        "weight_stride",
        "bias_stride_part",
        "residual_stride",
        "y_stride",
        "y_stride_part",
        "column_tiles",
        "rows_per_sample",
    ]
)
def linear_forward_kernel(
    x,  # [rows, in] by row stride
    weight,  # [PARTS, out_max, in_max] by strides, rows contiguous
    bias,  # [PARTS, out_max], or a vector read up to PARTS * out: read with BIAS
    sample_scale,  # [rows / rows_per_sample] float32: read with SCALE
    residual,  # like y by row stride, read with RESIDUAL
    y,  # [rows, PARTS, out] by strides, written
    rows,  # of each subnet
    out_features,  # int or, with DEVICE_EXTENTS, int32 of each subnet
    in_features,
    out_step,  # between subnets
    in_step,
    x_stride,
    weight_stride_part,
    weight_stride,
    bias_stride_part,  # 0: part follows part in the vector
    residual_stride,
    y_stride,
    y_stride_part,
    column_tiles,  # that are launched for each part
    rows_per_sample,
    PARTS: tl.constexpr,
    BIAS: tl.constexpr,
    INPUT_GELU: tl.constexpr,
    SCALE: tl.constexpr,
    RESIDUAL: tl.constexpr,
    DEVICE_EXTENTS: tl.constexpr,
    ALIGNMENT: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    row_tile = tl.program_id(0) // (PARTS * column_tiles)
    subnet, start, end = tile_of_rows(row_tile, rows, BLOCK_M, DEVICE_EXTENTS)
    n_extent = extent(out_features, DEVICE_EXTENTS, ALIGNMENT, subnet * out_step)
    k_extent = extent(in_features, DEVICE_EXTENTS, ALIGNMENT, subnet * in_step)
    # Neighbours share rows of x; the weight stays in the L2 cache.
    tile = tl.program_id(0) % (PARTS * column_tiles)
    part = tile // column_tiles
    first = (tile % column_tiles) * BLOCK_N
    if first >= n_extent:
        return
    dtype: tl.constexpr = x.dtype.element_ty
    m = tl.arange(0, BLOCK_M)
    n = first + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    x_row = aligned(x_stride, ALIGNMENT)
    x_rows = x + start.to(tl.int64) * x_row + m[:, None] * x_row
    weight_rows = weight + part * aligned(weight_stride_part, ALIGNMENT)
    weight_rows += n[:, None] * aligned(weight_stride, ALIGNMENT)
    in_m = m < end - start
    in_rows = in_m[:, None]
    in_columns = (n < n_extent)[None, :]
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    if BIAS:  # where there is no layer, there is no bias
        first_bias = part * (bias_stride_part if bias_stride_part > 0 else n_extent)
        present = n < tl.where(k_extent > 0, n_extent, 0)
        acc += tl.load(bias + first_bias + n, present, 0.0).to(tl.float32)[None, :]
    for k_start in range(0, k_extent, BLOCK_K):
        in_k = (k_start + k < k_extent)[None, :]
        a = tl.load(x_rows + (k_start + k)[None, :], in_rows & in_k, 0.0)
        b = tl.load(weight_rows + (k_start + k)[None, :], (n < n_extent)[:, None] & in_k, 0.0)
        if INPUT_GELU:
            a = gelu(a.to(tl.float32)).to(dtype)
        acc = dot(a, tl.trans(b.to(dtype)), acc, PRECISION)
    inside = in_rows & in_columns
    column = part * aligned(y_stride_part, ALIGNMENT) + n
    row = (start + m).to(tl.int64)
    at = row[:, None] * aligned(y_stride, ALIGNMENT) + column[None, :]
    if SCALE:
        factor = tl.load(sample_scale + (start + m) // rows_per_sample, in_m, 0.0)
        acc *= factor[:, None]
    if RESIDUAL:
        from_residual = row[:, None] * aligned(residual_stride, ALIGNMENT) + column[None, :]
        acc += tl.load(residual + from_residual, inside, 0.0).to(tl.float32)
    tl.store(y + at, acc.to(y.dtype.element_ty), inside)
