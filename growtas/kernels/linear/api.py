"""``linear``: a fully connected layer on a leading slice of its max-size weight."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from growtas.kernels.arguments import check_floating, whole
from growtas.kernels.autocast import cast_to_autocast
from growtas.kernels.dispatch import select
from growtas.kernels.extents import LinearExtents, LinearSizes, check_extent
from growtas.kernels.gradients import GradientAccumulator, full_size_zeros
from growtas.kernels.layout import result_dtype
from growtas.kernels.library import define, differentiable, own_function, second_order

_ACTIVATIONS = (None, "gelu")
_NO_EXTENTS = LinearExtents(None, None)


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    out_features: int | None = None,
    input_activation: str | None = None,
    activation: str | None = None,
    sample_scale: Tensor | None = None,
    residual: Tensor | None = None,
    gradients: GradientAccumulator | None = None,
    extents: LinearExtents | None = None,
) -> Tensor:
    """``residual + scale * activation(input_activation(x) @ weight[:out, :in].T + bias[:out])``,
    slices read in place.

    An MLP is best written with the GELU as the second layer's ``input_activation``: then only its
    input is kept for the backward pass, and its derivative joins the second layer's input gradient.

    Args:
        x: ``[..., in]``, float32, bfloat16, float16 or (CPU) float64; ``in`` may be any leading
            part of the weight's input width. Under autocast it is cast to the autocast dtype.
        weight: whole parameter ``[out_max, in_max]``, in x's dtype or float32; or ``G`` stacked
            matrices ``[G, ..., in_max]`` whose middle dimensions are flattened to ``out_max``
            (``[3, heads, head_dim, in_max]`` for q, k, v).
        bias: whole parameter: ``[out_max]``, or with a stacked weight ``[G, ...]`` (sliced like
            the weight) or ``[G * out_max]`` (its first ``G * out_features`` entries are read:
            AutoFormer's reading of the qkv bias).
        out_features: rows taken of each matrix; default all.
        input_activation: None or ``"gelu"`` (exact, erf), applied to x on the way.
        activation: the same for the sum.
        sample_scale: ``[x.shape[0]]``, a factor for each sample before the residual (drop path);
            no gradient flows to it.
        residual: ``[..., G * out_features]``, added last.
        gradients: None for dense gradients, or an accumulator to add into the slices of ``.grad``.
        extents: sizes on the device, of one subnet or of several that share the batch in equal
            consecutive parts. Then ``in`` and `out_features` are the largest that can occur,
            and what lies beyond a subnet's extents, in inputs, parameters and gradients, is not
            read; in outputs it is not meaningful. The accumulator takes all that is launched for
            dirty.

    Returns:
        ``[..., G * out_features]`` in x's dtype, promoted with the residual's if there is one.
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
    groups = 1 if weight.dim() == 2 else weight.shape[0]
    out_max = math.prod(weight.shape[:-1]) // groups
    out_features = out_max if out_features is None else whole("out_features", out_features)
    if x.shape[-1] > weight.shape[-1]:
        raise ValueError(f"x has {x.shape[-1]} features, the weight takes 1 to {weight.shape[-1]}")
    if out_features > out_max:
        raise ValueError(f"out_features is {out_features}, the weight has 1 to {out_max}")
    for given, value in (("input_activation", input_activation), ("activation", activation)):
        if value not in _ACTIVATIONS:
            raise ValueError(f"{given} is {value!r}, allowed: None, 'gelu'")
    if bias is not None and bias.numel() != groups * out_max:
        raise ValueError(
            f"bias has {bias.numel()} entries, the weight {tuple(weight.shape)} needs "
            f"{groups * out_max}"
        )
    shape = (*x.shape[:-1], groups * out_features)
    if residual is not None and residual.shape != shape:
        raise ValueError(f"residual is {tuple(residual.shape)}, the output {tuple(shape)}")
    if sample_scale is not None:
        if x.dim() < 2 or sample_scale.shape != x.shape[:1]:
            raise ValueError(
                f"sample_scale is {tuple(sample_scale.shape)}, x {tuple(x.shape)} needs one factor "
                "for each of its first dimension"
            )
        sample_scale = sample_scale.to(torch.promote_types(x.dtype, torch.float32))
    if weight.dtype not in (x.dtype, torch.float32):
        raise TypeError(f"weight is {weight.dtype}; with x {x.dtype} it must be that or float32")
    sizes = _NO_EXTENTS
    if extents is not None:
        sizes = extents
        check_extent("out_features", sizes.out_features, x, 0, out_features, sizes.in_features)
        check_extent("in_features", sizes.in_features, x, 0, x.shape[-1])

    differentiated = torch.is_grad_enabled() and (
        x.requires_grad
        or weight.requires_grad
        or (bias is not None and bias.requires_grad)
        or (residual is not None and residual.requires_grad)
    )
    arguments = (
        x, weight, bias, out_features, input_activation or "", activation or "", sample_scale,
        residual, differentiated, *sizes,
    )  # fmt: skip
    if differentiated and own_function(x, gradients):
        return _Linear.apply(*arguments, gradients)
    return _forward(*arguments)[0]


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *given: Any) -> Tensor:
        """The operator's arguments, and the accumulator."""
        arguments, gradients = given[:-1], given[-1]
        y, preactivation = _forward(*arguments)
        _keep(ctx, arguments, preactivation, gradients)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None) -> tuple[Tensor | None, ...]:
        if dy is None:
            return (None,) * 13
        x, weight, bias, preactivation, sample_scale, *sizes = ctx.saved_tensors
        dresidual = None if ctx.residual_dtype is None else dy.to(ctx.residual_dtype)
        if torch.is_grad_enabled():
            return *_second_order(ctx, dy), *(None,) * 4, dresidual, *(None,) * 5
        need_x, need_weight, need_bias = ctx.needs_input_grad[:3]
        grad_weight = grad_bias = None
        if ctx.gradients is None:
            grad_weight = full_size_zeros(weight) if need_weight else None
            grad_bias = full_size_zeros(bias) if need_bias else None
        else:
            if need_weight:
                extents = _extents(weight, ctx.out_features, x.shape[-1])
                grad_weight = ctx.gradients.buffer(ctx.parameters[0], extents)
            if need_bias:
                groups = 1 if weight.dim() == 2 else weight.shape[0]
                extents = _bias_extents(bias, groups, ctx.out_features)
                grad_bias = ctx.gradients.buffer(ctx.parameters[1], extents)
        dx = _backward(
            dy, x, weight, preactivation, ctx.out_features, *ctx.activations, sample_scale, need_x,
            grad_weight, grad_bias, *sizes, ctx.alignment,
        )  # fmt: skip
        if ctx.gradients is not None:
            grad_weight = grad_bias = None
        dx = dx if need_x else None
        return dx, grad_weight, grad_bias, *(None,) * 4, dresidual, *(None,) * 5


