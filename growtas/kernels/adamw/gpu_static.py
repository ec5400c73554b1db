"""adamw_static_ in Triton, where the library for CUDA devices was not built: the same launches over
the same tables as csrc/cuda/adamw_static.cu."""

from __future__ import annotations

import triton
import triton.language as tl

from growtas.kernels.adamw import static_table
from growtas.kernels.adamw.gpu_kernels import address, moved

# The columns of `targets`, int64; the addresses of a row's arrays first.
FIELDS = tl.constexpr(static_table.FIELDS)
PARAMETER = tl.constexpr(0)
GRADIENT = tl.constexpr(1)
EXP_AVG = tl.constexpr(2)
EXP_AVG_SQ = tl.constexpr(3)
COUNT = tl.constexpr(4)
SHADOW = tl.constexpr(5)
AVERAGE = tl.constexpr(6)
WEIGHTS = tl.constexpr(7)
FIRST_TILE = tl.constexpr(8)
ALIGNED = tl.constexpr(9)
SIZE = tl.constexpr(10)
COLUMN = tl.constexpr(14)
FACTOR = tl.constexpr(18)
ROW = tl.constexpr(22)
ACTIVE = tl.constexpr(23)
RATES = tl.constexpr(24)
SHELLS = tl.constexpr(static_table.SHELLS)
TILE = tl.constexpr(static_table.TILE)
PIECE = tl.constexpr(1024)  # of a tile, in registers at once

# Numbers that change with model and subnets, and pointers to what is read one by one, wherever it
# lies: one compilation serves all.
SCALARS = [
    "rates", "extents", "scale", "blend", "norm", "found_inf", "factor", "count", "tile_count",
    "subnets", "rows", "columns",
]  # fmt: skip


@triton.jit
def box_side(entry, row, valid, D: tl.constexpr):
    """Side D of what the subnet whose extents are at `row` samples of a target."""
    column = tl.load(entry + COLUMN + D, valid, 0)
    size = tl.load(entry + SIZE + D, valid, 0)
    side = tl.load(entry + FACTOR + D, valid, 0)
    side = side * tl.load(row + tl.maximum(column, 0), valid, 0)
    side = tl.where(column < 0, size, tl.minimum(side, size))
    active = tl.load(entry + ACTIVE, valid, -1)
    off = (active >= 0) & (tl.load(row + tl.maximum(active, 0), valid, 0) == 0)
    return tl.where(off, 0, side)


@triton.jit
def locate(entry, place):
    """The four indices of weights from their places."""
    d3 = tl.load(entry + SIZE + 3).to(tl.int32)
    d2 = tl.load(entry + SIZE + 2).to(tl.int32)
    d1 = tl.load(entry + SIZE + 1).to(tl.int32)
    rest = place // d3
    return rest // d2 // d1, rest // d2 % d1, rest % d2, place % d3


@triton.jit
def inside(box, i0, i1, i2, i3):
    """Which indices lie in the leading box at `box`, int32 [4]."""
    first = (i0 < tl.load(box)) & (i1 < tl.load(box + 1))
    return first & (i2 < tl.load(box + 2)) & (i3 < tl.load(box + 3))


@triton.jit
def square_sum_kernel(targets, tiles, frozen, partials):
    p = tl.load(tiles + tl.program_id(0))
    entry = targets + p * FIELDS
    start = (tl.program_id(0) - tl.load(entry + FIRST_TILE)).to(tl.int32) * TILE
    place = start + tl.arange(0, TILE)
    i0, i1, i2, i3 = locate(entry, place)
    free = (place < tl.load(entry + WEIGHTS)) & ~inside(frozen + p * 4, i0, i1, i2, i3)
    g = tl.load(address(entry, GRADIENT, tl.float32, 1) + place, free, 0.0).to(tl.float64)
    tl.store(partials + tl.program_id(0), tl.sum(g * g, 0))


