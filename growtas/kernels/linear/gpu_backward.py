"""linear backward: the gradient of weight and bias, and that of the input.

The first is a sum over all rows. It is cut into splits, each summed in order by a program of its
own. Then they are added up in order, so bits do not depend on which program comes first: by some
programs of the launch that computes the input's gradient, or by a launch of their own. (The last
program to have its split could do it too, but would read up to 60 tiles by itself.)
"""

from __future__ import annotations

import triton
import triton.language as tl

from growtas.kernels.triton.functions import (
    aligned,
    dot,
    extent,
    gelu,
    gelu_slope,
    tile_of_rows,
)


@triton.jit
def load_dz(
    dy,
    sample_scale,
    row,  # [M, 1]
    at,  # [M, N]: of these rows and columns in dy
    in_rows,  # [M, 1]
    in_columns,  # [1, N]
    rows_per_sample,
    SCALE: tl.constexpr,
    dtype: tl.constexpr,
):
    """The gradient of product plus bias."""
    dz = tl.load(dy + at, in_rows & in_columns, 0.0)
    if SCALE:
        dz = dz.to(tl.float32) * tl.load(sample_scale + row // rows_per_sample, in_rows, 0.0)
    return dz.to(dtype)


@triton.jit
def in_some_subnet(
    m, n, subnets, out_features, in_features, out_step, in_step, DEVICE_EXTENTS: tl.constexpr,
    ALIGNMENT: tl.constexpr,
):  # fmt: skip
    """Whether some subnet has row m and column n of the weight."""
    inside = m < extent(out_features, DEVICE_EXTENTS, ALIGNMENT)
    inside &= n < extent(in_features, DEVICE_EXTENTS, ALIGNMENT)
    for subnet in range(1, subnets):
        rows = extent(out_features, DEVICE_EXTENTS, ALIGNMENT, subnet * out_step)
        columns = extent(in_features, DEVICE_EXTENTS, ALIGNMENT, subnet * in_step)
        inside |= (m < rows) & (n < columns)
    return inside


@triton.jit(
    do_not_specialize=[
        "rows",
        "out_features",
        "in_features",
        "out_step",
        "in_step",
        "subnets",
        "dy_stride",
        "dy_stride_part",
        "x_stride",
        "launched_out",
        "launched_in",
        "rows_per_sample",
        "splits",
    ]
)
def linear_weight_gradient_kernel(
    dy,  # [rows, PARTS, out] by strides
    x,  # [rows, in] by row stride
    sample_scale,  # [rows / rows_per_sample] float32: read with SCALE
    partials,  # [splits, PARTS, launched_out, launched_in] float32, written with WEIGHT
    bias_partials,  # [splits, PARTS, launched_out] float32, written with BIAS
    rows,  # of each subnet
    out_features,  # int or, with DEVICE_EXTENTS, int32 of each subnet
    in_features,
    out_step,  # between subnets
    in_step,
    subnets,
    dy_stride,
    dy_stride_part,
    x_stride,
    launched_out,
    launched_in,
    rows_per_sample,
    splits,
    PARTS: tl.constexpr,
    WEIGHT: tl.constexpr,
    BIAS: tl.constexpr,
    INPUT_GELU: tl.constexpr,
    SCALE: tl.constexpr,
    DEVICE_EXTENTS: tl.constexpr,
    ALIGNMENT: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    row_tiles = tl.cdiv(launched_out, BLOCK_M)
    column_tiles = tl.cdiv(launched_in, BLOCK_N) if WEIGHT else 1
    tile = tl.program_id(0) % (PARTS * row_tiles * column_tiles)
    split = tl.program_id(0) // (PARTS * row_tiles * column_tiles)
    part = tile // (row_tiles * column_tiles)
    first_m = (tile // column_tiles % row_tiles) * BLOCK_M
    first_n = (tile % column_tiles) * BLOCK_N
    used = in_some_subnet(
        first_m, first_n, subnets, out_features, in_features, out_step, in_step, DEVICE_EXTENTS,
        ALIGNMENT,
    )  # fmt: skip
    if not used:
        return
    dtype: tl.constexpr = x.dtype.element_ty
    m = first_m + tl.arange(0, BLOCK_M)
    n = first_n + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    column = part * aligned(dy_stride_part, ALIGNMENT) + m
    dy_row = aligned(dy_stride, ALIGNMENT)
    x_row = aligned(x_stride, ALIGNMENT)
    blocks = tl.cdiv(rows, BLOCK_K)
    share = tl.cdiv(subnets * blocks, splits)
    first = split * share
    last = tl.minimum(first + share, subnets * blocks)
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    bias_acc = tl.zeros([BLOCK_K, BLOCK_M], tl.float32)
    first_subnet, end_subnet = 0, 1
    if DEVICE_EXTENTS:
        first_subnet, end_subnet = first // blocks, tl.cdiv(last, blocks)
    for subnet in range(first_subnet, end_subnet):
        m_extent = extent(out_features, DEVICE_EXTENTS, ALIGNMENT, subnet * out_step)
        n_extent = extent(in_features, DEVICE_EXTENTS, ALIGNMENT, subnet * in_step)
        in_m = m < m_extent
        in_n = n < n_extent
        end = (subnet + 1) * rows
        base = subnet * blocks
        until = tl.minimum(last - base, blocks)
        until = tl.where((first_m < m_extent) & (first_n < n_extent), until, 0)
        for block in range(tl.maximum(first - base, 0), until):
            start = subnet * rows + block * BLOCK_K
            in_k = start + k < end
            row = (start + k).to(tl.int64)[:, None]
            dz = load_dz(
                dy, sample_scale, (start + k)[:, None], row * dy_row + column[None, :],
                in_k[:, None], in_m[None, :], rows_per_sample, SCALE, dtype,
            )  # fmt: skip
            if BIAS:
                bias_acc += dz.to(tl.float32)
            if WEIGHT:
                a = tl.load(x + row * x_row + n[None, :], in_k[:, None] & in_n[None, :], 0.0)
                if INPUT_GELU:
                    a = gelu(a.to(tl.float32)).to(dtype)
                acc = dot(tl.trans(dz), a, acc, PRECISION)
    target = (split * PARTS + part) * launched_out + m
    if WEIGHT:
        at = target[:, None] * aligned(launched_in, ALIGNMENT) + n[None, :]
        launched = (m < launched_out)[:, None] & (n < launched_in)[None, :]
        tl.store(partials + at, acc, launched)
    if BIAS:
        by_me = m < tl.where(first_n == 0, launched_out, 0)
        tl.store(bias_partials + target, tl.sum(bias_acc, 0), by_me)


@triton.jit
def fold(
    tile,
    partials,
    bias_partials,  # see `linear_weight_gradient_kernel`
    grad_weight,  # [PARTS, out_max, in_max] by strides, added to with WEIGHT
    grad_bias,  # [PARTS, out_max], or a vector added to up to PARTS * out: with BIAS
    splits,
    subnets,
    launched_out,
    launched_in,
    grad_stride_part,
    grad_stride,
    bias_stride_part,  # 0: part follows part in the vector, with one subnet only
    out_features,
    in_features,
    out_step,
    in_step,
    PARTS: tl.constexpr,
    WEIGHT: tl.constexpr,
    BIAS: tl.constexpr,
    DEVICE_EXTENTS: tl.constexpr,
    ALIGNMENT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Add the splits of a tile of the weight's gradient, and of the bias's, to the buffers."""
    row_tiles = tl.cdiv(launched_out, BLOCK_M)
    column_tiles = tl.cdiv(launched_in, BLOCK_N) if WEIGHT else 1
    part = tile // (row_tiles * column_tiles)
    first_m = (tile // column_tiles % row_tiles) * BLOCK_M
    first_n = (tile % column_tiles) * BLOCK_N
    used = in_some_subnet(
        first_m, first_n, subnets, out_features, in_features, out_step, in_step, DEVICE_EXTENTS,
        ALIGNMENT,
    )  # fmt: skip
    splits = tl.where(used, splits, 0)
    m = first_m + tl.arange(0, BLOCK_M)
    n = first_n + tl.arange(0, BLOCK_N)
    if WEIGHT:
        inside = in_some_subnet(
            m[:, None], n[None, :], subnets, out_features, in_features, out_step, in_step,
            DEVICE_EXTENTS, ALIGNMENT,
        )  # fmt: skip
        acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        row_stride = aligned(launched_in, ALIGNMENT)
        for split in tl.range(0, splits, loop_unroll_factor=2):  # two reads under way
            row = ((split * PARTS + part) * launched_out + m)[:, None]
            acc += tl.load(partials + row * row_stride + n[None, :], inside, 0.0)
        at = grad_weight + part * aligned(grad_stride_part, ALIGNMENT)
        at += m[:, None] * aligned(grad_stride, ALIGNMENT) + n[None, :]
        acc += tl.load(at, inside, 0.0).to(tl.float32)
        tl.store(at, acc.to(grad_weight.dtype.element_ty), inside)
    if BIAS:
        by_me = in_some_subnet(
            m, first_n + tl.zeros([BLOCK_M], tl.int32), subnets, out_features, in_features,
            out_step, in_step, DEVICE_EXTENTS, ALIGNMENT,
        )  # fmt: skip
        by_me &= m < tl.where(first_n == 0, launched_out, 0)
        total = tl.zeros([BLOCK_M], tl.float32)
        for split in range(splits):
            total += tl.load(bias_partials + (split * PARTS + part) * launched_out + m, by_me, 0.0)
        m_extent = extent(out_features, DEVICE_EXTENTS, ALIGNMENT)
        at = grad_bias + part * (bias_stride_part if bias_stride_part > 0 else m_extent) + m
        total += tl.load(at, by_me, 0.0).to(tl.float32)
        tl.store(at, total.to(grad_bias.dtype.element_ty), by_me)


@triton.jit(
    do_not_specialize=[
        "splits",
        "subnets",
        "launched_out",
        "launched_in",
        "grad_stride_part",
        "grad_stride",
        "bias_stride_part",
        "out_features",
        "in_features",
        "out_step",
        "in_step",
    ]
)
def linear_fold_kernel(
    partials,
    bias_partials,  # see `linear_weight_gradient_kernel`
    grad_weight,  # [PARTS, out_max, in_max] by strides, added to with WEIGHT
    grad_bias,  # [PARTS, out_max], or a vector added to up to PARTS * out: with BIAS
    splits,
    subnets,
    launched_out,
    launched_in,
    grad_stride_part,
    grad_stride,
    bias_stride_part,  # 0: part follows part in the vector, with one subnet only
    out_features,
    in_features,
    out_step,
    in_step,
    PARTS: tl.constexpr,
    WEIGHT: tl.constexpr,
    BIAS: tl.constexpr,
    DEVICE_EXTENTS: tl.constexpr,
    ALIGNMENT: tl.constexpr,
    FOLD_M: tl.constexpr,
    FOLD_N: tl.constexpr,
):
    fold(
        tl.program_id(0), partials, bias_partials, grad_weight, grad_bias, splits, subnets,
        launched_out, launched_in, grad_stride_part, grad_stride, bias_stride_part, out_features,
        in_features, out_step, in_step, PARTS, WEIGHT, BIAS, DEVICE_EXTENTS, ALIGNMENT, FOLD_M,
        FOLD_N,
    )  # fmt: skip


@triton.jit(
    do_not_specialize=[
        "rows",
        "out_features",
        "in_features",
        "out_step",
        "in_step",
        "dy_stride",
        "dy_stride_part",
        "weight_stride_part",
        "weight_stride",
        "x_stride",
        "dx_stride",
        "column_tiles",
        "rows_per_sample",
        "folds",
        "splits",
        "subnets",
        "launched_out",
        "launched_in",
        "grad_stride_part",
        "grad_stride",
        "bias_stride_part",
    ]
)
def linear_input_gradient_kernel(
    dy,  # [rows, PARTS, out] by strides
    weight,  # [PARTS, out_max, in_max] by strides, rows contiguous
    sample_scale,  # [rows / rows_per_sample] float32: read with SCALE
    x,  # [rows, in] by row stride, read with INPUT_GELU
    dx,  # [rows, in] by row stride, written
    rows,  # of each subnet
    out_features,  # int or, with DEVICE_EXTENTS, int32 of each subnet
    in_features,
    out_step,  # between subnets
    in_step,
    dy_stride,
    dy_stride_part,
    weight_stride_part,
    weight_stride,
    x_stride,
    dx_stride,
    column_tiles,  # that are launched
    rows_per_sample,
    folds,  # with FOLD so many programs come first, which `fold`
    partials,
    bias_partials,  # see `linear_weight_gradient_kernel`
    grad_weight,  # [PARTS, out_max, in_max] by strides, added to with WEIGHT
    grad_bias,  # [PARTS, out_max], or a vector added to up to PARTS * out: with BIAS
    splits,
    subnets,
    launched_out,
    launched_in,
    grad_stride_part,
    grad_stride,
    bias_stride_part,  # 0: part follows part in the vector, with one subnet only
    PARTS: tl.constexpr,
    INPUT_GELU: tl.constexpr,
    SCALE: tl.constexpr,
    FOLD: tl.constexpr,
    WEIGHT: tl.constexpr,
    BIAS: tl.constexpr,
    DEVICE_EXTENTS: tl.constexpr,
    ALIGNMENT: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    FOLD_M: tl.constexpr,
    FOLD_N: tl.constexpr,
):
    program = tl.program_id(0)
    if FOLD:
        if program < folds:
            fold(
                program, partials, bias_partials, grad_weight, grad_bias, splits, subnets,
                launched_out, launched_in, grad_stride_part, grad_stride, bias_stride_part,
                out_features, in_features, out_step, in_step, PARTS, WEIGHT, BIAS, DEVICE_EXTENTS,
                ALIGNMENT, FOLD_M, FOLD_N,
            )  # fmt: skip
            return
        program -= folds
    row_tile = program // column_tiles
    subnet, start, end = tile_of_rows(row_tile, rows, BLOCK_M, DEVICE_EXTENTS)
    k_extent = extent(out_features, DEVICE_EXTENTS, ALIGNMENT, subnet * out_step)
    n_extent = extent(in_features, DEVICE_EXTENTS, ALIGNMENT, subnet * in_step)
    first = (program % column_tiles) * BLOCK_N
    if first >= n_extent:
        return
    dtype: tl.constexpr = dx.dtype.element_ty
    m = tl.arange(0, BLOCK_M)
    n = first + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    in_rows = (m < end - start)[:, None]
    in_columns = (n < n_extent)[None, :]
    row = (start + m).to(tl.int64)[:, None]
    dy_rows = row * aligned(dy_stride, ALIGNMENT)
    dy_part = aligned(dy_stride_part, ALIGNMENT)
    weight_part = aligned(weight_stride_part, ALIGNMENT)
    weight_row = aligned(weight_stride, ALIGNMENT)
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    k_tiles = tl.cdiv(k_extent, BLOCK_K)
    for step in range(PARTS * k_tiles):
        part = step // k_tiles
        at = (step % k_tiles) * BLOCK_K + k
        column = part * dy_part + at
        in_k = at < k_extent
        dz = load_dz(
            dy, sample_scale, (start + m)[:, None], dy_rows + column[None, :], in_rows,
            in_k[None, :], rows_per_sample, SCALE, dtype,
        )  # fmt: skip
        weight_rows = weight + part * weight_part + at[:, None] * weight_row
        w = tl.load(weight_rows + n[None, :], in_k[:, None] & in_columns, 0.0)
        acc = dot(dz, w.to(dtype), acc, PRECISION)
    inside = in_rows & in_columns
    if INPUT_GELU:
        of_x = tl.load(x + row * aligned(x_stride, ALIGNMENT) + n[None, :], inside, 0.0)
        acc *= gelu_slope(of_x.to(tl.float32))
    tl.store(dx + row * aligned(dx_stride, ALIGNMENT) + n[None, :], acc.to(dtype), inside)
