"""``layer_norm``: LayerNorm of the sampled width with the leading part of max-size parameters."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from growtas.kernels.arguments import check_floating
from growtas.kernels.autocast import autocast_dtype
from growtas.kernels.dispatch import select
from growtas.kernels.extents import check_extent, if_present
from growtas.kernels.gradients import GradientAccumulator, full_size_zeros
from growtas.kernels.layer_norm.reference import statistics_dtype
from growtas.kernels.library import define, differentiable, own_function, second_order


def layer_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    eps: float = 1e-5,
    gradients: GradientAccumulator | None = None,
    extents: Tensor | None = None,
    present: Tensor | None = None,
) -> Tensor:
    """LayerNorm over the last dimension: mean and variance over the ``width`` given only.

    Args:
        x: ``[..., width]``, float32, bfloat16, float16 or (CPU) float64.
        weight: whole parameter ``[width_max]``; ``weight[:width]`` is read.
        bias: whole parameter ``[width_max]``.
        eps: added to the variance; AutoFormer uses 1e-5 (timm's ViT 1e-6).
        gradients: None for dense gradients, or an accumulator to add into the slices of ``.grad``.
        extents: int32 ``[1]`` on the device: the width; or ``[G]``: of each of G subnets that share
            the batch (x's first dimension) in equal consecutive parts. Then x's own is the largest
            that can occur; what lies beyond the extent is not read, nor meaningful in outputs. The
            largest common divisor of 8 and x's width must divide it.
        present: like `extents`, and only with them; 0 says that nothing reads the output, so that a
            gradient of zeros arrives. Then the parameters have no part in x's gradient, whatever
            they hold.

    Returns:
        Like x; under autocast in the autocast dtype, because a product follows. Statistics are
        float32 (float64 for float64) in every case.

    Raises:
        ValueError: x is wider than the parameters, they differ in size, a negative `eps`, extents
            that are not int32 on x's device, one for each of as many subnets as divide the batch,
            or, where they are on the CPU, not within x's width, or `present` without extents.
        TypeError: an x that is no tensor of these dtypes, or a parameter that is neither float32
            nor of x's dtype.
    """
    arguments = _checked(x, weight, bias, eps, extents, present)
    if _differentiated(x, weight, bias) and own_function(x, gradients):
        return _LayerNorm.apply(*arguments, gradients)[0]
    return _forward(*arguments)[0]


def pre_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    eps: float = 1e-5,
    gradients: GradientAccumulator | None = None,
    extents: Tensor | None = None,
    present: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """:func:`layer_norm` where a residual branch leaves the stream x: its output, and x for where
    the branch comes back. Of both gradients of x the backward pass then makes one without a pass of
    its own over them: what arrives for the second is added where that of the first is computed.
    """
    arguments = _checked(x, weight, bias, eps, extents, present)
    if _differentiated(x, weight, bias) and own_function(x, gradients):
        return _LayerNorm.apply(*arguments, gradients)
    return _forward(*arguments)[0], x


def _differentiated(x: Tensor, weight: Tensor, bias: Tensor) -> bool:
    return torch.is_grad_enabled() and (
        x.requires_grad or weight.requires_grad or bias.requires_grad
    )


def _checked(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    extents: Tensor | None,
    present: Tensor | None,
) -> tuple[Any, ...]:
    """The operator's arguments."""
    check_floating("x", x)
    if not 0.0 <= eps < math.inf:
        raise ValueError(f"eps is {eps}, it must be 0 or more and finite")
    if weight.shape != bias.shape or weight.dim() != 1:
        raise ValueError(
            "weight and bias must be 1-D of one size, got "
            f"{tuple(weight.shape)} and {tuple(bias.shape)}"
        )
    if x.shape[-1] > weight.shape[0]:
        raise ValueError(f"x is {x.shape[-1]} wide, the parameters allow 1 to {weight.shape[0]}")
    for parameter in (weight, bias):
        if parameter.dtype not in (x.dtype, torch.float32):
            raise TypeError(
                f"a parameter is {parameter.dtype}; with x {x.dtype} it must be that or float32"
            )
    if extents is not None:
        check_extent("extents", extents, x, 1, x.shape[-1], present)
        check_extent("present", present, x, 0, 1)
    elif present is not None:
        raise ValueError("present is given, extents are not")
    out_dtype = autocast_dtype(x) or x.dtype
    return x, weight, bias, eps, out_dtype, extents, present


class _LayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        eps: float,
        out_dtype: torch.dtype,
        extents: Tensor | None,
        present: Tensor | None,
        gradients: GradientAccumulator | None,
    ) -> tuple[Tensor, Tensor]:
        arguments = (x, weight, bias, eps, out_dtype, extents, present)
        y, mean, rstd = _forward(*arguments)
        _keep(ctx, arguments, mean, rstd, gradients)
        return y, x.view_as(x)

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, added: Tensor | None) -> tuple[Tensor | None, ...]:
        if dy is None:
            return added, *(None,) * 7
        x, weight, bias, mean, rstd, extents, present = ctx.saved_tensors
        if torch.is_grad_enabled():
            return *_second_order(ctx, dy, added), *(None,) * 5
        need_x, need_weight, need_bias = ctx.needs_input_grad[:3]
        grad_weight = grad_bias = None
        if ctx.gradients is None:
            grad_weight = full_size_zeros(weight) if need_weight else None
            grad_bias = full_size_zeros(bias) if need_bias else None
        else:
            width = (x.shape[-1],)
            grad_weight = ctx.gradients.buffer(ctx.parameters[0], width) if need_weight else None
            grad_bias = ctx.gradients.buffer(ctx.parameters[1], width) if need_bias else None
        dx = _backward(dy, x, weight, mean, rstd, grad_weight, grad_bias, extents, present, added)
        if ctx.gradients is not None:
            grad_weight = grad_bias = None
        return dx if need_x else None, grad_weight, grad_bias, *(None,) * 5


