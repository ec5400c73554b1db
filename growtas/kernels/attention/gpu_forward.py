"""The attention forward: a query tile against all keys, softmax on the way (FlashAttention 2)."""

from __future__ import annotations

import triton
import triton.language as tl

from growtas.kernels.attention.gpu_common import (
    SIZES,
    add_tables_by_sums,
    heads_of,
    load_terms,
    one_hot_tile,
    program_place,
    terms_by_slot,
)
from growtas.kernels.triton.functions import aligned, dot


@triton.jit
def store_slots(mine, i, tokens, values, SLOTS: tl.constexpr):
    """Of queries i, for all threads of this program to read."""
    at = i[:, None] * SLOTS + tl.arange(0, SLOTS)[None, :]
    tl.store(mine + at, values, (i < tokens)[:, None])
    tl.debug_barrier()


@triton.jit(do_not_specialize=SIZES)
def attention_forward_kernel(
    qkv,  # [B, N, 3, h, d] by strides
    tables,  # [4, TABLE_ROWS, d] contiguous; not read without RELATIVE
    out,  # [B, N, h, d] by strides
    lse,  # [B, h, N] contiguous, float32: natural log-sum-exp of the logits
    scratch,  # [B, h, N, SLOTS] float32: terms, then sums of a tile's queries; with RELATIVE
    extents,  # int32 by stride, for every `images` images their heads; read with DEVICE_EXTENTS
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
    base = qkv + batch * qkv_stride_b + head * HEAD_DIM
    q = tl.load(
        base + i[:, None] * qkv_stride_n + d[None, :],
        (i < tokens)[:, None] & in_head[None, :],
        0.0,
    )
    scale2 = scale * 1.4426950408889634  # exponentials to base 2
    if RELATIVE:
        terms = terms_by_slot(
            q, tables, i, GRID_H, GRID_W, CLS, TABLE_ROWS, ROWS, SLOTS, HEAD_DIM, HEAD_PAD,
            PRECISION, BLOCK_T,
        )  # fmt: skip
        sums = tl.zeros([BLOCK_M, SLOTS], tl.float32)
        if LOAD_TERMS:
            mine = scratch + (batch * heads + head) * tokens * SLOTS
            store_slots(mine, i, tokens, terms, SLOTS)

    highest = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, HEAD_PAD], tl.float32)
    for start in range(0, tokens, BLOCK_N):
        j = start + tl.arange(0, BLOCK_N)
        in_row = (j < tokens)[:, None] & in_head[None, :]
        at = j[:, None] * qkv_stride_n + d[None, :]
        k = tl.load(base + qkv_stride_part + at, in_row, 0.0)
        v = tl.load(base + 2 * qkv_stride_part + at, in_row, 0.0)
        s = dot(q, tl.trans(k), tl.zeros([BLOCK_M, BLOCK_N], tl.float32), PRECISION)
        if RELATIVE:
            slots = one_hot_tile(j, GRID_H, GRID_W, CLS, SLOTS, dtype)
            if LOAD_TERMS:
                known = (i < tokens)[:, None] & (j < tokens)[None, :]
                s += load_terms(
                    mine, i[:, None], j[None, :], known, GRID_H, GRID_W, CLS, SLOTS
                )  # fmt: skip
            else:
                s = dot(terms, tl.trans(slots), s, PRECISION)
        s = tl.where((j < tokens)[None, :], s * scale2, float("-inf"))
        new = tl.maximum(highest, tl.max(s, 1))
        shrink = tl.exp2(highest - new)
        p = tl.exp2(s - new[:, None])
        total = total * shrink + tl.sum(p, 1)
        acc = acc * shrink[:, None]
        p = p.to(dtype)
        acc = dot(p, v, acc, PRECISION)
        if RELATIVE:
            sums = dot(p, slots, sums * shrink[:, None], PRECISION)
        highest = new
    if RELATIVE:
        if LOAD_TERMS:
            tl.debug_barrier()  # others may still read terms where the sums go
        mine = scratch + (batch * heads + head) * tokens * SLOTS
        store_slots(mine, i, tokens, sums, SLOTS)
        acc = add_tables_by_sums(
            acc, mine, tables + 2 * TABLE_ROWS * HEAD_DIM, i, i < tokens, GRID_H, GRID_W, CLS,
            TABLE_ROWS, ROWS, SLOTS, HEAD_DIM, HEAD_PAD, PRECISION, dtype, BLOCK_T,
        )  # fmt: skip
    acc = acc / total[:, None]
    tl.store(
        out + batch * out_stride_b + head * HEAD_DIM + i[:, None] * out_stride_n + d[None, :],
        acc.to(dtype),
        (i < tokens)[:, None] & in_head[None, :],
    )
    lse_row = (batch * heads + head) * tokens
    tl.store(lse + lse_row + i, (highest + tl.log2(total)) * 0.6931471805599453, i < tokens)
