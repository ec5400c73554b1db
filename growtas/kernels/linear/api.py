"""``linear``: a fully connected layer on a leading slice of its max-size weight."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from growtas.kernels.arguments import check_floating, whole
from growtas.kernels.autocast import cast_to_autocast
from growtas.kernels.call import Operator
from growtas.kernels.dtypes import accumulation_dtype, result_dtype
from growtas.kernels.extents import LinearExtents, LinearSizes, check_extent
from growtas.kernels.gradients import GradientAccumulator


class Around(NamedTuple):
    """What is computed around a product while its operands pass by.

    Attributes:
        input_gelu: whether the product takes GELU of x.
        sample_scale: ``[B]`` in the accumulation dtype: the factor of each sample.
        residual: like y, added last.
    """

    input_gelu: bool
    sample_scale: Tensor | None
    residual: Tensor | None


class LinearCall(NamedTuple):
    """One call of :func:`linear`: its arguments, checked.

    Attributes:
        out_features: rows of each of the weight's parts; with `extents` the most there can be.
        extents: sizes on the device; None where x's width and `out_features` are the sizes.
    """

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    out_features: int
    around: Around
    extents: LinearSizes | None

    @property
    def parts(self) -> int:
        """How many matrices the weight stacks."""
        return 1 if self.weight.dim() == 2 else self.weight.shape[0]

    def outputs(self) -> Tensor:
        """y, not filled."""
        shape = (*self.x.shape[:-1], self.parts * self.out_features)
        return self.x.new_empty(shape, dtype=result_dtype(self.x, self.around.residual))

    def boxes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Of the weight and, unless there is none, the bias."""
        out, shape = self.out_features, self.weight.shape[:-1]
        of_rows = (out,) if len(shape) == 1 else _box(shape, out)
        if self.bias is None or self.bias.dim() > 1:
            of_bias = of_rows if self.bias is None else _box(self.bias.shape, out)
        else:
            of_bias = (self.parts * out,)
        return (*of_rows, self.x.shape[-1]), of_bias


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    out_features: int | None = None,
    input_activation: str | None = None,
    sample_scale: Tensor | None = None,
    residual: Tensor | None = None,
    gradients: GradientAccumulator | None = None,
    extents: LinearExtents | None = None,
) -> Tensor:
    """``residual + scale * (input_activation(x) @ weight[:out, :in].T + bias[:out])``, slices read
    in place.

    An MLP is best written with the GELU as the second layer's ``input_activation``: then only its
    input is kept for the backward pass, and its derivative joins the second layer's input gradient.

    Args:
        x: ``[..., in]``, float32, bfloat16, float16 or (CPU) float64; ``in`` may be any leading
            part of the weight's input width. Under autocast it is cast to the autocast dtype.
        weight: whole parameter ``[out_max, in_max]``, in x's dtype or float32; or the ``P``
            matrices of a stacked one, ``[P, ..., in_max]``, whose middle dimensions are flattened
            to ``out_max`` (``[3, heads, head_dim, in_max]`` for q, k, v).
        bias: whole parameter: ``[out_max]``, or with a stacked weight ``[P, ...]`` (sliced like
            the weight) or ``[P * out_max]`` (its first ``P * out_features`` entries are read:
            AutoFormer's reading of the qkv bias).
        out_features: rows taken of each matrix; default all.
        input_activation: None or ``"gelu"`` (exact, erf), applied to x on the way.
        sample_scale: ``[x.shape[0]]``, a factor for each sample before the residual (drop path);
            no gradient flows to it.
        residual: ``[..., P * out_features]``, added last.
        gradients: None for dense gradients, or an accumulator to add into the slices of ``.grad``.
        extents: sizes on the device, of one subnet or of several that share the batch in equal
            consecutive parts. Then ``in`` and `out_features` are the largest that can occur,
            and what lies beyond a subnet's extents, in inputs, parameters and gradients, is not
            read; in outputs it is not meaningful. The accumulator takes all that is launched for
            dirty.

    Returns:
        ``[..., P * out_features]`` in x's dtype, promoted with the residual's if there is one.
        Products accumulate in float32 (float64 for float64).

    Raises:
        ValueError: a size outside the parameter or of a scale or residual that does not fit, or
            an unknown activation, or extents that are not int32 on x's device, one for each of
            as many subnets as divide the batch, or, where they are on the CPU, not within these
            sizes.
        TypeError: an x that is no tensor of these dtypes, `out_features` that is no integer, or a
            weight that is neither float32 nor of x's dtype.
    """
    check_floating("x", x)
    x = cast_to_autocast(x)
    if weight.dim() < 2:
        raise ValueError(f"weight must have 2 or more dimensions, got {tuple(weight.shape)}")
    parts = 1 if weight.dim() == 2 else weight.shape[0]
    out_max = math.prod(weight.shape[:-1]) // parts
    out_features = out_max if out_features is None else whole("out_features", out_features)
    if x.shape[-1] > weight.shape[-1]:
        raise ValueError(f"x has {x.shape[-1]} features, the weight takes 1 to {weight.shape[-1]}")
    if out_features > out_max:
        raise ValueError(f"out_features is {out_features}, the weight has 1 to {out_max}")
    if input_activation not in (None, "gelu"):
        raise ValueError(f"input_activation is {input_activation!r}, allowed: None, 'gelu'")
    if bias is not None and bias.numel() != parts * out_max:
        raise ValueError(
            f"bias has {bias.numel()} entries, the weight {tuple(weight.shape)} needs "
            f"{parts * out_max}"
        )
    shape = (*x.shape[:-1], parts * out_features)
    if residual is not None and residual.shape != shape:
        raise ValueError(f"residual is {tuple(residual.shape)}, the output {tuple(shape)}")
    if sample_scale is not None:
        if x.dim() < 2 or sample_scale.shape != x.shape[:1]:
            raise ValueError(
                f"sample_scale is {tuple(sample_scale.shape)}, x {tuple(x.shape)} needs one factor "
                "for each of its first dimension"
            )
        sample_scale = sample_scale.to(accumulation_dtype(x.dtype))
    if weight.dtype not in (x.dtype, torch.float32):
        raise TypeError(f"weight is {weight.dtype}; with x {x.dtype} it must be that or float32")
    sizes = None
    if extents is not None:
        check_extent("out_features", extents.out_features, x, 0, out_features, extents.in_features)
        check_extent("in_features", extents.in_features, x, 0, x.shape[-1])
        sizes = _sizes(extents, out_features, x.shape[-1])
    around = Around(input_activation is not None, sample_scale, residual)
    return LINEAR(LinearCall(x, weight, bias, out_features, around, sizes), gradients)


def _sizes(extents: LinearExtents, out_features: int, in_features: int) -> LinearSizes | None:
    out, in_, alignment = extents
    if out is None and in_ is not None:
        out = in_.new_full(in_.shape, out_features)
    elif in_ is None and out is not None:
        in_ = out.new_full(out.shape, in_features)
    return None if out is None or in_ is None else LinearSizes(out, in_, alignment)


def _box(shape: Sequence[int], out_features: int) -> tuple[int, ...]:
    """The leading box of `out_features` rows of each part, ``[P, ...]``: they fill whole sub-blocks
    from the last dimension outwards (heads of head_dim rows each)."""
    inner = math.prod(shape[2:])
    return shape[0], -(-out_features // inner), *shape[2:]


LINEAR = Operator("linear", LinearCall, parameters=2, passed_on="around_residual")
