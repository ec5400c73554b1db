"""layer_norm on the GPU: one launch forward, one backward, sums in a fixed order."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from growtas.kernels.call import Grads
from growtas.kernels.layer_norm.api import LayerNormCall
from growtas.kernels.layout import as_rows
from growtas.kernels.triton.configs import architecture, choose
from growtas.kernels.triton.counters import counters
from growtas.kernels.triton.functions import aligned, extent, last_to_arrive, tile_of_rows
from growtas.kernels.triton.launch import launch
from growtas.kernels.triton.support import power_of_two

SEVERAL_SUBNETS = True
PROGRAMS = 264  # of the backward: two for each of an H100's processors
TEAM = 16  # programs whose sums one of them adds up: about the root of their number
# Arguments that change from subnet to subnet, the address of an extent with the block: one
# compilation serves all values of one ALIGNMENT.
SIZES = [
    "rows", "width", "width_stride", "present", "present_stride", "x_stride", "y_stride",
    "dy_stride", "dx_stride", "added_stride", "subnets",
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


@triton.jit
def sum_of_rows(values, count, stride, BLOCK_R: tl.constexpr, BLOCK_E: tl.constexpr):
    """Of what other programs have stored, always in the same order."""
    total = tl.zeros([BLOCK_E], tl.float32)
    e = tl.arange(0, BLOCK_E)
    for start in range(0, count, BLOCK_R):
        r = start + tl.arange(0, BLOCK_R)
        at = values + r[:, None] * stride + e[None, :]
        total += tl.sum(tl.load(at, (r < count)[:, None], 0.0, cache_modifier=".cg"), 0)
    return total


@triton.jit(do_not_specialize=SIZES)
def layer_norm_backward_kernel(
    dy,
    x,  # [rows, width] by row stride
    weight,
    mean,
    rstd,
    dx,  # [rows, width] by row stride
    partials,  # [programs + teams, 2, BLOCK_E] float32: weight and bias gradient of their rows
    counters,  # [1 + teams] int32 zeros: of teams, and of programs of each team
    dweight,
    dbias,  # [width_max], as far as the widest subnet goes added to
    added,  # [rows, width] by row stride, added to dx with ADDED
    present,  # int32 of each subnet, read with PRESENT: 0 where the parameters have no part in dx
    rows,
    width,
    width_stride,  # as above
    present_stride,
    subnets,
    dy_stride,
    x_stride,
    dx_stride,
    added_stride,
    WEIGHT: tl.constexpr,
    BIAS: tl.constexpr,
    ADDED: tl.constexpr,
    PRESENT: tl.constexpr,
    DEVICE_EXTENTS: tl.constexpr,
    ALIGNMENT: tl.constexpr,
    TEAM: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    dy_stride, x_stride = aligned(dy_stride, ALIGNMENT), aligned(x_stride, ALIGNMENT)
    dx_stride, added_stride = aligned(dx_stride, ALIGNMENT), aligned(added_stride, ALIGNMENT)
    e = tl.arange(0, BLOCK_E)
    dweight_sum = tl.zeros([BLOCK_E], tl.float32)
    dbias_sum = tl.zeros([BLOCK_E], tl.float32)
    # Every program takes the same share of tiles, in order: its sums do not depend on the others.
    program, programs = tl.program_id(0), tl.num_programs(0)
    tiles = subnets * tl.cdiv(rows, BLOCK_R)
    share = tl.cdiv(tiles, programs)
    for tile in range(program * share, tl.minimum((program + 1) * share, tiles)):
        subnet, first, end = tile_of_rows(tile, rows, BLOCK_R, DEVICE_EXTENTS)
        columns = extent(width, DEVICE_EXTENTS, ALIGNMENT, subnet * width_stride)
        r = first + tl.arange(0, BLOCK_R)
        inside = (r < end)[:, None] & (e < columns)[None, :]
        row = r.to(tl.int64)[:, None]
        g = tl.load(dy + row * dy_stride + e[None, :], inside, 0.0).to(tl.float32)
        values = tl.load(x + row * x_stride + e[None, :], inside, 0.0).to(tl.float32)
        centre = tl.load(mean + r, r < end, 0.0)
        scale = tl.load(rstd + r, r < end, 0.0)
        normal = tl.where(inside, (values - centre[:, None]) * scale[:, None], 0.0)
        dweight_sum += tl.sum(g * normal, 0)
        dbias_sum += tl.sum(g, 0)
        w = tl.load(weight + e, e < columns, 0.0).to(tl.float32)
        if PRESENT:
            w = tl.where(tl.load(present + subnet * present_stride) > 0, w, 0.0)
        g = g * w[None, :]
        average = tl.sum(g, 1) / columns
        slope = tl.sum(g * normal, 1) / columns
        gradient = (g - average[:, None] - normal * slope[:, None]) * scale[:, None]
        if ADDED:
            at = added + row * added_stride + e[None, :]
            gradient += tl.load(at, inside, 0.0).to(tl.float32)
        tl.store(dx + row * dx_stride + e[None, :], gradient.to(dx.dtype.element_ty), inside)

    if WEIGHT or BIAS:
        # The last program of a team adds up the team's sums, the last such one those of the teams.
        row_size = 2 * BLOCK_E
        mine = partials + program * row_size + e
        tl.store(mine, dweight_sum)
        tl.store(mine + BLOCK_E, dbias_sum)
        team, teams = program // TEAM, tl.cdiv(programs, TEAM)
        members = tl.minimum(programs - team * TEAM, TEAM)
        if last_to_arrive(counters + 1 + team, members):
            theirs = partials + team * TEAM * row_size
            ours = partials + (programs + team) * row_size + e
            tl.store(ours, sum_of_rows(theirs, members, row_size, BLOCK_R, BLOCK_E))
            of_bias = sum_of_rows(theirs + BLOCK_E, members, row_size, BLOCK_R, BLOCK_E)
            tl.store(ours + BLOCK_E, of_bias)
            if last_to_arrive(counters, teams):
                widest = extent(width, DEVICE_EXTENTS, 1)
                for subnet in range(1, subnets):
                    other = extent(width, DEVICE_EXTENTS, 1, subnet * width_stride)
                    widest = tl.maximum(widest, other)
                all_teams = partials + programs * row_size
                if WEIGHT:
                    total = sum_of_rows(all_teams, teams, row_size, BLOCK_R, BLOCK_E)
                    total += tl.load(dweight + e, e < widest, 0.0).to(tl.float32)
                    tl.store(dweight + e, total.to(dweight.dtype.element_ty), e < widest)
                if BIAS:
                    all_teams += BLOCK_E
                    total = sum_of_rows(all_teams, teams, row_size, BLOCK_R, BLOCK_E)
                    total += tl.load(dbias + e, e < widest, 0.0).to(tl.float32)
                    tl.store(dbias + e, total.to(dbias.dtype.element_ty), e < widest)


class _Launcher:
    """How the kernels are launched for the width of a call."""

    def __init__(self, call: LayerNormCall, strides: tuple[int, ...], backward: bool) -> None:
        width, extents = call.x.shape[-1], call.extents
        self.block_e = power_of_two(width)
        self.subnets = 1 if extents is None else len(extents)
        self.width: tuple[Any, int] = (
            (width, 0) if extents is None else (extents, extents.stride(0))
        )
        self.config = choose(
            architecture(call.x.device), "layer_norm_kernel", torch.float32, (self.block_e,)
        )
        # Backward a program holds several tiles at once: of half as many rows.
        self.block_r = max(1, self.config.blocks[0] // 2) if backward else self.config.blocks[0]
        self.constants = {
            "DEVICE_EXTENTS": extents is not None,
            "ALIGNMENT": math.gcd(*strides, 16 if extents is None else 8),
            "BLOCK_R": self.block_r,
            "BLOCK_E": self.block_e,
        }


def forward(call: LayerNormCall) -> tuple[Tensor, Tensor, Tensor]:
    """See :func:`growtas.kernels.layer_norm.reference.forward`. With extents on the device x's last
    size is the pitch only: beyond the widths nothing is read or written."""
    y, mean, rstd = call.outputs()
    rows = as_rows(call.x)
    count, pitch = rows.shape
    if count:
        launcher = _Launcher(call, (rows.stride(0), pitch), False)
        of_each = count // launcher.subnets
        arguments = (
            rows, call.weight, call.bias, y, mean, rstd, of_each, *launcher.width, rows.stride(0),
            pitch, call.eps,
        )  # fmt: skip
        programs = launcher.subnets * triton.cdiv(of_each, launcher.block_r)
        launch(
            layer_norm_forward_kernel, programs, arguments, launcher.constants, launcher.config
        )  # fmt: skip
    return y, mean, rstd


def backward(call: LayerNormCall, saved: Sequence[Tensor], dy: Tensor, grads: Grads) -> Tensor:
    """dx. Deterministic."""
    mean, rstd = saved
    dy, rows = as_rows(dy), as_rows(call.x)
    dx = call.x.new_empty(call.x.shape)
    count, pitch = rows.shape
    if count == 0:
        return dx
    (grad_weight, grad_bias), present = grads.parameters, call.present
    added = dy if grads.added is None else as_rows(grads.added)
    launcher = _Launcher(call, (dy.stride(0), rows.stride(0), added.stride(0), pitch), True)
    programs = min(PROGRAMS, triton.cdiv(count, launcher.block_r))
    teams = triton.cdiv(programs, TEAM)
    partials = mean.new_empty(programs + teams, 2, launcher.block_e)
    arguments = (
        dy, rows, call.weight, mean, rstd, dx, partials, counters(rows.device, 1 + teams),
        partials if grad_weight is None else grad_weight,
        partials if grad_bias is None else grad_bias, added,
        partials if present is None else present, count // launcher.subnets, *launcher.width,
        0 if present is None else present.stride(0), launcher.subnets, dy.stride(0),
        rows.stride(0), pitch, added.stride(0),
    )  # fmt: skip
    constants = {
        "WEIGHT": grad_weight is not None,
        "BIAS": grad_bias is not None,
        "ADDED": grads.added is not None,
        "PRESENT": present is not None,
        "TEAM": TEAM,
        **launcher.constants,
    }
    launch(layer_norm_backward_kernel, programs, arguments, constants, launcher.config)
    return dx
