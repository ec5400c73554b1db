"""What the attention kernels share: the slots of keys on the grid, and the rows of the tables.

A query's relative term on the keys is a row term plus a column term. Keys get slots: 0 .. H - 1 for
their grid row and H for the class token, then H + 1 .. H + W for their column and H + W + 1 again
for the class token, so a key has two slots and a query H + W + 2 terms. A key tile takes its terms
by one product with a one-hot tile made in registers from the keys' indices; sums of a row of
probabilities by slot are a product with the same tile. Terms come from the query's products with
all table rows by one gather per query tile, and slot sums go back to table rows by another.

Products of float32 have no tensor cores and keep a row of each operand in registers: with many
slots (``LOAD_TERMS``) a key tile instead loads its terms, two for each query and key.
"""

from __future__ import annotations

import triton
import triton.language as tl

from growtas.kernels.triton.functions import dot

# Arguments that change from subnet to subnet, the address of an extent with the block: one
# compilation serves all their values. What the compiler has to know of the strides, the head dim
# says.
SIZES = [
    "extents", "extent_stride", "images", "qkv_stride_b", "qkv_stride_n", "qkv_stride_part",
    "out_stride_b", "out_stride_n", "heads", "tokens",
]  # fmt: skip


@triton.jit
def program_place(program, tiles, heads):
    """Tile, head and image of a program. Programs of one head follow each other: its keys and
    values stay in the L2 cache."""
    sequence = program // tiles
    return program % tiles, sequence % heads, sequence // heads