def _keep(
    ctx: Any,
    arguments: Sequence[Any],
    preactivation: Tensor,
    gradients: GradientAccumulator | None,
) -> None:
    """What the backward pass needs of a call."""
    x, weight, bias, out_features, *activations, sample_scale, residual, _, out, in_, alignment = (
        arguments
    )
    ctx.save_for_backward(x, weight, bias, preactivation, sample_scale, out, in_)
    ctx.out_features, ctx.activations, ctx.alignment = out_features, activations, alignment
    ctx.gradients = gradients
    # the parameters themselves: saved tensors may come back as other objects
    ctx.parameters = (weight, bias) if gradients is not None else None
    ctx.residual_dtype = None if residual is None else residual.dtype
    ctx.set_materialize_grads(False)


def _second_order(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    """Of x, weight and bias; what is added last needs no plain PyTorch."""
    x, weight, bias, _, sample_scale, out, in_ = ctx.saved_tensors
    extents = _extents_of(x, ctx.out_features, out, in_, ctx.alignment)

    def call(forward: Callable, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return forward(
            x, weight, bias, ctx.out_features, *ctx.activations, sample_scale, None, False, extents
        )[0]

    return second_order("linear", ctx, call, (x, weight, bias), dy.to(x.dtype))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.mark_non_differentiable(output[1])
    _keep(ctx, inputs, output[1], None)


def _extents(weight: Tensor, out_features: int, in_features: int) -> tuple[int, ...]:
    """The leading box of a weight that a slice reads; a stacked weight's rows fill whole
    sub-blocks from the last middle dimension outwards (heads of head_dim rows each)."""
    if weight.dim() == 2:
        return out_features, in_features
    inner = math.prod(weight.shape[2:-1])
    middle = (-(-out_features // inner), *weight.shape[2:-1])
    return weight.shape[0], *middle, in_features


def _bias_extents(bias: Tensor, groups: int, out_features: int) -> tuple[int, ...]:
    if bias.dim() == 1:
        return (groups * out_features,)
    return _extents(bias.unsqueeze(-1), out_features, 1)[:-1]


def _forward_impl(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    out_features: int,
    input_activation: str,
    activation: str,
    sample_scale: Tensor | None,
    residual: Tensor | None,
    save: bool,
    out_extent: Tensor | None = None,
    in_extent: Tensor | None = None,
    alignment: int = 1,
) -> tuple[Tensor, Tensor]:
    return select("linear", x, weight).forward(
        x, weight, bias, out_features, input_activation, activation, sample_scale, residual, save,
        _extents_of(x, out_features, out_extent, in_extent, alignment),
    )  # fmt: skip


def _extents_of(
    x: Tensor,
    out_features: int,
    out_extent: Tensor | None,
    in_extent: Tensor | None,
    alignment: int,
) -> LinearSizes | None:
    if out_extent is None and in_extent is None:
        return None
    if out_extent is None:
        assert in_extent is not None
        out_extent = in_extent.new_full(in_extent.shape, out_features)
    if in_extent is None:
        in_extent = out_extent.new_full(out_extent.shape, x.shape[-1])
    return LinearSizes(out_extent, in_extent, alignment)


def _forward_fake(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    out_features: int,
    input_activation: str,
    activation: str,
    sample_scale: Tensor | None,
    residual: Tensor | None,
    save: bool,
    out_extent: Tensor | None = None,
    in_extent: Tensor | None = None,
    alignment: int = 1,
) -> tuple[Tensor, Tensor]:
    groups = 1 if weight.dim() == 2 else weight.shape[0]
    shape = (*x.shape[:-1], groups * out_features)
    saved = x.new_empty(shape if save and activation == "gelu" else (0,))
    return x.new_empty(shape, dtype=result_dtype(x, residual)), saved


def _backward_impl(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    preactivation: Tensor,
    out_features: int,
    input_activation: str,
    activation: str,
    sample_scale: Tensor | None,
    need_dx: bool,
    grad_weight: Tensor | None,
    grad_bias: Tensor | None,
    out_extent: Tensor | None = None,
    in_extent: Tensor | None = None,
    alignment: int = 1,
) -> Tensor:
    backend = select("linear", x, weight)
    return backend.backward_(
        dy, x, weight, preactivation, out_features, input_activation, activation, sample_scale,
        need_dx, grad_weight, grad_bias,
        _extents_of(x, out_features, out_extent, in_extent, alignment),
    )  # fmt: skip


def _backward_fake(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    preactivation: Tensor,
    out_features: int,
    input_activation: str,
    activation: str,
    sample_scale: Tensor | None,
    need_dx: bool,
    grad_weight: Tensor | None,
    grad_bias: Tensor | None,
    out_extent: Tensor | None = None,
    in_extent: Tensor | None = None,
    alignment: int = 1,
) -> Tensor:
    return x.new_empty(x.shape if need_dx else (0,))


_forward = define(
    "linear(Tensor x, Tensor weight, Tensor? bias, SymInt out_features, str input_activation, "
    "str activation, Tensor? sample_scale, Tensor? residual, bool save, "
    "Tensor? out_extent=None, Tensor? in_extent=None, int alignment=1) -> (Tensor, Tensor)",
    _forward_impl,
    _forward_fake,
)
_backward = define(
    "linear_backward(Tensor dy, Tensor x, Tensor weight, Tensor preactivation, "
    "SymInt out_features, str input_activation, str activation, Tensor? sample_scale, "
    "bool need_dx, Tensor(a!)? grad_weight, Tensor(b!)? grad_bias, "
    "Tensor? out_extent=None, Tensor? in_extent=None, int alignment=1) -> Tensor",
    _backward_impl,
    _backward_fake,
)
differentiable("linear", _setup_context, lambda ctx, dy, _: _Linear.backward(ctx, dy)[:-1])