@triton.jit(do_not_specialize=SCALARS)
def decision_kernel(
    targets, edges, steps, active, extents, scale, partials, norm, found_inf, factor, count,
    tile_count, subnets, rows, columns, largest,
    DENSE: tl.constexpr, MEASURE: tl.constexpr, SCALED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program: `conclude` and `decide` of csrc/cuda/adamw_static.h."""
    lane = tl.arange(0, BLOCK)
    inverse = 1.0
    if SCALED:
        inverse = 1.0 / tl.load(scale)
    times = inverse
    left_out = 0.0
    if MEASURE:
        total = tl.zeros([BLOCK], tl.float64)
        for start in range(0, tile_count, BLOCK):
            total += tl.load(partials + start + lane, start + lane < tile_count, 0.0)
        squares = tl.sum(total, 0)
        length = tl.sqrt(squares).to(tl.float32) * inverse
        tl.store(norm, length)
        ratio = largest / (length + 1e-6)
        times = tl.where(ratio > 1.0, times, times * ratio)  # NaN stays
        if SCALED:
            left_out = tl.where(squares < float("inf"), 0.0, 1.0)
    tl.store(factor, times)
    tl.store(found_inf, left_out)
    for start in range(0, count * SHELLS, BLOCK):
        own = start + lane
        valid = own < count * SHELLS
        before = valid & (own % SHELLS > 0)
        entry = targets + own // SHELLS * FIELDS
        done = tl.load(steps + own, valid, 0.0)
        moves = own < 0
        if DENSE:
            moves = done > 0
        for subnet in range(subnets):
            row = extents + (subnet * rows + tl.load(entry + ROW, valid, 0)) * columns
            read = valid
            outside = own < 0
            for d in tl.static_range(4):
                edge = tl.load(edges + own * 4 + d, valid, 0)
                side = tl.minimum(box_side(entry, row, valid, d), edge)
                read = read & (side > 0)
                outside = outside | (side > tl.load(edges + (own - 1) * 4 + d, before, 0))
            moves = moves | (read & outside)
        moves = moves & (left_out + tl.zeros([BLOCK], tl.float32) == 0.0)
        tl.store(active + own, moves.to(tl.int32), valid)
        tl.store(steps + own, done + moves.to(tl.float32), valid)


@triton.jit
def update_piece(
    piece, p, entry, frozen, edges, steps, active, rates, extents, blend, factor, subnets, rows,
    columns, MASKED: tl.constexpr, AVERAGES: tl.constexpr, ALIGN: tl.constexpr,
):  # fmt: skip
    start = (tl.program_id(0) - tl.load(entry + FIRST_TILE)).to(tl.int32) * TILE
    place = start + piece * PIECE + tl.arange(0, PIECE)
    exists = place < tl.load(entry + WEIGHTS)
    i0, i1, i2, i3 = locate(entry, place)
    count = tl.zeros([PIECE], tl.float32)  # of updates, this one included; 0: the weight stays
    if MASKED:
        sampled = place < 0
        for subnet in range(subnets):
            row = extents + (subnet * rows + tl.load(entry + ROW)) * columns
            own = (i0 < box_side(entry, row, True, 0)) & (i1 < box_side(entry, row, True, 1))
            own = own & (i2 < box_side(entry, row, True, 2))
            sampled = sampled | (own & (i3 < box_side(entry, row, True, 3)))
        on = tl.zeros([PIECE], tl.int32) + tl.load(active + p * SHELLS + SHELLS - 1)
        sampled = sampled & exists & (on != 0)
        counts = address(entry, COUNT, tl.float32, ALIGN) + place
        count = tl.where(sampled, tl.load(counts, sampled, 0.0) + 1.0, 0.0)
    else:
        for back in tl.static_range(SHELLS):
            s = p * SHELLS + SHELLS - 1 - back
            own = tl.load(steps + s) * tl.load(active + s).to(tl.float32)
            count = tl.where(inside(edges + s * 4, i0, i1, i2, i3), own, count)
    moves = exists & (count > 0) & ~inside(frozen + p * 4, i0, i1, i2, i3)
    rate = rates + tl.load(entry + RATES) * 8
    weights = address(entry, PARAMETER, tl.float32, ALIGN) + place
    first_moments = address(entry, EXP_AVG, tl.float32, ALIGN) + place
    second_moments = address(entry, EXP_AVG_SQ, tl.float32, ALIGN) + place
    w = tl.load(weights, exists if AVERAGES else moves, 0.0)
    g = tl.load(address(entry, GRADIENT, tl.float32, ALIGN) + place, moves, 0.0) * tl.load(factor)
    m = tl.load(first_moments, moves, 0.0)
    v = tl.load(second_moments, moves, 0.0)
    count = tl.where(moves, count, 1.0)
    after, m, v = moved(
        w, g, m, v, count, tl.load(rate), tl.load(rate + 1), tl.load(rate + 2), tl.load(rate + 3),
        tl.load(rate + 4), tl.load(rate + 5), tl.load(rate + 6), tl.load(rate + 7),
    )  # fmt: skip
    w = tl.where(moves, after, w)
    tl.store(first_moments, m, moves)
    tl.store(second_moments, v, moves)
    tl.store(weights, w, moves)
    if MASKED:
        tl.store(counts, count, moves)
    if tl.load(entry + SHADOW) != 0:
        tl.store(address(entry, SHADOW, tl.bfloat16, ALIGN) + place, w.to(tl.bfloat16), moves)
    if AVERAGES:
        share = tl.load(blend)
        averages = address(entry, AVERAGE, tl.float32, ALIGN) + place
        a = tl.load(averages, exists, 0.0)
        a = tl.where(share < 0.5, a + share * (w - a), w - (w - a) * (1.0 - share))
        tl.store(averages, a, exists)


@triton.jit(do_not_specialize=SCALARS)
def update_kernel(
    targets, tiles, frozen, edges, steps, active, rates, extents, blend, factor, subnets, rows,
    columns, MASKED: tl.constexpr, AVERAGES: tl.constexpr,
):  # fmt: skip
    p = tl.load(tiles + tl.program_id(0))
    entry = targets + p * FIELDS
    aligned = tl.load(entry + ALIGNED) != 0
    for piece in range(TILE // PIECE):
        if aligned:
            update_piece(
                piece, p, entry, frozen, edges, steps, active, rates, extents, blend, factor,
                subnets, rows, columns, MASKED, AVERAGES, 4,
            )  # fmt: skip
        else:
            update_piece(
                piece, p, entry, frozen, edges, steps, active, rates, extents, blend, factor,
                subnets, rows, columns, MASKED, AVERAGES, 1,
            )  # fmt: skip
