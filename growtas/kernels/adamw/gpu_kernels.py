"""AdamW and the gradient norm over boxes of many tensors, found through a table on the device.

An entry of the table is (a part of) one box of one parameter: runs of neighbouring weights, laid
out over at most three dimensions. A program takes a tile of one entry; from its number it finds
the entry by the entries' first tasks.
"""

from __future__ import annotations

import triton
import triton.language as tl

# The columns of the table, int64; addresses first.
PARAMETER = tl.constexpr(0)
GRADIENT = tl.constexpr(1)
EXP_AVG = tl.constexpr(2)
EXP_AVG_SQ = tl.constexpr(3)
COUNT = tl.constexpr(4)
SHADOW = tl.constexpr(5)
STEP = tl.constexpr(6)  # of the float32 number of updates, where there are no counts
ALIGNED = tl.constexpr(7)  # every address is a multiple of 16, all below of 4 weights
START = tl.constexpr(8)
RUN = tl.constexpr(9)
RUNS = tl.constexpr(10)
SIZE_1 = tl.constexpr(11)  # run r starts at START + STRIDE_0 * (r // (SIZE_1 * SIZE_2))
SIZE_2 = tl.constexpr(12)  # + STRIDE_1 * (r // SIZE_2 % SIZE_1) + STRIDE_2 * (r % SIZE_2)
STRIDE_0 = tl.constexpr(13)
STRIDE_1 = tl.constexpr(14)
STRIDE_2 = tl.constexpr(15)
FIELDS = tl.constexpr(16)


@triton.jit
def find(first, table, ENTRIES: tl.constexpr):
    """This program's entry and its task within it. A task beyond the last one leads to the entry
    after the last one, which has no runs."""
    starts = tl.load(first + tl.arange(0, ENTRIES))
    index = tl.sum((starts <= tl.program_id(0)).to(tl.int32), 0) - 1
    return table + index * FIELDS, tl.program_id(0) - tl.load(first + index)


@triton.jit
def tile(entry, task, ALIGN: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr):
    """[BLOCK_R, BLOCK_C] offsets from an array's address, and which of them the entry has.

    What is divided is int32, which all counts of runs and sizes fit (tasks are int32, too): a
    division of int64 is a call on the GPU, around which registers are spilled.
    """
    run = tl.multiple_of(tl.load(entry + RUN), ALIGN).to(tl.int32)
    across = tl.cdiv(run, BLOCK_C)
    r = task // across * BLOCK_R + tl.arange(0, BLOCK_R)
    c = task % across * BLOCK_C + tl.arange(0, BLOCK_C)
    size_1 = tl.load(entry + SIZE_1).to(tl.int32)
    size_2 = tl.load(entry + SIZE_2).to(tl.int32)
    start = tl.multiple_of(tl.load(entry + START), ALIGN)
    start += r // (size_1 * size_2) * tl.multiple_of(tl.load(entry + STRIDE_0), ALIGN)
    start += r // size_2 % size_1 * tl.multiple_of(tl.load(entry + STRIDE_1), ALIGN)
    start += r % size_2 * tl.multiple_of(tl.load(entry + STRIDE_2), ALIGN)
    inside = (r < tl.load(entry + RUNS))[:, None] & (c < run)[None, :]
    return start[:, None] + c[None, :], inside


@triton.jit
def address(entry, FIELD: tl.constexpr, dtype: tl.constexpr, ALIGN: tl.constexpr):
    """A pointer that an entry of a table holds."""
    return tl.multiple_of(tl.load(entry + FIELD).to(tl.pointer_type(dtype)), 4 * ALIGN)


@triton.jit
def minus_power(log_base, exponent):
    """1 - base**exponent, without cancellation where it is small (Taylor below 1/2)."""
    x = -log_base * exponent
    series = 1.0 - x / 8.0
    for n in tl.static_range(7, 1, -1):
        series = 1.0 - x / n * series
    return tl.where(x < 0.5, x * series, 1.0 - tl.exp(-x))


@triton.jit
def moved(w, g, m, v, steps, lr, decay, blend_1, beta_2, blend_2, log_beta_1, log_beta_2, eps):
    """Weights and both moments after a step: Loshchilov and Hutter, algorithm 2.

    `steps`: updates, this one included, of each weight or of all; the rates as `Rates.numbers`.
    """
    m += (g - m) * blend_1
    v = v * beta_2 + g * g * blend_2
    root = tl.sqrt_rn(tl.div_rn(v, minus_power(log_beta_2, steps) + tl.zeros_like(v)))
    step_size = lr / minus_power(log_beta_1, steps)
    w = w * (1.0 - lr * decay) - tl.div_rn(m, root + eps) * step_size
    return w, m, v


