"""attention on the GPU: launchers of the Triton kernels in ``gpu_forward`` and ``gpu_backward``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from growtas.kernels.attention.gpu_backward import (
    attention_key_gradient_kernel,
    attention_query_gradient_kernel,
    attention_table_gradient_kernel,
    attention_table_partial_kernel,
)
from growtas.kernels.attention.gpu_builds import builds
from growtas.kernels.attention.gpu_forward import attention_forward_kernel
from growtas.kernels.attention.gpu_shape import Shape
from growtas.kernels.configs import architecture
from growtas.kernels.triton_support import dot_precision, unsupported

__all__ = ["backward_", "builds", "forward", "unsupported"]

TABLE_SHARES = 132  # at most: with the two sides, two programs for each of an H100's processors


def _cdiv(a: int, b: int) -> int:
    return -(-a // b)


class _Call:
    """The sizes of a call, and how its kernels are launched."""

    def __init__(
        self,
        qkv: Tensor,
        tables: Tensor | None,
        num_heads: int,
        grid: tuple[int, int],
        extents: Tensor | None,
    ) -> None:
        self.batch, self.tokens, features = qkv.shape
        self.heads = num_heads
        self.sequences = self.batch * num_heads
        self.head_dim = features // (3 * num_heads)
        self.architecture = architecture(qkv.device)
        self.shape = Shape(
            head_dim=self.head_dim,
            grid=grid,
            class_token=self.tokens - grid[0] * grid[1],
            table_rows=None if tables is None else tables.shape[1],
            dtype=qkv.dtype,
            precision=dot_precision(qkv.dtype),
            device_extents=extents is not None,
        )
        width = num_heads * self.head_dim
        self.sizes = (
            qkv.stride(0), qkv.stride(1), width, self.tokens * width, width, num_heads, self.tokens,
        )  # fmt: skip

    def launch_tiles(self, kernel: Any, axis: int, *arguments: Any) -> None:
        """One program per image, head and tile of tokens; the tile is the ``axis``-th block."""
        config = self.shape.config(kernel, self.architecture)
        kernel[(self.sequences * _cdiv(self.tokens, config.blocks[axis]),)](
            *arguments,
            **self.shape.of(kernel, config.blocks),
            num_warps=config.warps,
            num_stages=config.stages,
        )


def forward(
    qkv: Tensor,
    tables: Tensor | None,
    num_heads: int,
    grid: tuple[int, int],
    scale: float,
    extents: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """See :func:`growtas.kernels.attention.reference.forward`; no N x N tensor is stored.

    Args:
        extents: int32 ``[1]`` on the device: heads of this subnet, at most ``num_heads``, which
            then only sets the layout; what belongs to other heads is neither read nor written.
    """
    qkv = qkv.contiguous()
    call = _Call(qkv, tables, num_heads, grid, extents)
    out = qkv.new_empty(call.batch, call.tokens, num_heads * call.head_dim)
    lse = qkv.new_empty(call.batch, num_heads, call.tokens, dtype=torch.float32)
    scratch = lse
    if tables is not None:
        scratch = lse.new_empty(*lse.shape, call.shape.slots)
    call.launch_tiles(
        attention_forward_kernel, 0, qkv, _contiguous(tables, qkv), out, lse, scratch,
        _contiguous(extents, lse), *call.sizes, scale,
    )  # fmt: skip
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
    """See :func:`growtas.kernels.attention.reference.backward_`. Deterministic.

    Args:
        extents: as in :func:`forward`.
    """
    qkv, dout = qkv.contiguous(), dout.contiguous()
    call = _Call(qkv, tables, num_heads, grid, extents)
    dqkv = torch.empty_like(qkv)
    delta = torch.empty_like(lse)
    key_terms = value_terms = ds_slots = p_slots = delta  # not read without tables
    if tables is not None:
        slots = (2, *lse.shape, call.shape.slots)
        key_terms, value_terms = qkv.new_empty(slots).unbind(0)
        ds_slots, p_slots = lse.new_empty(slots).unbind(0)
    heads = _contiguous(extents, lse)
    call.launch_tiles(
        attention_query_gradient_kernel, 0, qkv, _contiguous(tables, qkv), out, dout, lse, delta,
        key_terms, value_terms, ds_slots, p_slots, dqkv, heads, *call.sizes, scale,
    )  # fmt: skip
    call.launch_tiles(
        attention_key_gradient_kernel, 1, qkv, dout, lse, delta, key_terms, value_terms, dqkv,
        heads, *call.sizes, scale,
    )  # fmt: skip
    if grad_tables is not None:
        _add_table_gradient(call, qkv, dout, ds_slots, p_slots, heads, scale, grad_tables)
    return dqkv


def _add_table_gradient(
    call: _Call, qkv: Tensor, dout: Tensor, ds_slots: Tensor, p_slots: Tensor, heads: Tensor,
    scale: float, grad: Tensor,
) -> None:  # fmt: skip
    """Sums of a fixed share of the sequences each, then the sum of those in order."""
    shape, kernel = call.shape, attention_table_partial_kernel
    rows, pad = shape.constants["ROWS"], shape.constants["HEAD_PAD"]
    each = _cdiv(call.sequences, TABLE_SHARES)
    shares = _cdiv(call.sequences, each)
    partials = ds_slots.new_empty(shares, 2, rows, pad)
    config = shape.config(kernel, call.architecture)
    constants = shape.of(kernel, config.blocks)
    kernel[(2 * rows // constants["BLOCK_T"] * shares,)](
        qkv, dout, ds_slots, p_slots, partials, heads, qkv.stride(0), qkv.stride(1),
        dout.stride(0), dout.stride(1), call.heads, call.tokens, call.sequences, each, scale,
        **constants, num_warps=config.warps, num_stages=config.stages,
    )  # fmt: skip
    kernel = attention_table_gradient_kernel
    config = shape.config(kernel, call.architecture)
    kernel[(4 * shape.constants["TABLE_ROWS"],)](
        partials, grad, shares,
        **shape.of(kernel, config.blocks), num_warps=config.warps, num_stages=config.stages,
    )  # fmt: skip


def _contiguous(tensor: Tensor | None, stand_in: Tensor) -> Tensor:
    return stand_in if tensor is None else tensor.contiguous()
