"""linear's launches: which kernel on which tensors, with which constants, cut how.

A plan looks at sizes, strides and dtypes only, never at values.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from growtas.kernels.extents import LinearSizes
from growtas.kernels.layout import as_matrices, as_rows, as_vectors
from growtas.kernels.linear.api import LinearCall
from growtas.kernels.linear.gpu_backward import (
    linear_fold_kernel,
    linear_input_gradient_kernel,
    linear_weight_gradient_kernel,
)
from growtas.kernels.linear.gpu_forward import linear_forward_kernel
from growtas.kernels.triton.configs import Config, choose
from growtas.kernels.triton.launch import Launch

PROGRAMS = 264  # that the weight gradient is cut into: two for each of a large GPU's processors
NO_FOLD = {"WEIGHT": False, "BIAS": False, "FOLD_M": 16, "FOLD_N": 16}
MIN_SPLIT = 256  # rows of x: fewer are not worth a partial sum of their own


class Target(NamedTuple):
    """The row of ``configs.TABLES`` and `tl.dot`'s precision for float32."""

    architecture: int
    precision: str


class Fold(NamedTuple):
    """What is left to do for the parameters' gradients: `gpu_backward.fold`."""

    programs: int
    arguments: tuple[Any, ...]
    constants: dict[str, Any]
    launched: tuple[int, int]  # rows and columns
    strides: tuple[int, ...]
    extents: LinearSizes | None


def in_rows(call: LinearCall) -> LinearCall:
    """The call in the shapes that kernels take: x and the residual ``[rows, width]``, the weight
    ``[P, out_max, in_max]``, the bias ``[entries]`` or ``[P, out_max]``."""
    around = call.around
    if around.residual is not None:
        around = around._replace(residual=as_rows(around.residual))
    return call._replace(
        x=as_rows(call.x), weight=as_matrices(call.weight), bias=as_vectors(call.bias),
        around=around,
    )  # fmt: skip


def plan_forward(target: Target, call: LinearCall, y: Tensor) -> Launch:
    """`linear_forward_kernel`, of a call in rows; y ``[rows, P * out]``."""
    x, weight, bias, out_features, around, extents = call
    of_each = _rows_of_each(call)
    config = _config(target, linear_forward_kernel, x, of_each, out_features)
    block_m, block_n, _ = config.blocks
    column_tiles = _tiles(out_features, block_n)
    strides = (x.stride(0), *weight.stride()[:2])
    of_residual = 0 if around.residual is None else around.residual.stride(0)
    arguments = (
        x, weight, _or(bias, x), _or(around.sample_scale, x), _or(around.residual, x), y, of_each,
        *_sizes(_launched(call), extents), *strides, _part_stride(bias), of_residual, y.stride(0),
        out_features, column_tiles, _rows_per_sample(call),
    )  # fmt: skip
    constants = {
        "BIAS": bias is not None,
        "RESIDUAL": around.residual is not None,
        **_constants(target, call, config, *strides, of_residual, y.stride(0)),
    }
    programs = call.parts * column_tiles * _subnets(extents) * _tiles(of_each, block_m)
    return Launch(linear_forward_kernel, programs, arguments, constants, config)


def plan_input_gradient(
    target: Target, call: LinearCall, dy: Tensor, dx: Tensor, fold: Fold | None = None
) -> Launch:
    """`linear_input_gradient_kernel`, which also does what is left of this layer's parameters; dy
    ``[rows, P * out]`` and dx like x of a call in rows."""
    x, weight, _, out_features, around, extents = call
    of_each = _rows_of_each(call)
    config = _config(target, linear_input_gradient_kernel, x, of_each, x.shape[-1])
    block_m, block_n, _ = config.blocks
    column_tiles = _tiles(x.shape[-1], block_n)
    strides = (*weight.stride()[:2], x.stride(0), dx.stride(0))
    if fold is None:
        fold = Fold(0, (x,) * 4 + (0,) * 7, NO_FOLD, (0, 0), (), None)
    arguments = (
        dy, weight, _or(around.sample_scale, x), x, dx, of_each,
        *_sizes(_launched(call), extents), dy.stride(0), out_features, *strides, column_tiles,
        _rows_per_sample(call), fold.programs, *fold.arguments,
    )  # fmt: skip
    constants = {
        "FOLD": fold.programs > 0,
        **fold.constants,
        **_constants(target, call, config, dy.stride(0), *strides, *fold.strides),
    }
    programs = fold.programs + column_tiles * _subnets(extents) * _tiles(of_each, block_m)
    return Launch(linear_input_gradient_kernel, programs, arguments, constants, config)


