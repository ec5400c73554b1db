"""linear's launches: which kernel on which tensors, with which constants, cut how.

A plan looks at sizes, strides and dtypes only, never at values.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from growtas.kernels.extents import LinearSizes
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


class Options(NamedTuple):
    """What is fused around the product; a scale is one factor for every so many rows."""

    input_gelu: bool
    gelu: bool
    scale: Tensor | None


class Fold(NamedTuple):
    """What is left to do for the parameters' gradients: `gpu_backward.fold`."""

    programs: int
    arguments: tuple[Any, ...]
    constants: dict[str, Any]
    launched: tuple[int, int]  # rows and columns
    strides: tuple[int, ...]
    extents: LinearSizes | None


def plan_forward(
    target: Target,
    x: Tensor,  # [rows, in]
    weight: Tensor,  # [G, out_max, in_max]
    bias: Tensor | None,  # [entries] or [G, out_max]
    out_features: int,
    options: Options,
    residual: Tensor | None,  # [rows, G * out]
    y: Tensor,  # [rows, G * out]
    preactivation: Tensor | None,  # [rows, G * out]
    extents: LinearSizes | None = None,
) -> Launch:
    """`linear_forward_kernel`."""
    (rows, in_features), groups = x.shape, weight.shape[0]
    of_each = rows // _subnets(extents)
    config = _config(target, linear_forward_kernel, x, of_each, out_features)
    block_m, block_n, block_k = config.blocks
    column_tiles = _tiles(out_features, block_n)
    strides = (x.stride(0), *weight.stride()[:2])
    of_residual = 0 if residual is None else residual.stride(0)
    arguments = (
        x, weight, x if bias is None else bias, _or(options.scale, x), _or(residual, x),
        y, _or(preactivation, y), of_each, *_sizes(out_features, in_features, extents), *strides,
        _group_stride(bias), of_residual, y.stride(0), out_features, column_tiles,
        _rows_per_sample(rows, options),
    )  # fmt: skip
    constants = {
        "GROUPS": groups,
        "BIAS": bias is not None,
        "INPUT_GELU": options.input_gelu,
        "GELU": options.gelu,
        "SAVE": preactivation is not None,
        "SCALE": options.scale is not None,
        "RESIDUAL": residual is not None,
        **_extent_constants(extents, in_features, out_features, *strides, of_residual, y.stride(0)),
        "PRECISION": target.precision,
        "BLOCK_M": block_m,
        "BLOCK_N": block_n,
        "BLOCK_K": block_k,
    }
    programs = groups * column_tiles * _subnets(extents) * _tiles(of_each, block_m)
    return Launch(linear_forward_kernel, programs, arguments, constants, config)


def plan_input_gradient(
    target: Target,
    dy: Tensor,  # [rows, G * out]
    preactivation: Tensor,  # the same, read with options.gelu
    weight: Tensor,  # [G, out_max, in_max]
    out_features: int,
    options: Options,
    x: Tensor,  # [rows, in]
    dx: Tensor,  # [rows, in]
    extents: LinearSizes | None = None,
    fold: Fold | None = None,
) -> Launch:
    """`linear_input_gradient_kernel`, which also does what is left of this layer's parameters."""
    (rows, in_features), groups = x.shape, weight.shape[0]
    of_each = rows // _subnets(extents)
    config = _config(target, linear_input_gradient_kernel, x, of_each, in_features)
    block_m, block_n, block_k = config.blocks
    column_tiles = _tiles(in_features, block_n)
    strides = (*weight.stride()[:2], x.stride(0), dx.stride(0))
    if fold is None:
        fold = Fold(0, (x,) * 4 + (0,) * 7, NO_FOLD, (0, 0), (), None)
    arguments = (
        dy, preactivation if options.gelu else dy, weight, _or(options.scale, x), x, dx,
        of_each, *_sizes(out_features, in_features, extents), dy.stride(0), out_features, *strides,
        column_tiles, _rows_per_sample(rows, options), fold.programs,
        *fold.arguments,
    )  # fmt: skip
    constants = {
        "GROUPS": groups,
        "INPUT_GELU": options.input_gelu,
        "GELU": options.gelu,
        "SCALE": options.scale is not None,
        **fold.constants,
        "FOLD": fold.programs > 0,
        **_extent_constants(
            extents, in_features, out_features, dy.stride(0), *strides, *fold.strides
        ),
        "PRECISION": target.precision,
        "BLOCK_M": block_m,
        "BLOCK_N": block_n,
        "BLOCK_K": block_k,
    }
    programs = fold.programs + column_tiles * _subnets(extents) * _tiles(of_each, block_m)
    return Launch(linear_input_gradient_kernel, programs, arguments, constants, config)


