"""``layer_norm``: LayerNorm of the sampled width with the leading part of max-size parameters."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from growtas.kernels.arguments import check_floating
from growtas.kernels.autocast import autocast_dtype
from growtas.kernels.call import Operator
from growtas.kernels.dtypes import accumulation_dtype
from growtas.kernels.extents import check_extent
from growtas.kernels.gradients import GradientAccumulator


class LayerNormCall(NamedTuple):
    """One call of :func:`layer_norm`: its arguments, checked, and the dtype of what it returns."""

    x: Tensor
    weight: Tensor
    bias: Tensor
    eps: float
    out_dtype: torch.dtype
    extents: Tensor | None
    present: Tensor | None

    def outputs(self) -> tuple[Tensor, Tensor, Tensor]:
        """y like x, and mean and 1/std per row ``[...]``, not filled."""
        x, dtype = self.x, accumulation_dtype(self.x.dtype)
        mean = x.new_empty(x.shape[:-1], dtype=dtype)
        return x.new_empty(x.shape, dtype=self.out_dtype), mean, torch.empty_like(mean)

    def boxes(self) -> tuple[tuple[int], tuple[int]]:
        """Of weight and bias."""
        width = (self.x.shape[-1],)
        return width, width


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
        extents: int32 ``[1]`` on the device: the width; or ``[S]``: of each of S subnets that share
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
    return LAYER_NORM(_checked(x, weight, bias, eps, extents, present), gradients)


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
    call = _checked(x, weight, bias, eps, extents, present)
    return LAYER_NORM(call, gradients, leaving=True)


def _checked(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    extents: Tensor | None,
    present: Tensor | None,
) -> LayerNormCall:
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
    return LayerNormCall(x, weight, bias, eps, autocast_dtype(x) or x.dtype, extents, present)


LAYER_NORM = Operator("layer_norm", LayerNormCall, parameters=2, saved=2)