def plan_weight_gradient(
    target: Target,
    call: LinearCall,
    dy: Tensor,
    grad_weight: Tensor | None,
    grad_bias: Tensor | None,
) -> tuple[Launch, Fold]:
    """`linear_weight_gradient_kernel` and what is left to do, of a call in rows and dy
    ``[rows, P * out]``. One of the gradients at least is wanted: ``[P, out_max, in_max]``, and
    ``[entries]`` or ``[P, out_max]``. With several subnets `grad_bias` is a vector only where there
    is one matrix."""
    x, around, extents = call.x, call.around, call.extents
    rows, (out_features, in_features) = x.shape[0], _launched(call)
    config = _config(target, linear_weight_gradient_kernel, x, out_features, in_features)
    block_m, block_n, _ = config.blocks
    wanted = {"WEIGHT": grad_weight is not None, "BIAS": grad_bias is not None}
    columns = in_features if grad_weight is not None else 1
    tiles = call.parts * _tiles(out_features, block_m) * _tiles(columns, block_n)
    splits = max(1, min(PROGRAMS // tiles, _tiles(rows, MIN_SPLIT)))
    partials = x.new_empty(splits, call.parts, out_features, columns, dtype=torch.float32)
    bias_partials = x.new_empty(splits, call.parts, out_features, dtype=torch.float32)
    arguments = (
        dy, x, _or(around.sample_scale, x), partials, bias_partials, _rows_of_each(call),
        *_sizes(_launched(call), extents), _subnets(extents), dy.stride(0), out_features,
        x.stride(0), out_features, in_features, _rows_per_sample(call), splits,
    )  # fmt: skip
    constants = wanted | _constants(target, call, config, dy.stride(0), x.stride(0))
    first = Launch(linear_weight_gradient_kernel, splits * tiles, arguments, constants, config)

    fold_m, fold_n = _config(target, linear_fold_kernel, partials).blocks
    strides = (0, 0) if grad_weight is None else grad_weight.stride()[:2]
    to_fold = (
        partials, bias_partials, _or(grad_weight, partials), _or(grad_bias, partials), splits,
        _subnets(extents), out_features, in_features, *strides, _part_stride(grad_bias),
    )  # fmt: skip
    programs = call.parts * _tiles(out_features, fold_m) * _tiles(columns, fold_n)
    constants = {"PARTS": call.parts, **wanted, "FOLD_M": fold_m, "FOLD_N": fold_n}
    return first, Fold(programs, to_fold, constants, _launched(call), strides, extents)


def plan_fold(target: Target, fold: Fold) -> Launch:
    """`linear_fold_kernel`."""
    config = _config(target, linear_fold_kernel, fold.arguments[0])
    arguments = (*fold.arguments, *_sizes(fold.launched, fold.extents))
    constants = fold.constants | _extent_constants(fold.extents, *fold.launched, *fold.strides)
    return Launch(linear_fold_kernel, fold.programs, arguments, constants, config)


def _tiles(size: int, block: int) -> int:
    return -(-size // block)


def _or(tensor: Tensor | None, stand_in: Tensor) -> Tensor:
    """A kernel wants a pointer even for what its constants tell it not to read."""
    return stand_in if tensor is None else tensor


def _config(target: Target, kernel: Any, stored: Tensor, *sizes: int) -> Config:
    return choose(target.architecture, kernel.__name__, stored.dtype, sizes)


def _subnets(extents: LinearSizes | None) -> int:
    return 1 if extents is None else len(extents.out_features)


def _launched(call: LinearCall) -> tuple[int, int]:
    """Rows of each part of the weight, and columns, that launches are as large as."""
    return call.out_features, call.x.shape[-1]


def _sizes(launched: tuple[int, int], extents: LinearSizes | None) -> tuple[Tensor | int, ...]:
    """Both, and how far apart those of two subnets lie."""
    if extents is None:
        return *launched, 0, 0
    return *extents[:2], extents.out_features.stride(0), extents.in_features.stride(0)


def _rows_of_each(call: LinearCall) -> int:
    """How many of x's rows a subnet has."""
    return call.x.shape[0] // _subnets(call.extents)


def _rows_per_sample(call: LinearCall) -> int:
    scale = call.around.sample_scale
    return 1 if scale is None else call.x.shape[0] // scale.numel()


def _part_stride(bias: Tensor | None) -> int:
    """0 for a vector, whose parts follow each other."""
    return 0 if bias is None or bias.dim() == 1 else bias.stride(0)


def _constants(target: Target, call: LinearCall, config: Config, *strides: int) -> dict[str, Any]:
    """Those that all products have."""
    return {
        "PARTS": call.parts,
        "INPUT_GELU": call.around.input_gelu,
        "SCALE": call.around.sample_scale is not None,
        **_extent_constants(call.extents, *_launched(call), *strides),
        "PRECISION": target.precision,
        **dict(zip(("BLOCK_M", "BLOCK_N", "BLOCK_K"), config.blocks, strict=True)),
    }


def _extent_constants(extents: LinearSizes | None, *sizes: int) -> dict[str, Any]:
    """With how the sizes are given, the largest of 8, 4 and 1 that divides all of them: 16 bytes of
    two-byte values are what one copy moves."""
    limit = 8 if extents is None else extents.alignment
    alignment = next(a for a in (8, 4, 1) if all(size % a == 0 for size in (*sizes, limit)))
    return {"DEVICE_EXTENTS": extents is not None, "ALIGNMENT": alignment}
