"""layer_norm on the CPU by the compiled operators. An extent in a tensor costs nothing to read
here: the same kernels run on views of that width."""

from __future__ import annotations

import torch
from torch import Tensor

from growtas.kernels.extents import if_present
from growtas.kernels.layer_norm.reference import (
    backward_one_by_one,
    forward_one_by_one,
    statistics_dtype,
)
from growtas.kernels.layout import as_rows
from growtas.kernels.native_library import operators, unavailable, unsupported

__all__ = ["available", "backward_", "forward", "unsupported"]

available = unavailable


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    out_dtype: torch.dtype,
    extents: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """See :func:`growtas.kernels.layer_norm.reference.forward`."""
    if extents is not None and len(extents) > 1:
        return forward_one_by_one(forward, x, weight, bias, eps, out_dtype, extents)
    if extents is not None:
        width = int(extents)
        narrow, mean, rstd = forward(x[..., :width], weight, bias, eps, out_dtype)
        y = x.new_empty(x.shape, dtype=out_dtype)
        y[..., :width] = narrow
        return y, mean, rstd
    y = x.new_empty(x.shape, dtype=out_dtype)
    mean = x.new_empty(x.shape[:-1], dtype=statistics_dtype(x.dtype))
    rstd = torch.empty_like(mean)
    width = x.shape[-1]
    operators().layer_norm_forward(
        as_rows(x), weight, bias, eps, y.view(-1, width), mean.view(-1), rstd.view(-1)
    )
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
    added: Tensor | None = None,
) -> Tensor:
    """See :func:`growtas.kernels.layer_norm.reference.backward_`."""
    if extents is not None and len(extents) > 1:
        return backward_one_by_one(
            backward_, dy, x, weight, mean, rstd, grad_weight, grad_bias, extents, present, added
        )
    if extents is not None:
        width = int(extents)
        if present is not None:
            weight = if_present(weight, present)
        parts = (dy[..., :width], x[..., :width])
        dx = x.new_empty(x.shape)
        dx[..., :width] = backward_(*parts, weight, mean, rstd, grad_weight, grad_bias)
        return dx if added is None else dx.add_(added)
    dx = x.new_empty(x.shape)
    operators().layer_norm_backward(
        as_rows(dy),
        as_rows(x),
        weight,
        mean.view(-1),
        rstd.view(-1),
        dx.view(-1, x.shape[-1]),
        grad_weight,
        grad_bias,
    )
    return dx if added is None else dx.add_(added)
