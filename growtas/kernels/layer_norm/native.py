"""layer_norm on the CPU by the compiled operators. An extent in a tensor costs nothing to read
here: the same kernels run on views of that width."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from growtas.kernels.call import Grads
from growtas.kernels.extents import if_present
from growtas.kernels.layer_norm.api import LayerNormCall
from growtas.kernels.layout import as_rows
from growtas.kernels.native_library import operators, unsupported
from growtas.kernels.native_library import unavailable as available

__all__ = ["available", "backward", "forward", "unsupported"]


def forward(call: LayerNormCall) -> tuple[Tensor, Tensor, Tensor]:
    """See :func:`growtas.kernels.layer_norm.reference.forward`."""
    y, mean, rstd = call.outputs()
    width = call.x.shape[-1]
    if call.extents is not None:
        width = int(call.extents)
        narrow = call._replace(x=call.x[..., :width], extents=None)
        y[..., :width], mean, rstd = forward(narrow)
        return y, mean, rstd
    operators().layer_norm_forward(
        as_rows(call.x),
        call.weight,
        call.bias,
        call.eps,
        y.view(-1, width),
        mean.view(-1),
        rstd.view(-1),
    )
    return y, mean, rstd


def backward(call: LayerNormCall, saved: Sequence[Tensor], dy: Tensor, grads: Grads) -> Tensor:
    """dx."""
    x, (mean, rstd) = call.x, saved
    dx = x.new_empty(x.shape)
    if call.extents is not None:
        width = int(call.extents)
        weight = call.weight if call.present is None else if_present(call.weight, call.present)
        narrow = call._replace(x=x[..., :width], weight=weight, extents=None)
        alone = grads._replace(added=None)
        dx[..., :width] = backward(narrow, saved, dy[..., :width], alone)
    else:
        operators().layer_norm_backward(
            as_rows(dy),
            as_rows(x),
            call.weight,
            mean.view(-1),
            rstd.view(-1),
            dx.view(-1, x.shape[-1]),
            *grads.parameters,
        )
    return dx if grads.added is None else dx.add_(grads.added)
