"""attention on the CPU by the compiled operators. Numbers of heads in a tensor cost nothing to
read here: the same kernels run on the part of qkv that each of them says."""

from __future__ import annotations

from torch import Tensor

from growtas.kernels.attention.reference import accumulation_dtype, groups
from growtas.kernels.native_library import operators, unavailable, unsupported

__all__ = ["available", "backward_", "forward", "unsupported"]

available = unavailable


def forward(
    qkv: Tensor,
    tables: Tensor | None,
    num_heads: int,
    grid: tuple[int, int],
    scale: float,
    extents: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """See :func:`growtas.kernels.attention.reference.forward`."""
    batch, tokens, features = qkv.shape
    out = qkv.new_empty(batch, tokens, features // 3)
    lse = qkv.new_empty(batch, num_heads, tokens, dtype=accumulation_dtype(qkv.dtype))
    if extents is not None:
        for extent, images, target, target_lse in groups(extents, qkv, out, lse):
            if heads := int(extent):
                part, target_lse[:, :heads] = forward(
                    _heads(images, 3, num_heads, heads), tables, heads, grid, scale
                )
                target[..., : part.shape[-1]] = part
        return out, lse
    operators().attention_forward(
        qkv.contiguous(),
        None if tables is None else tables.contiguous(),
        num_heads,
        *grid,
        scale,
        out,
        lse,
    )
    return out, lse


def backward_(
    dout: Tensor,
    qkv: Tensor,
    tables: Tensor | None,
    out: Tensor,
    lse: Tensor,
    num_heads: int,
    grid: tuple[int, int],
    scale: float,
    grad_tables: Tensor | None,
    extents: Tensor | None = None,
) -> Tensor:
    """See :func:`growtas.kernels.attention.reference.backward_`; ``out`` is not read."""
    dqkv = qkv.new_empty(qkv.shape)
    if extents is not None:
        for extent, douts, images, lses, target in groups(extents, dout, qkv, lse, dqkv):
            if heads := int(extent):
                part = backward_(
                    _heads(douts, 1, num_heads, heads), _heads(images, 3, num_heads, heads),
                    tables, out, lses[:, :heads].contiguous(), heads, grid, scale, grad_tables,
                )  # fmt: skip
                target = target.unflatten(-1, (3, num_heads, -1))[..., :heads, :]
                target.copy_(part.unflatten(-1, (3, heads, -1)))
        return dqkv
    operators().attention_backward(
        dout.contiguous(),
        qkv.contiguous(),
        None if tables is None else tables.contiguous(),
        lse,
        num_heads,
        *grid,
        scale,
        dqkv,
        grad_tables,
    )
    return dqkv


def _heads(x: Tensor, parts: int, num_heads: int, heads: int) -> Tensor:
    """The first heads of each part of ``[..., parts * num_heads * d]``."""
    return x.unflatten(-1, (parts, num_heads, -1))[..., :heads, :].flatten(-3)
