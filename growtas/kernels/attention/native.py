"""attention on the CPU by the compiled operators."""

from __future__ import annotations

from torch import Tensor

from growtas.kernels.attention.reference import accumulation_dtype
from growtas.kernels.native_library import operators, unavailable, unsupported

__all__ = ["available", "backward_", "forward", "unsupported"]

available = unavailable


def forward(
    qkv: Tensor, tables: Tensor | None, num_heads: int, grid: tuple[int, int], scale: float
) -> tuple[Tensor, Tensor]:
    """See :func:`growtas.kernels.attention.reference.forward`."""
    batch, tokens, features = qkv.shape
    out = qkv.new_empty(batch, tokens, features // 3)
    lse = qkv.new_empty(batch, num_heads, tokens, dtype=accumulation_dtype(qkv.dtype))
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
) -> Tensor:
    """See :func:`growtas.kernels.attention.reference.backward_`; ``out`` is not read."""
    dqkv = qkv.new_empty(qkv.shape)
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
