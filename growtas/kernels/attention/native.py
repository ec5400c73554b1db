"""attention on the CPU by the compiled operators. A number of heads in a tensor costs nothing to
read here: the same kernels run on the part of qkv that it says."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from growtas.kernels.attention.api import AttentionCall
from growtas.kernels.call import Grads
from growtas.kernels.native_library import operators, unsupported
from growtas.kernels.native_library import unavailable as available

__all__ = ["available", "backward", "forward", "unsupported"]


def forward(call: AttentionCall) -> tuple[Tensor, Tensor]:
    """See :func:`growtas.kernels.attention.reference.forward`."""
    out, lse = call.outputs()
    if call.extents is not None:
        if heads := int(call.extents):
            mine, mine_lse = forward(_narrow(call, heads))
            _heads(out, 1, call.num_heads, heads).copy_(mine.unflatten(-1, (1, heads, -1)))
            _of_heads(lse, call.num_heads)[:, :heads] = _of_heads(mine_lse, heads)
        return out, lse
    operators().attention_forward(
        call.qkv.contiguous(),
        None if call.tables is None else call.tables.contiguous(),
        call.num_heads,
        call.height,
        call.width,
        call.scale,
        out,
        _of_heads(lse, call.num_heads),
    )
    return out, lse


def backward(call: AttentionCall, saved: Sequence[Tensor], dy: Tensor, grads: Grads) -> Tensor:
    """dqkv; the output that was saved is not read."""
    qkv, lse = call.qkv, _of_heads(saved[-1], call.num_heads)
    dqkv = qkv.new_empty(qkv.shape)
    if call.extents is not None:
        if heads := int(call.extents):
            dy = _heads(dy, 1, call.num_heads, heads).flatten(-3)
            mine_lse = lse[:, :heads].flatten(1).contiguous()
            found = backward(_narrow(call, heads), (mine_lse,), dy, grads)
            _heads(dqkv, 3, call.num_heads, heads).copy_(found.unflatten(-1, (3, heads, -1)))
        return dqkv
    operators().attention_backward(
        dy.contiguous(),
        qkv.contiguous(),
        None if call.tables is None else call.tables.contiguous(),
        lse,
        call.num_heads,
        call.height,
        call.width,
        call.scale,
        dqkv,
        *grads.parameters,
    )
    return dqkv


def _narrow(call: AttentionCall, heads: int) -> AttentionCall:
    """The same call of so many heads, on a copy of their part of qkv."""
    qkv = _heads(call.qkv, 3, call.num_heads, heads).flatten(-3)
    return call._replace(qkv=qkv, num_heads=heads, extents=None)


def _heads(x: Tensor, parts: int, num_heads: int, heads: int) -> Tensor:
    """View ``[..., parts, heads, d]`` of the first heads of each part."""
    return x.unflatten(-1, (parts, num_heads, -1))[..., :heads, :]


def _of_heads(lse: Tensor, heads: int) -> Tensor:
    """View ``[B, h, N]``."""
    return lse.view(lse.shape[0], heads, lse.shape[1] // heads)
