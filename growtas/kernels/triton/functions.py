"""What kernels of several operators compute alike."""

from __future__ import annotations

import triton
import triton.language as tl

from growtas.kernels.triton.support import interpreted

# The interpreter multiplies bfloat16 as if its bits were integers: there products are widened
# first, which changes nothing, since a product of two bfloat16 numbers is exact in float32.
WIDEN = tl.constexpr(interpreted())


@triton.jit
def dot(a, b, acc, PRECISION: tl.constexpr):
    """acc + a b, summed in float32; PRECISION counts for float32 operands only."""
    if WIDEN:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision=PRECISION)


@triton.jit
def gelu(x):
    """x Phi(x) with the exact normal distribution (erf), float32."""
    return x * (0.5 + 0.5 * tl.erf(x * 0.7071067811865476))


@triton.jit
def gelu_slope(x):
    """The derivative of `gelu`: Phi(x) + x phi(x)."""
    density = 0.3989422804014327 * tl.exp2(x * x * -0.7213475204444817)
    return 0.5 + 0.5 * tl.erf(x * 0.7071067811865476) + x * density


@triton.jit
def extent(value, DEVICE_EXTENTS: tl.constexpr, ALIGNMENT: tl.constexpr, at=0):
    """A size given as an int or, with DEVICE_EXTENTS, as a pointer to an int32 that lies `at`
    entries before it; known to the compiler as a multiple of ALIGNMENT."""
    if DEVICE_EXTENTS:
        value = tl.load(value + at)
    return aligned(value, ALIGNMENT)


@triton.jit
def tile_of_rows(tile, rows, BLOCK: tl.constexpr, DEVICE_EXTENTS: tl.constexpr):
    """Subnet, first row and end of the subnet's rows of a tile. With DEVICE_EXTENTS the batch may
    be that of several subnets, `rows` rows each, and no tile lies in two."""
    subnet = 0
    if DEVICE_EXTENTS:
        tiles = tl.cdiv(rows, BLOCK)
        subnet = tile // tiles
        tile -= subnet * tiles
    return subnet, subnet * rows + tile * BLOCK, (subnet + 1) * rows


@triton.jit
def last_to_arrive(counter, count):
    """Whether this is the last of `count` programs to get here. To the last, what all of them have
    stored before is visible, in loads with ``cache_modifier=".cg"``. The counter is 0 again then.

    The barrier puts every thread's stores before the release of the one thread that counts, and
    Triton hands its result to the others through another barrier, after its acquire. ".cg" reads
    the L2 cache, where all processors meet.
    """
    tl.debug_barrier()
    last = tl.atomic_add(counter, 1, sem="acq_rel", scope="gpu") == count - 1
    if last:
        tl.store(counter, 0)
    return last


@triton.jit
def aligned(value, ALIGNMENT: tl.constexpr):
    """value, known to the compiler as a multiple of ALIGNMENT. (`tl.multiple_of` says nothing about
    an argument of the kernel, and Triton itself looks for multiples of 16 only.)"""
    return value // ALIGNMENT * ALIGNMENT
