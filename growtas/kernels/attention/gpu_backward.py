"""The attention backward: query tiles (dq), the tables' sums, then key tiles (dk, dv).

The first kernel leaves what the third needs of every query, sum(dout * out) and the terms by slot
of q on the keys and of dout on the values, and the slot sums that the table gradients are made of.
These the second adds up in fixed shares of the batch, and some programs of the third add the
shares: three launches, every sum in a fixed order, without atomics.
"""

from __future__ import annotations

import triton
import triton.language as tl

from growtas.kernels.attention.gpu_common import (
    SIZES,
    add_tables_by_sums,
    heads_of,
    load_sums_by_row,
    load_terms,
    one_hot_tile,
    program_place,
    terms_by_slot,
)
from growtas.kernels.triton.functions import aligned, dot


@triton.jit(do_not_specialize=SIZES)
def attention_query_gradient_kernel(
    qkv,  # [B, N, 3, h, d] by strides
    tables,
    out,
    dout,  # [B, N, h, d], the strides of out
    lse,  # [B, h, N]
    delta,  # [B, h, N] float32, written
    key_terms,
    value_terms,  # [B, h, N, SLOTS] in qkv's dtype, written with RELATIVE
    ds_slots,
    p_slots,  # [B, h, N, SLOTS] float32, written with RELATIVE: sums over the keys of each slot
    dqkv,  # contiguous like qkv, q's part written
    extents,  # as in the forward kernel
    extent_stride,
    images,
    qkv_stride_b,
    qkv_stride_n,
    qkv_stride_part,
    out_stride_b,
    out_stride_n,
    heads,
    tokens,
    scale,
    GRID_H: tl.constexpr,
    GRID_W: tl.constexpr,
    CLS: tl.constexpr,
    TABLE_ROWS: tl.constexpr,
    ROWS: tl.constexpr,
    SLOTS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HEAD_PAD: tl.constexpr,
    RELATIVE: tl.constexpr,
    LOAD_TERMS: tl.constexpr,
    DEVICE_EXTENTS: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    tile, head, image = program_place(tl.program_id(0), tl.cdiv(tokens, BLOCK_M), heads)
    if DEVICE_EXTENTS:  # noqa: SIM102  decided while compiling, the other while running
        if head >= heads_of(image, extents, extent_stride, images):
            return
    batch = image.to(tl.int64)
    qkv_stride_b, qkv_stride_n = aligned(qkv_stride_b, HEAD_DIM), aligned(qkv_stride_n, HEAD_DIM)
    qkv_stride_part = aligned(qkv_stride_part, HEAD_DIM)
    out_stride_b, out_stride_n = aligned(out_stride_b, HEAD_DIM), aligned(out_stride_n, HEAD_DIM)
    dtype: tl.constexpr = qkv.dtype.element_ty
    i = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    d = tl.arange(0, HEAD_PAD)
    in_head = d < HEAD_DIM
    inside = (i < tokens)[:, None] & in_head[None, :]
    base = qkv + batch * qkv_stride_b + head * HEAD_DIM
    row_base = (batch * heads + head) * tokens
    q = tl.load(base + i[:, None] * qkv_stride_n + d[None, :], inside, 0.0)
    at = batch * out_stride_b + head * HEAD_DIM + i[:, None] * out_stride_n + d[None, :]
    do = tl.load(dout + at, inside, 0.0)
    o = tl.load(out + at, inside, 0.0)
    mean = tl.sum(do.to(tl.float32) * o.to(tl.float32), 1)
    tl.store(delta + row_base + i, mean, i < tokens)
    lse2 = tl.load(lse + row_base + i, i < tokens, 0.0) * 1.4426950408889634
    scale2 = scale * 1.4426950408889634
    if RELATIVE:
        of_keys = terms_by_slot(
            q, tables, i, GRID_H, GRID_W, CLS, TABLE_ROWS, ROWS, SLOTS, HEAD_DIM, HEAD_PAD,
            PRECISION, BLOCK_T,
        )  # fmt: skip
        of_values = terms_by_slot(
            do, tables + 2 * TABLE_ROWS * HEAD_DIM, i, GRID_H, GRID_W, CLS, TABLE_ROWS, ROWS,
            SLOTS, HEAD_DIM, HEAD_PAD, PRECISION, BLOCK_T,
        )  # fmt: skip
        slot = tl.arange(0, SLOTS)
        in_slots = (row_base + i)[:, None] * SLOTS + slot[None, :]
        tl.store(key_terms + in_slots, of_keys, (i < tokens)[:, None])
        tl.store(value_terms + in_slots, of_values, (i < tokens)[:, None])
        if LOAD_TERMS:
            tl.debug_barrier()  # other threads of this program read what was just written
        ds_sums = tl.zeros([BLOCK_M, SLOTS], tl.float32)
        p_sums = tl.zeros([BLOCK_M, SLOTS], tl.float32)
    dq = tl.zeros([BLOCK_M, HEAD_PAD], tl.float32)
    for start in range(0, tokens, BLOCK_N):
        j = start + tl.arange(0, BLOCK_N)
        in_row = (j < tokens)[:, None] & in_head[None, :]
        key_at = j[:, None] * qkv_stride_n + d[None, :]
        k = tl.load(base + qkv_stride_part + key_at, in_row, 0.0)
        v = tl.load(base + 2 * qkv_stride_part + key_at, in_row, 0.0)
        zeros = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        s = dot(q, tl.trans(k), zeros, PRECISION)
        dp = dot(do, tl.trans(v), zeros, PRECISION)
        if RELATIVE:
            slots = one_hot_tile(j, GRID_H, GRID_W, CLS, SLOTS, dtype)
            if LOAD_TERMS:
                known = (i < tokens)[:, None] & (j < tokens)[None, :]
                s += load_terms(
                    key_terms + row_base * SLOTS, i[:, None], j[None, :], known, GRID_H, GRID_W,
                    CLS, SLOTS,
                )  # fmt: skip
                dp += load_terms(
                    value_terms + row_base * SLOTS, i[:, None], j[None, :], known, GRID_H, GRID_W,
                    CLS, SLOTS,
                )  # fmt: skip
            else:
                s = dot(of_keys, tl.trans(slots), s, PRECISION)
                dp = dot(of_values, tl.trans(slots), dp, PRECISION)
        p = tl.exp2(s * scale2 - lse2[:, None])
        p = tl.where((j < tokens)[None, :], p, 0.0)
        ds = (p * (dp - mean[:, None])).to(dtype)
        dq = dot(ds, k, dq, PRECISION)
        if RELATIVE:
            ds_sums = dot(ds, slots, ds_sums, PRECISION)
            p_sums = dot(p.to(dtype), slots, p_sums, PRECISION)
    if RELATIVE:
        tl.store(ds_slots + in_slots, ds_sums, (i < tokens)[:, None])
        tl.store(p_slots + in_slots, p_sums, (i < tokens)[:, None])
        tl.debug_barrier()  # other threads of this program read what was just written
        dq = add_tables_by_sums(
            dq, ds_slots + row_base * SLOTS, tables, i, i < tokens, GRID_H, GRID_W, CLS,
            TABLE_ROWS, ROWS, SLOTS, HEAD_DIM, HEAD_PAD, PRECISION, dtype, BLOCK_T,
        )  # fmt: skip
    tl.store(
        dqkv + batch * qkv_stride_b + head * HEAD_DIM + i[:, None] * qkv_stride_n + d[None, :],
        (dq * scale).to(dtype),
        inside,
    )


SHARES_TILE = tl.constexpr(32)  # shares added at a time


@triton.jit
def add_shares(
    partials,  # [shares, 2, ROWS, HEAD_PAD] float32
    grad_tables,  # [4, TABLE_ROWS, d] contiguous, added to
    at,  # row of the four tables, one after the other
    shares,
    TABLE_ROWS: tl.constexpr,
    ROWS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HEAD_PAD: tl.constexpr,
):
    """Adds one row's sums over the shares of the batch, in their order."""
    side = at // (2 * TABLE_ROWS)
    row = at % (2 * TABLE_ROWS)
    d = tl.arange(0, HEAD_PAD)
    total = tl.zeros([SHARES_TILE, HEAD_PAD], tl.float32)
    for start in range(0, shares, SHARES_TILE):
        share = start + tl.arange(0, SHARES_TILE)
        place = ((share.to(tl.int64) * 2 + side) * ROWS + row)[:, None] * HEAD_PAD + d[None, :]
        total += tl.load(partials + place, (share < shares)[:, None], 0.0)
    target = grad_tables + at * HEAD_DIM + d
    before = tl.load(target, d < HEAD_DIM, 0.0).to(tl.float32)
    tl.store(target, (before + tl.sum(total, 0)).to(grad_tables.dtype.element_ty), d < HEAD_DIM)


@triton.jit(do_not_specialize=[*SIZES, "shares", "folded"])
def attention_key_gradient_kernel(
    qkv,
    dout,
    lse,
    delta,
    key_terms,
    value_terms,  # read: see attention_query_gradient_kernel
    dqkv,  # k's and v's parts written
    partials,
    grad_tables,  # see `add_shares`
    shares,
    folded,  # rows of the tables, which as many programs add; 0 without a gradient
    extents,
    extent_stride,
    images,
    qkv_stride_b,
    qkv_stride_n,
    qkv_stride_part,
    out_stride_b,
    out_stride_n,
    heads,
    tokens,
    scale,
    GRID_H: tl.constexpr,
    GRID_W: tl.constexpr,
    CLS: tl.constexpr,
    TABLE_ROWS: tl.constexpr,
    ROWS: tl.constexpr,
    SLOTS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HEAD_PAD: tl.constexpr,
    RELATIVE: tl.constexpr,
    LOAD_TERMS: tl.constexpr,
    DEVICE_EXTENTS: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    if RELATIVE:  # noqa: SIM102  decided while compiling, the other while running
        if tl.program_id(0) < folded:
            add_shares(
                partials, grad_tables, tl.program_id(0), shares, TABLE_ROWS, ROWS, HEAD_DIM,
                HEAD_PAD,
            )  # fmt: skip
            return
    tile, head, image = program_place(
        tl.program_id(0) - folded, tl.cdiv(tokens, BLOCK_N), heads
    )  # fmt: skip
    if DEVICE_EXTENTS:  # noqa: SIM102  decided while compiling, the other while running
        if head >= heads_of(image, extents, extent_stride, images):
            return
    batch = image.to(tl.int64)
    qkv_stride_b, qkv_stride_n = aligned(qkv_stride_b, HEAD_DIM), aligned(qkv_stride_n, HEAD_DIM)
    qkv_stride_part = aligned(qkv_stride_part, HEAD_DIM)
    out_stride_b, out_stride_n = aligned(out_stride_b, HEAD_DIM), aligned(out_stride_n, HEAD_DIM)
    dtype: tl.constexpr = qkv.dtype.element_ty
    j = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    d = tl.arange(0, HEAD_PAD)
    in_head = d < HEAD_DIM
    base = qkv + batch * qkv_stride_b + head * HEAD_DIM
    out_base = dout + batch * out_stride_b + head * HEAD_DIM
    row_base = (batch * heads + head) * tokens
    inside = (j < tokens)[:, None] & in_head[None, :]
    at = j[:, None] * qkv_stride_n + d[None, :]
    k = tl.load(base + qkv_stride_part + at, inside, 0.0)
    v = tl.load(base + 2 * qkv_stride_part + at, inside, 0.0)
    scale2 = scale * 1.4426950408889634
    slot = tl.arange(0, SLOTS)
    if RELATIVE and not LOAD_TERMS:
        slots = one_hot_tile(j, GRID_H, GRID_W, CLS, SLOTS, dtype)
    dk = tl.zeros([BLOCK_N, HEAD_PAD], tl.float32)
    dv = tl.zeros([BLOCK_N, HEAD_PAD], tl.float32)
    # Scores are computed transposed, [keys, queries]: no operand of a product has to be turned.
    for start in range(0, tokens, BLOCK_M):
        i = start + tl.arange(0, BLOCK_M)
        in_row = (i < tokens)[:, None] & in_head[None, :]
        q = tl.load(base + i[:, None] * qkv_stride_n + d[None, :], in_row, 0.0)
        do = tl.load(out_base + i[:, None] * out_stride_n + d[None, :], in_row, 0.0)
        lse2 = tl.load(lse + row_base + i, i < tokens, 0.0) * 1.4426950408889634
        mean = tl.load(delta + row_base + i, i < tokens, 0.0)
        zeros = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
        s = dot(k, tl.trans(q), zeros, PRECISION)
        dp = dot(v, tl.trans(do), zeros, PRECISION)
        if RELATIVE and LOAD_TERMS:
            known = (j < tokens)[:, None] & (i < tokens)[None, :]
            s += load_terms(
                key_terms + row_base * SLOTS, i[None, :], j[:, None], known, GRID_H, GRID_W, CLS,
                SLOTS,
            )  # fmt: skip
            dp += load_terms(
                value_terms + row_base * SLOTS, i[None, :], j[:, None], known, GRID_H, GRID_W, CLS,
                SLOTS,
            )  # fmt: skip
        elif RELATIVE:
            in_terms = (row_base + i)[:, None] * SLOTS + slot[None, :]
            of_keys = tl.load(key_terms + in_terms, (i < tokens)[:, None], 0.0)
            of_values = tl.load(value_terms + in_terms, (i < tokens)[:, None], 0.0)
            s = dot(slots, tl.trans(of_keys), s, PRECISION)
            dp = dot(slots, tl.trans(of_values), dp, PRECISION)
        p = tl.exp2(s * scale2 - lse2[None, :])
        p = tl.where((i < tokens)[None, :], p, 0.0)
        ds = p * (dp - mean[None, :])
        dv = dot(p.to(dtype), do, dv, PRECISION)
        dk = dot(ds.to(dtype), q, dk, PRECISION)
    target = dqkv + batch * qkv_stride_b + head * HEAD_DIM + at
    tl.store(target + qkv_stride_part, (dk * scale).to(dtype), inside)
    tl.store(target + 2 * qkv_stride_part, dv.to(dtype), inside)


@triton.jit(do_not_specialize=[*SIZES, "sequences", "each"])
def attention_table_partial_kernel(
    qkv,
    dout,
    ds_slots,
    p_slots,  # [B, h, N, SLOTS] float32, read
    partials,  # [shares, 2, ROWS, HEAD_PAD] float32, written
    extents,
    extent_stride,
    images,
    qkv_stride_b,
    qkv_stride_n,
    out_stride_b,
    out_stride_n,
    heads,
    tokens,
    sequences,  # B * h
    each,  # sequences (image and head) of one program, in order
    scale,
    GRID_H: tl.constexpr,
    GRID_W: tl.constexpr,
    CLS: tl.constexpr,
    TABLE_ROWS: tl.constexpr,
    ROWS: tl.constexpr,
    SLOTS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HEAD_PAD: tl.constexpr,
    DEVICE_EXTENTS: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    """Some rows of one side of the tables per program: sums over the queries of some sequences of
    slot sums times q, or times dout."""
    parts: tl.constexpr = ROWS // BLOCK_T
    qkv_stride_b, qkv_stride_n = aligned(qkv_stride_b, HEAD_DIM), aligned(qkv_stride_n, HEAD_DIM)
    out_stride_b, out_stride_n = aligned(out_stride_b, HEAD_DIM), aligned(out_stride_n, HEAD_DIM)
    side = tl.program_id(0) % 2
    row = tl.program_id(0) // 2 % parts * BLOCK_T + tl.arange(0, BLOCK_T)
    share = tl.program_id(0) // (2 * parts)
    dtype: tl.constexpr = qkv.dtype.element_ty
    d = tl.arange(0, HEAD_PAD)
    total = tl.zeros([BLOCK_T, HEAD_PAD], tl.float32)
    for n in range(each):
        sequence = share * each + n
        head = sequence % heads
        batch = (sequence // heads).to(tl.int64)
        active = sequence < sequences
        if DEVICE_EXTENTS:
            image = tl.minimum(sequence, sequences - 1) // heads
            active = active & (head < heads_of(image, extents, extent_stride, images))
        base = head * HEAD_DIM
        sums = tl.where(side == 0, ds_slots, p_slots) + sequence.to(tl.int64) * tokens * SLOTS
        for start in range(0, tl.where(active, tokens, 0), BLOCK_M):
            i = start + tl.arange(0, BLOCK_M)
            inside = (i < tokens)[:, None] & (d < HEAD_DIM)[None, :]
            if side == 0:
                x = tl.load(
                    qkv + batch * qkv_stride_b + base + i[:, None] * qkv_stride_n + d[None, :],
                    inside,
                    0.0,
                )
            else:
                x = tl.load(
                    dout + batch * out_stride_b + base + i[:, None] * out_stride_n + d[None, :],
                    inside,
                    0.0,
                )
            rows = load_sums_by_row(
                sums, i, i < tokens, row, GRID_H, GRID_W, CLS, TABLE_ROWS, SLOTS
            )
            total = dot(tl.trans(rows.to(dtype)), x, total, PRECISION)
    at = row[:, None] * HEAD_PAD + d[None, :]
    mine = partials + (share * 2 + side).to(tl.int64) * ROWS * HEAD_PAD
    tl.store(mine + at, total * tl.where(side == 0, scale, 1.0))