@triton.jit
def heads_of(image, extents, extent_stride, images):
    """Heads of an image's subnet: so many images in a row have an extent of their own."""
    return tl.load(extents + image // images * extent_stride)


@triton.jit
def key_slots(j, GRID_H: tl.constexpr, GRID_W: tl.constexpr, CLS: tl.constexpr):
    """The slots of key tokens j: that of their row and that of their column."""
    patch = j - CLS
    token = patch < 0
    row = tl.where(token, GRID_H, patch // GRID_W)
    return row, tl.where(token, GRID_W, patch % GRID_W) + GRID_H + 1


@triton.jit
def load_terms(
    terms,  # pointer to [tokens, SLOTS]
    i,  # [M, 1] or [1, M] query tokens
    j,  # [1, N] or [N, 1] key tokens
    inside,  # [M, N] or [N, M]: queries and keys that exist
    GRID_H: tl.constexpr,
    GRID_W: tl.constexpr,
    CLS: tl.constexpr,
    SLOTS: tl.constexpr,
):
    """float32 like `inside`: what the keys' slots add to the queries' products."""
    row, column = key_slots(j, GRID_H, GRID_W, CLS)
    at = terms + i * SLOTS
    of_row = tl.load(at + row, inside, 0.0)
    return of_row.to(tl.float32) + tl.load(at + column, inside, 0.0).to(tl.float32)


@triton.jit
def one_hot_tile(
    j,  # [N] key tokens
    GRID_H: tl.constexpr,
    GRID_W: tl.constexpr,
    CLS: tl.constexpr,
    SLOTS: tl.constexpr,
    dtype: tl.constexpr,
):
    """[N, SLOTS]: 1 in the two slots of every key."""
    row, column = key_slots(j, GRID_H, GRID_W, CLS)
    slot = tl.arange(0, SLOTS)[None, :]
    return tl.where((row[:, None] == slot) | (column[:, None] == slot), 1.0, 0.0).to(dtype)


@triton.jit
def query_place(i, GRID_W: tl.constexpr, CLS: tl.constexpr):
    """Grid row, grid column and whether it is the class token, of query tokens i."""
    patch = tl.maximum(i - CLS, 0)
    return patch // GRID_W, patch % GRID_W, i < CLS


@triton.jit
def load_rows(
    tables,  # the two tables of a side, [2 * TABLE_ROWS, HEAD_DIM] contiguous
    row,  # [T]
    TABLE_ROWS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HEAD_PAD: tl.constexpr,
    dtype: tl.constexpr,
):
    """[T, HEAD_PAD], zeros beyond."""
    column = tl.arange(0, HEAD_PAD)[None, :]
    inside = (row < 2 * TABLE_ROWS)[:, None] & (column < HEAD_DIM)
    return tl.load(tables + row[:, None] * HEAD_DIM + column, inside, 0.0).to(dtype)


@triton.jit
def terms_by_slot(
    vectors,  # [M, HEAD_PAD]: of the queries
    tables,  # the two of a side
    i,  # [M] query tokens
    GRID_H: tl.constexpr,
    GRID_W: tl.constexpr,
    CLS: tl.constexpr,
    TABLE_ROWS: tl.constexpr,
    ROWS: tl.constexpr,
    SLOTS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HEAD_PAD: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_T: tl.constexpr,  # table rows of one product
):
    """[M, SLOTS] in the vectors' dtype: what the keys of each slot add to the query's product."""
    REACH: tl.constexpr = TABLE_ROWS // 2 - 1
    y, x, token = query_place(i, GRID_W, CLS)
    slot = tl.arange(0, SLOTS)[None, :]
    is_row = slot <= GRID_H
    place = tl.where(is_row, y[:, None], x[:, None])
    local = tl.where(is_row, slot, slot - (GRID_H + 1))
    of_token = token[:, None] | (local == tl.where(is_row, GRID_H, GRID_W))
    offset = tl.minimum(tl.maximum(local - place, -REACH), REACH)
    row = tl.where(of_token, 0, offset + REACH + 1) + tl.where(is_row, 0, TABLE_ROWS)
    row = tl.where(slot < GRID_H + GRID_W + 2, row, 0)
    terms = tl.zeros([i.shape[0], SLOTS], tl.float32)
    for first in range(0, ROWS, BLOCK_T):
        rows = load_rows(
            tables, first + tl.arange(0, BLOCK_T), TABLE_ROWS, HEAD_DIM, HEAD_PAD, vectors.dtype
        )
        zeros = tl.zeros([i.shape[0], BLOCK_T], tl.float32)
        products = dot(vectors, tl.trans(rows), zeros, PRECISION)
        here = (row >= first) & (row < first + BLOCK_T)
        terms = tl.where(here, tl.gather(products, tl.where(here, row - first, 0), 1), terms)
    return terms.to(vectors.dtype)


@triton.jit
def add_tables_by_sums(
    acc,  # [M, HEAD_PAD]
    sums,
    tables,  # the two of a side
    i,
    inside,
    GRID_H: tl.constexpr,
    GRID_W: tl.constexpr,
    CLS: tl.constexpr,
    TABLE_ROWS: tl.constexpr,
    ROWS: tl.constexpr,
    SLOTS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HEAD_PAD: tl.constexpr,
    PRECISION: tl.constexpr,
    dtype: tl.constexpr,  # of the product
    BLOCK_T: tl.constexpr,
):
    """acc plus every table row times its sum over the keys: see `load_sums_by_row`."""
    for first in range(0, ROWS, BLOCK_T):
        row = first + tl.arange(0, BLOCK_T)
        by_row = load_sums_by_row(
            sums, i, inside, row, GRID_H, GRID_W, CLS, TABLE_ROWS, SLOTS
        )  # fmt: skip
        rows = load_rows(tables, row, TABLE_ROWS, HEAD_DIM, HEAD_PAD, dtype)
        acc = dot(by_row.to(dtype), rows, acc, PRECISION)
    return acc


@triton.jit
def load_sums_by_row(
    sums,  # pointer to [tokens, SLOTS] float32: of every query, sums over the keys of each slot
    i,  # [M] query tokens
    inside,  # [M] queries that exist
    row,  # [T] rows of the two tables of a side
    GRID_H: tl.constexpr,
    GRID_W: tl.constexpr,
    CLS: tl.constexpr,
    TABLE_ROWS: tl.constexpr,
    SLOTS: tl.constexpr,
):
    """[M, T]: the same sums by table row. Keys beyond the reach share the outermost rows."""
    REACH: tl.constexpr = TABLE_ROWS // 2 - 1
    y, x, token = query_place(i, GRID_W, CLS)
    row = row[None, :]
    of_y = row < TABLE_ROWS
    local = tl.where(of_y, row, row - TABLE_ROWS)
    extent = tl.where(of_y, GRID_H, GRID_W)
    start = tl.where(of_y, 0, GRID_H + 1)
    # The class token's slot is the last of its axis: distance rows never reach it.
    key = local - (REACH + 1) + tl.where(of_y, y[:, None], x[:, None])
    single = (local > 0) & (local <= 2 * REACH + 1) & (key >= 0) & (key < extent)
    single = single & (token[:, None] == 0)
    single = single | (local == 0)
    key = tl.where(local == 0, extent, key) + start
    at = sums + i[:, None] * SLOTS
    by_row = tl.load(at + key, single & inside[:, None] & (row < 2 * TABLE_ROWS), 0.0)
    if (GRID_H - 1 > REACH) | (GRID_W - 1 > REACH) | (CLS == 1):
        slot = tl.arange(0, SLOTS)[None, :]
        each = tl.load(at + slot, inside[:, None] & (slot < GRID_H + GRID_W + 2), 0.0)
        by_row = add_shared(by_row, row, each, y, token, 0, GRID_H, 0, REACH, CLS, SLOTS)
        by_row = add_shared(
            by_row, row, each, x, token, GRID_H + 1, GRID_W, TABLE_ROWS, REACH, CLS, SLOTS
        )
    return by_row


@triton.jit
def add_shared(
    by_row,  # [M, T]
    row,  # [1, T]
    sums,  # [M, SLOTS]
    place,  # [M]: of the query on this axis
    token,
    START: tl.constexpr,  # first slot of the axis
    EXTENT: tl.constexpr,
    BASE: tl.constexpr,  # first row of the axis's table
    REACH: tl.constexpr,
    CLS: tl.constexpr,
    SLOTS: tl.constexpr,
):
    """Adds what more than one slot brings to a row of one axis's table: beyond the reach, and all
    patches for the class token as query."""
    slot = tl.arange(0, SLOTS)[None, :] - START
    patch = (slot >= 0) & (slot < EXTENT)
    if CLS == 1:
        all_patches = tl.sum(tl.where(patch & token[:, None], sums, 0.0), 1)
        by_row += tl.where(row == BASE, all_patches[:, None], 0.0)
    if EXTENT - 1 > REACH:
        offset = slot - place[:, None]
        patch = patch & (token[:, None] == 0)
        low = tl.sum(tl.where(patch & (offset < -REACH), sums, 0.0), 1)
        high = tl.sum(tl.where(patch & (offset > REACH), sums, 0.0), 1)
        by_row += tl.where(row == BASE + 1, low[:, None], 0.0)
        by_row += tl.where(row == BASE + 2 * REACH + 1, high[:, None], 0.0)
    return by_row
