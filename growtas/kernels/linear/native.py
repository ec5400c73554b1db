"""linear on the CPU by the compiled operators: products that read the weight's slice by its buffer
strides, add gradients straight into the slice of the buffer, and take GELU, factor and residual
along. Extents in a tensor cost nothing to read here: the same kernels run on views of that size.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from growtas.kernels.call import Grads
from growtas.kernels.layout import as_matrices, as_rows, as_vectors
from growtas.kernels.linear.api import LinearCall
from growtas.kernels.native_library import operators, unsupported
from growtas.kernels.native_library import unavailable as available

__all__ = ["available", "backward", "forward", "prefers", "unsupported"]

MIN_ROWS = 128  # measured at 192 .. 2496 features, forward and backward


def prefers(call: LinearCall) -> bool:
    """Not with few rows: packing the weight would cost more than plain PyTorch loses."""
    return call.x.numel() >= MIN_ROWS * call.x.shape[-1] or call.extents is not None


def forward(call: LinearCall) -> Tensor:
    """y."""
    y = call.outputs()
    if call.extents is not None:
        _forward_within(call, y)
        return y
    around, width = call.around, y.shape[-1]
    operators().linear_forward(
        as_rows(call.x),
        as_matrices(call.weight),
        as_vectors(call.bias),
        call.out_features,
        around.input_gelu,
        around.sample_scale,
        None if around.residual is None else as_rows(around.residual),
        y.view(-1, width),
    )
    return y


def backward(call: LinearCall, saved: Sequence[Tensor], dy: Tensor, grads: Grads) -> Tensor | None:
    """dx."""
    x = call.x
    if call.extents is not None:
        return _backward_within(call, dy, grads)
    dx = x.new_empty(x.shape) if grads.dx else None
    grad_weight, grad_bias = grads.parameters
    operators().linear_backward(
        as_rows(dy),
        as_rows(x),
        as_matrices(call.weight),
        call.out_features,
        call.around.input_gelu,
        call.around.sample_scale,
        None if dx is None else dx.view(-1, x.shape[-1]),
        _gradient(grad_weight, 2),
        _gradient(grad_bias, 1),
    )
    return dx


def _gradient(buffer: Tensor | None, dims: int) -> Tensor | None:
    """A contiguous buffer to write into, its middle dimensions (all but those of the parts) made
    one."""
    if buffer is None or buffer.dim() == dims:
        return buffer
    return buffer.view(buffer.shape[0], -1, *buffer.shape[buffer.dim() - dims + 1 :])


def _forward_within(call: LinearCall, y: Tensor) -> None:
    """`forward` on views of the extents, its results in a buffer of the launched size."""
    narrow = _narrow(call)
    mine = _columns(y, call.parts, narrow.out_features)
    if narrow.out_features and narrow.x.shape[-1]:
        mine.copy_(forward(narrow).view_as(mine))
    elif narrow.out_features and narrow.around.residual is not None:
        mine.copy_(narrow.around.residual.view_as(mine))


def _backward_within(call: LinearCall, dy: Tensor, grads: Grads) -> Tensor | None:
    """`backward` on views of the extents."""
    narrow = _narrow(call)
    dx = call.x.new_empty(call.x.shape) if grads.dx else None
    mine = None if dx is None else dx[..., : narrow.x.shape[-1]]
    if narrow.out_features and narrow.x.shape[-1]:
        dy = _columns(dy, call.parts, narrow.out_features).flatten(-2)
        found = backward(narrow, (), dy, grads)
        if mine is not None and found is not None:
            mine.copy_(found)
    elif mine is not None:
        mine.zero_()
    return dx


def _narrow(call: LinearCall) -> LinearCall:
    """The same call with its sizes read, on views of what it reads."""
    assert call.extents is not None
    out, in_ = int(call.extents.out_features), int(call.extents.in_features)
    around = call.around
    if around.residual is not None:
        residual = _columns(around.residual, call.parts, out).flatten(-2)
        around = around._replace(residual=residual)
    return call._replace(x=call.x[..., :in_], out_features=out, around=around, extents=None)


def _columns(x: Tensor, parts: int, out: int) -> Tensor:
    """View ``[..., parts, out]`` of ``[..., parts * launched]``."""
    return x.unflatten(-1, (parts, -1))[..., :out]