@triton.jit
def update(
    entry, task, factor, lr, decay, blend_1, beta_2, blend_2, log_beta_1, log_beta_2, eps,
    COUNTS: tl.constexpr, SHADOWS: tl.constexpr, CLIP: tl.constexpr,
    ALIGN: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """One tile of weights, moments read and written once."""
    at, inside = tile(entry, task, ALIGN, BLOCK_R, BLOCK_C)
    parameters = address(entry, PARAMETER, tl.float32, ALIGN) + at
    first_moments = address(entry, EXP_AVG, tl.float32, ALIGN) + at
    second_moments = address(entry, EXP_AVG_SQ, tl.float32, ALIGN) + at
    w = tl.load(parameters, inside, 0.0)
    g = tl.load(address(entry, GRADIENT, tl.float32, ALIGN) + at, inside, 0.0)
    m = tl.load(first_moments, inside, 0.0)
    v = tl.load(second_moments, inside, 0.0)
    if CLIP:
        g = g * factor
    if COUNTS:
        counts = address(entry, COUNT, tl.float32, ALIGN) + at
        steps = tl.load(counts, inside, 0.0) + 1.0
        tl.store(counts, steps, inside)
    else:
        steps = tl.load(address(entry, STEP, tl.float32, 1))
    w, m, v = moved(
        w, g, m, v, steps, lr, decay, blend_1, beta_2, blend_2, log_beta_1, log_beta_2, eps
    )
    tl.store(first_moments, m, inside)
    tl.store(second_moments, v, inside)
    tl.store(parameters, w, inside)
    if SHADOWS:
        shadows = address(entry, SHADOW, tl.bfloat16, ALIGN) + at
        tl.store(shadows, w.to(tl.bfloat16), inside)


@triton.jit(do_not_specialize=["lr_at", "norm_at"])
def adamw_kernel(
    first,  # [ENTRIES] int32: each entry's first task; past the last entry, the number of tasks,
    table,  # [ENTRIES, FIELDS] int64                    then more than any task
    lr_at,  # float32 [1], read with DEVICE_LR
    norm_at,  # float32 [1], read with CLIP
    largest,  # norm
    lr,
    decay,
    blend_1,
    beta_2,
    blend_2,
    log_beta_1,
    log_beta_2,
    eps,
    COUNTS: tl.constexpr,
    SHADOWS: tl.constexpr,
    CLIP: tl.constexpr,
    DEVICE_LR: tl.constexpr,
    ENTRIES: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    entry, task = find(first, table, ENTRIES)
    if DEVICE_LR:
        lr = tl.load(lr_at)
    factor = 1.0
    if CLIP:
        factor = largest / (tl.load(norm_at) + 1e-6)
        factor = tl.where(factor > 1.0, 1.0, factor)  # NaN stays
    if tl.load(entry + ALIGNED) != 0:
        update(
            entry, task, factor, lr, decay, blend_1, beta_2, blend_2, log_beta_1, log_beta_2, eps,
            COUNTS, SHADOWS, CLIP, 4, BLOCK_R, BLOCK_C,
        )  # fmt: skip
    else:
        update(
            entry, task, factor, lr, decay, blend_1, beta_2, blend_2, log_beta_1, log_beta_2, eps,
            COUNTS, SHADOWS, CLIP, 1, BLOCK_R, BLOCK_C,
        )  # fmt: skip


@triton.jit
def square_sum(
    entry, task, ALIGN: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr
):  # fmt: skip
    at, inside = tile(entry, task, ALIGN, BLOCK_R, BLOCK_C)
    g = tl.load(address(entry, GRADIENT, tl.float32, ALIGN) + at, inside, 0.0)
    return tl.sum(tl.sum(g * g, 1), 0)


@triton.jit
def gradient_norm_partial_kernel(
    first,
    table,
    partials,  # [programs] float32, written
    ENTRIES: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """The sum of squares of every task's gradients."""
    entry, task = find(first, table, ENTRIES)
    if tl.load(entry + ALIGNED) != 0:
        tl.store(partials + tl.program_id(0), square_sum(entry, task, 4, BLOCK_R, BLOCK_C))
    else:
        tl.store(partials + tl.program_id(0), square_sum(entry, task, 1, BLOCK_R, BLOCK_C))


@triton.jit(do_not_specialize=["count"])
def gradient_norm_kernel(
    partials,
    norm,  # [1] float32, written
    count,
    BLOCK: tl.constexpr,
):
    """The root of all partial sums, by one program, in their order."""
    total = tl.zeros([BLOCK], tl.float32)
    for start in range(0, count, BLOCK):
        at = start + tl.arange(0, BLOCK)
        total += tl.load(partials + at, at < count, 0.0)
    tl.store(norm, tl.sqrt_rn(tl.sum(total, 0)))