def _keep(
    ctx: Any,
    arguments: tuple[Any, ...],
    mean: Tensor,
    rstd: Tensor,
    gradients: GradientAccumulator | None,
) -> None:
    """What the backward pass needs of a call."""
    x, weight, bias, eps, out_dtype, extents, present = arguments
    ctx.save_for_backward(x, weight, bias, mean, rstd, extents, present)
    ctx.options = (eps, out_dtype)
    ctx.gradients = gradients
    # the parameters themselves: saved tensors may come back as other objects
    ctx.parameters = (weight, bias) if gradients is not None else None
    ctx.set_materialize_grads(False)


def _second_order(ctx: Any, dy: Tensor, added: Tensor | None) -> tuple[Tensor | None, ...]:
    x, weight, bias, _, _, extents, present = ctx.saved_tensors

    def call(forward: Callable, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        if present is not None:
            weight = if_present(weight, present)
        return forward(x, weight, bias, *ctx.options, extents)[0]

    dx, *rest = second_order("layer_norm", ctx, call, (x, weight, bias), dy)
    return dx if added is None or dx is None else dx + added, *rest


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, mean, rstd = output
    ctx.mark_non_differentiable(mean, rstd)
    _keep(ctx, inputs, mean, rstd, None)


def _forward_impl(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    out_dtype: torch.dtype,
    extents: Tensor | None = None,
    present: Tensor | None = None,  # for the backward pass
) -> tuple[Tensor, Tensor, Tensor]:
    return select("layer_norm", x, weight).forward(x, weight, bias, eps, out_dtype, extents)


def _forward_fake(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    out_dtype: torch.dtype,
    extents: Tensor | None = None,
    present: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    statistics = x.new_empty(x.shape[:-1], dtype=statistics_dtype(x.dtype))
    return x.new_empty(x.shape, dtype=out_dtype), statistics, torch.empty_like(statistics)


def _backward_impl(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    mean: Tensor,
    rstd: Tensor,
    grad_weight: Tensor | None,
    grad_bias: Tensor | None,
    extents: Tensor | None = None,
    present: Tensor | None = None,
    added: Tensor | None = None,
) -> Tensor:
    return select("layer_norm", x, weight).backward_(
        dy, x, weight, mean, rstd, grad_weight, grad_bias, extents, present, added
    )


def _backward_fake(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    mean: Tensor,
    rstd: Tensor,
    grad_weight: Tensor | None,
    grad_bias: Tensor | None,
    extents: Tensor | None = None,
    present: Tensor | None = None,
    added: Tensor | None = None,
) -> Tensor:
    return x.new_empty(x.shape)


_forward = define(
    "layer_norm(Tensor x, Tensor weight, Tensor bias, float eps, ScalarType out_dtype, "
    "Tensor? extents=None, Tensor? present=None) -> (Tensor, Tensor, Tensor)",
    _forward_impl,
    _forward_fake,
)
_backward = define(
    "layer_norm_backward(Tensor dy, Tensor x, Tensor weight, Tensor mean, Tensor rstd, "
    "Tensor(a!)? grad_weight, Tensor(b!)? grad_bias, Tensor? extents=None, "
    "Tensor? present=None, Tensor? added=None) -> Tensor",
    _backward_impl,
    _backward_fake,
)
differentiable(
    "layer_norm", _setup_context, lambda ctx, dy, *_: _LayerNorm.backward(ctx, dy, None)[:-1]
)
