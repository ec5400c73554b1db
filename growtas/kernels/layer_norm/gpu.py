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
from growtas.kernels.triton_functions import aligned, extent
from growtas.kernels.triton_support import power_of_two, unsupported

__all__ = ["backward_", "builds", "forward", "unsupported"]

PROGRAMS = 264  # of the backward: two for each of an H100's processors
FOLD = Config((32, 64), 4, 1)  # programs and columns per tile, where their sums are added
# Arguments that change from subnet to subnet: one compilation serves all values of one ALIGNMENT.
SIZES = ["rows", "width", "x_stride", "y_stride", "dy_stride", "dx_stride", "programs"]


@triton.jit(do_not_specialize=SIZES)
def layer_norm_forward_kernel(
    x,  # [rows, width] by row stride
    weight,
    bias,  # [width_max], the first `width` read
    y,  # [rows, width] by row stride
    mean,
    rstd,  # [rows] float32
    rows,
    width,  # int or, with DEVICE_EXTENTS, pointer to int32; like the strides, times ALIGNMENT
    x_stride,
    y_stride,
    eps,
    DEVICE_EXTENTS: tl.constexpr,
    ALIGNMENT: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    width = extent(width, DEVICE_EXTENTS, ALIGNMENT)
    x_stride, y_stride = aligned(x_stride, ALIGNMENT), aligned(y_stride, ALIGNMENT)
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


@triton.jit(do_not_specialize=SIZES)
def layer_norm_backward_kernel(
    dy,
    x,  # [rows, width] by row stride
    weight,
    mean,
    rstd,
    dx,  # [rows, width] by row stride
    partials,  # [programs, 2, BLOCK_E] float32: weight and bias gradient of a program's rows
    rows,
    width,  # as above
    dy_stride,
    x_stride,
    dx_stride,
    DEVICE_EXTENTS: tl.constexpr,
    ALIGNMENT: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    width = extent(width, DEVICE_EXTENTS, ALIGNMENT)
    dy_stride, x_stride = aligned(dy_stride, ALIGNMENT), aligned(x_stride, ALIGNMENT)
    dx_stride = aligned(dx_stride, ALIGNMENT)
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


@triton.jit(do_not_specialize=SIZES)
def layer_norm_parameter_gradient_kernel(
    partials,  # [programs, 2, BLOCK_E] float32
    dweight,
    dbias,  # [width_max], the first `width` added to
    programs,
    width,  # as above
    WEIGHT: tl.constexpr,
    BIAS: tl.constexpr,
    DEVICE_EXTENTS: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    width = extent(width, DEVICE_EXTENTS, 1)
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


class _Call:
    """How the kernels are launched for some width."""

    def __init__(self, x: Tensor, strides: tuple[int, ...], extents: Tensor | None) -> None:
        width = x.shape[-1]
        self.block_e = power_of_two(width)
        self.width: Any = width if extents is None else extents
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
        extents: int32 ``[1]`` on the device: the width of this subnet, a multiple of 8 and at most
            x's last size, which then only is the pitch; beyond it nothing is read or written.
    """
    rows = as_rows(x)
    y = x.new_empty(x.shape, dtype=out_dtype)
    mean = x.new_empty(x.shape[:-1], dtype=torch.float32)
    rstd = torch.empty_like(mean)
    count, pitch = rows.shape
    if count:
        call = _Call(x, (rows.stride(0), pitch), extents)
        layer_norm_forward_kernel[(triton.cdiv(count, call.config.blocks[0]),)](
            rows, weight, bias, y, mean, rstd, count, call.width, rows.stride(0), pitch, eps,
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
) -> Tensor:
    """See :func:`growtas.kernels.layer_norm.reference.backward_`. Deterministic.

    Args:
        extents: as in :func:`forward`.
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
        dy_rows, rows, weight, mean, rstd, dx, partials, count, call.width,
        dy_rows.stride(0), rows.stride(0), pitch, **call.tiles,
    )  # fmt: skip
    if grad_weight is not None or grad_bias is not None:
        layer_norm_parameter_gradient_kernel[(triton.cdiv(pitch, FOLD.blocks[1]),)](
            partials, partials if grad_weight is None else grad_weight,
            partials if grad_bias is None else grad_bias, programs, call.width,
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
                for kernel in (layer_norm_forward_kernel, layer_norm_backward_kernel):
                    types = _types(kernel, dtype, constants)
                    yield Build(how, kernel, types, constants, config)
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
        types["width"] = "*i32"
    return {name: types[name] for name in kernel.arg_names if name not in constants}
