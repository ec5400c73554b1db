"""layer_norm on the GPU: one pass forward, one backward, parameter gradients in a fixed order."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from growtas.kernels.configs import Build, Config, architecture, choose
from growtas.kernels.layout import as_rows
from growtas.kernels.triton_functions import aligned, extent, tile_of_rows
from growtas.kernels.triton_support import power_of_two, unsupported

__all__ = ["backward_", "builds", "forward", "unsupported"]

PROGRAMS = 264  # of the backward: two for each of an H100's processors
FOLD = Config((32, 64), 4, 1)  # programs and columns per tile, where their sums are added
# Arguments that change from subnet to subnet: one compilation serves all values of one ALIGNMENT.
SIZES = [
    "rows", "width", "width_stride", "present_stride", "x_stride", "y_stride", "dy_stride",
    "dx_stride", "subnets", "programs",
]  # fmt: skip


@triton.jit(do_not_specialize=SIZES)
def layer_norm_forward_kernel(
    x,  # [rows, width] by row stride
    weight,
    bias,  # [width_max], the first `width` read
    y,  # [rows, width] by row stride
    mean,
    rstd,  # [rows] float32
    rows,  # of each subnet
    width,  # int or, with DEVICE_EXTENTS, int32 of each subnet; like the row strides, * ALIGNMENT
    width_stride,
    x_stride,
    y_stride,
    eps,
    DEVICE_EXTENTS: tl.constexpr,
    ALIGNMENT: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    subnet, first, end = tile_of_rows(tl.program_id(0), rows, BLOCK_R, DEVICE_EXTENTS)
    width = extent(width, DEVICE_EXTENTS, ALIGNMENT, subnet * width_stride)
    x_stride, y_stride = aligned(x_stride, ALIGNMENT), aligned(y_stride, ALIGNMENT)
    r = first + tl.arange(0, BLOCK_R)
    e = tl.arange(0, BLOCK_E)
    inside = (r < end)[:, None] & (e < width)[None, :]
    row = r.to(tl.int64)[:, None]
    values = tl.load(x + row * x_stride + e[None, :], inside, 0.0).to(tl.float32)
    centre = tl.sum(values, 1) / width
    difference = tl.where(inside, values - centre[:, None], 0.0)
    scale = 1.0 / tl.sqrt(tl.sum(difference * difference, 1) / width + eps)
    w = tl.load(weight + e, e < width, 0.0).to(tl.float32)
    b = tl.load(bias + e, e < width, 0.0).to(tl.float32)
    out = difference * scale[:, None] * w[None, :] + b[None, :]
    tl.store(y + row * y_stride + e[None, :], out.to(y.dtype.element_ty), inside)
    tl.store(mean + r, centre, r < end)
    tl.store(rstd + r, scale, r < end)


@triton.jit(do_not_specialize=SIZES)
def layer_norm_backward_kernel(
    dy,
    x,  # [rows, width] by row stride
    weight,
    mean,
    rstd,
    dx,  # [rows, width] by row stride
    partials,  # [programs, 2, BLOCK_E] float32: weight and bias gradient of a program's rows
    present,  # int32 of each subnet, read with PRESENT: 0 where the parameters have no part in dx
    rows,
    width,
    width_stride,  # as above
    present_stride,
    subnets,
    dy_stride,
    x_stride,
    dx_stride,
    PRESENT: tl.constexpr,
    DEVICE_EXTENTS: tl.constexpr,
    ALIGNMENT: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    dy_stride, x_stride = aligned(dy_stride, ALIGNMENT), aligned(x_stride, ALIGNMENT)
    dx_stride = aligned(dx_stride, ALIGNMENT)
    e = tl.arange(0, BLOCK_E)
    dweight = tl.zeros([BLOCK_E], tl.float32)
    dbias = tl.zeros([BLOCK_E], tl.float32)
    # Every program takes the same share of tiles, in order: its sums do not depend on the others.
    tiles = tl.cdiv(rows, BLOCK_R)
    share = tl.cdiv(subnets * tiles, tl.num_programs(0))
    first = tl.program_id(0) * share
    last = tl.minimum(first + share, subnets * tiles)
    for subnet in range(first // tiles, tl.cdiv(last, tiles)):
        columns = extent(width, DEVICE_EXTENTS, ALIGNMENT, subnet * width_stride)
        w = tl.load(weight + e, e < columns, 0.0).to(tl.float32)
        if PRESENT:
            w = tl.where(tl.load(present + subnet * present_stride) > 0, w, 0.0)
        base, end = subnet * tiles, (subnet + 1) * rows
        for tile in range(tl.maximum(first - base, 0), tl.minimum(last - base, tiles)):
            r = subnet * rows + tile * BLOCK_R + tl.arange(0, BLOCK_R)
            inside = (r < end)[:, None] & (e < columns)[None, :]
            row = r.to(tl.int64)[:, None]
            g = tl.load(dy + row * dy_stride + e[None, :], inside, 0.0).to(tl.float32)
            values = tl.load(x + row * x_stride + e[None, :], inside, 0.0).to(tl.float32)
            centre = tl.load(mean + r, r < end, 0.0)
            scale = tl.load(rstd + r, r < end, 0.0)
            normal = tl.where(inside, (values - centre[:, None]) * scale[:, None], 0.0)
            dweight += tl.sum(g * normal, 0)
            dbias += tl.sum(g, 0)
            g = g * w[None, :]
            average = tl.sum(g, 1) / columns
            slope = tl.sum(g * normal, 1) / columns
            gradient = (g - average[:, None] - normal * slope[:, None]) * scale[:, None]
            tl.store(dx + row * dx_stride + e[None, :], gradient.to(dx.dtype.element_ty), inside)
    mine = partials + tl.program_id(0) * 2 * BLOCK_E
    tl.store(mine + e, dweight)
    tl.store(mine + BLOCK_E + e, dbias)


@triton.jit(do_not_specialize=SIZES)
def layer_norm_parameter_gradient_kernel(
    partials,  # [programs, 2, BLOCK_E] float32
    dweight,
    dbias,  # [width_max], the first `width` added to
    programs,
    width,
    width_stride,  # as above
    subnets,
    WEIGHT: tl.constexpr,
    BIAS: tl.constexpr,
    DEVICE_EXTENTS: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    widest = extent(width, DEVICE_EXTENTS, 1)
    for subnet in range(1, subnets):
        widest = tl.maximum(widest, extent(width, DEVICE_EXTENTS, 1, subnet * width_stride))
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    for which in tl.static_range(2):
        total = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
        for start in range(0, programs, BLOCK_P):
            p = start + tl.arange(0, BLOCK_P)
            at = (p * 2 + which)[:, None] * BLOCK_E + c[None, :]
            total += tl.load(partials + at, (p < programs)[:, None] & (c < widest)[None, :], 0.0)
        added = tl.sum(total, 0)
        if which == 0 and WEIGHT:
            before = tl.load(dweight + c, c < widest, 0.0).to(tl.float32)
            tl.store(dweight + c, (before + added).to(dweight.dtype.element_ty), c < widest)
        if which == 1 and BIAS:
            before = tl.load(dbias + c, c < widest, 0.0).to(tl.float32)
            tl.store(dbias + c, (before + added).to(dbias.dtype.element_ty), c < widest)


class _Call:
    """How the kernels are launched for some width."""

    def __init__(self, x: Tensor, strides: tuple[int, ...], extents: Tensor | None) -> None:
        width = x.shape[-1]
        self.block_e = power_of_two(width)
        self.subnets = 1 if extents is None else len(extents)
        self.width: tuple[Any, int] = (
            (width, 0) if extents is None else (extents, extents.stride(0))
        )
        self.config = _config(architecture(x.device), self.block_e)
        self.device_extents = extents is not None
        self.tiles = {
            **_tiles(self.config, self.block_e),
            "DEVICE_EXTENTS": self.device_extents,
            "ALIGNMENT": math.gcd(*strides, 16 if extents is None else 8),
            "num_warps": self.config.warps,
        }


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    out_dtype: torch.dtype,
    extents: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """See :func:`growtas.kernels.layer_norm.reference.forward`.

    Args:
        extents: int32 ``[G]`` on the device: the width of each subnet, a multiple of 8 and at most
            x's last size, which then only is the pitch; beyond it nothing is read or written.
    """
    rows = as_rows(x)
    y = x.new_empty(x.shape, dtype=out_dtype)
    mean = x.new_empty(x.shape[:-1], dtype=torch.float32)
    rstd = torch.empty_like(mean)
    count, pitch = rows.shape
    if count:
        call = _Call(x, (rows.stride(0), pitch), extents)
        of_each = count // call.subnets
        layer_norm_forward_kernel[(call.subnets * triton.cdiv(of_each, call.config.blocks[0]),)](
            rows, weight, bias, y, mean, rstd, of_each, *call.width, rows.stride(0), pitch, eps,
            **call.tiles,
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
    extents: Tensor | None = None,
    present: Tensor | None = None,
) -> Tensor:
    """See :func:`growtas.kernels.layer_norm.reference.backward_`. Deterministic.

    Args:
        extents: as in :func:`forward`.
        present: int32 ``[G]``.
    """
    dy_rows, rows = as_rows(dy), as_rows(x)
    dx = x.new_empty(x.shape)
    count, pitch = rows.shape
    if count == 0:
        return dx
    call = _Call(x, (dy_rows.stride(0), rows.stride(0), pitch), extents)
    programs = min(PROGRAMS, triton.cdiv(count, call.config.blocks[0]))
    partials = mean.new_empty(programs, 2, call.block_e)
    layer_norm_backward_kernel[(programs,)](
        dy_rows, rows, weight, mean, rstd, dx, partials, partials if present is None else present,
        count // call.subnets, *call.width, 0 if present is None else present.stride(0),
        call.subnets, dy_rows.stride(0), rows.stride(0), pitch, PRESENT=present is not None,
        **call.tiles,
    )  # fmt: skip
    if grad_weight is not None or grad_bias is not None:
        layer_norm_parameter_gradient_kernel[(triton.cdiv(pitch, FOLD.blocks[1]),)](
            partials, partials if grad_weight is None else grad_weight,
            partials if grad_bias is None else grad_bias, programs, *call.width, call.subnets,
            WEIGHT=grad_weight is not None, BIAS=grad_bias is not None,
            DEVICE_EXTENTS=call.device_extents, BLOCK_E=call.block_e,
            BLOCK_P=FOLD.blocks[0], BLOCK_C=FOLD.blocks[1], num_warps=FOLD.warps,
        )  # fmt: skip
    return dx


def _config(architecture: int, block_e: int) -> Config:
    return choose(architecture, "layer_norm_kernel", torch.float32, (block_e,))


def _tiles(config: Config, block_e: int) -> dict[str, int]:
    return {"BLOCK_R": config.blocks[0], "BLOCK_E": block_e}


def builds(architecture: int) -> Iterator[Build]:
    """Widths of AutoFormer-S, -T, -B and beyond; the two alignments that their widths have; float32
    parameters with every dtype of activations; the width as a number and on the device."""
    for block_e in (512, 256, 1024, 4096):
        config = _config(architecture, block_e)
        for dtype in ("bf16", "fp16", "fp32"):
            for alignment, on_device in ((16, False), (8, False), (8, True)):
                how = f"{dtype} {block_e} aligned {alignment}" + " device" * on_device
                constants = {
                    "DEVICE_EXTENTS": on_device, "ALIGNMENT": alignment, **_tiles(config, block_e),
                }  # fmt: skip
                kernel = layer_norm_forward_kernel
                yield Build(how, kernel, _types(kernel, dtype, constants), constants, config)
                constants = constants | {"PRESENT": on_device}
                kernel = layer_norm_backward_kernel
                yield Build(how, kernel, _types(kernel, dtype, constants), constants, config)
        kernel = layer_norm_parameter_gradient_kernel
        for on_device in (False, True):
            constants = {
                "WEIGHT": True, "BIAS": True, "DEVICE_EXTENTS": on_device, "BLOCK_E": block_e,
                "BLOCK_P": FOLD.blocks[0], "BLOCK_C": FOLD.blocks[1],
            }  # fmt: skip
            how = f"{block_e}" + " device" * on_device
            yield Build(how, kernel, _types(kernel, "bf16", constants), constants, FOLD)


def _types(kernel: Any, dtype: str, constants: dict[str, Any]) -> dict[str, str]:
    types = dict.fromkeys(kernel.arg_names, "*fp32:16")
    types |= dict.fromkeys(("x", "y", "dy", "dx"), f"*{dtype}:16")
    types |= dict.fromkeys(SIZES, "i32") | {"eps": "fp32"}
    if constants["DEVICE_EXTENTS"]:
        types["width"] = types["present"] = "*i32"
    return {name: types[name] for name in kernel.arg_names if name not in constants}