def plan_weight_gradient(
    target: Target,
    dy: Tensor,  # [rows, G * out]
    preactivation: Tensor,  # the same, read with options.gelu
    x: Tensor,  # [rows, in]
    groups: int,
    out_features: int,
    options: Options,
    grad_weight: Tensor | None,  # [G, out_max, in_max], added to
    grad_bias: Tensor | None,  # [entries] or [G, out_max], added to
    extents: LinearSizes | None = None,
) -> tuple[Launch, Fold]:
    """`linear_weight_gradient_kernel` and what is left to do; one gradient at least is wanted.
    With several subnets `grad_bias` is a vector only where there is one matrix."""
    rows, in_features = x.shape
    config = _config(target, linear_weight_gradient_kernel, x, out_features, in_features)
    block_m, block_n, block_k = config.blocks
    wanted = {"WEIGHT": grad_weight is not None, "BIAS": grad_bias is not None}
    columns = in_features if grad_weight is not None else 1
    tiles = groups * _tiles(out_features, block_m) * _tiles(columns, block_n)
    splits = max(1, min(PROGRAMS // tiles, _tiles(rows, MIN_SPLIT)))
    partials = x.new_empty(splits, groups, out_features, columns, dtype=torch.float32)
    bias_partials = x.new_empty(splits, groups, out_features, dtype=torch.float32)
    sizes = (*_sizes(out_features, in_features, extents), _subnets(extents))
    launched = (out_features, in_features)
    arguments = (
        dy, preactivation if options.gelu else dy, x, _or(options.scale, x), partials,
        bias_partials, rows // _subnets(extents), *sizes, dy.stride(0), out_features, x.stride(0),
        *launched, _rows_per_sample(rows, options), splits,
    )  # fmt: skip
    constants = {
        "GROUPS": groups,
        **wanted,
        "INPUT_GELU": options.input_gelu,
        "GELU": options.gelu,
        "SCALE": options.scale is not None,
        **_extent_constants(extents, *launched, dy.stride(0), x.stride(0)),
        "PRECISION": target.precision,
        "BLOCK_M": block_m,
        "BLOCK_N": block_n,
        "BLOCK_K": block_k,
    }
    first = Launch(linear_weight_gradient_kernel, splits * tiles, arguments, constants, config)

    fold_m, fold_n = _config(target, linear_fold_kernel, partials).blocks
    strides = (0, 0) if grad_weight is None else grad_weight.stride()[:2]
    to_fold = (
        partials, bias_partials, _or(grad_weight, partials), _or(grad_bias, partials), splits,
        _subnets(extents), *launched, *strides, _group_stride(grad_bias),
    )  # fmt: skip
    programs = groups * _tiles(out_features, fold_m) * _tiles(columns, fold_n)
    constants = {"GROUPS": groups, **wanted, "FOLD_M": fold_m, "FOLD_N": fold_n}
    return first, Fold(programs, to_fold, constants, launched, strides, extents)


def plan_fold(target: Target, fold: Fold) -> Launch:
    """`linear_fold_kernel`."""
    config = _config(target, linear_fold_kernel, fold.arguments[0])
    arguments = (*fold.arguments, *_sizes(*fold.launched, fold.extents))
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


def _sizes(
    out_features: int, in_features: int, extents: LinearSizes | None
) -> tuple[Tensor | int, ...]:
    """Both, and how far apart those of two subnets lie."""
    if extents is None:
        return out_features, in_features, 0, 0
    return *extents[:2], extents.out_features.stride(0), extents.in_features.stride(0)


def _rows_per_sample(rows: int, options: Options) -> int:
    return 1 if options.scale is None else rows // options.scale.numel()


def _group_stride(bias: Tensor | None) -> int:
    """0 for a vector, whose groups follow each other."""
    return 0 if bias is None or bias.dim() == 1 else bias.stride(0)


def _extent_constants(extents: LinearSizes | None, *sizes: int) -> dict[str, Any]:
    """With how the sizes are given, the largest of 8, 4 and 1 that divides all of them: 16 bytes of
    two-byte values are what one copy moves."""
    limit = 8 if extents is None else extents.alignment
    alignment = next(a for a in (8, 4, 1) if all(size % a == 0 for size in (*sizes, limit)))
    return {"DEVICE_EXTENTS": extents is not None, "ALIGNMENT": alignment}
