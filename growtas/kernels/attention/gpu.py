"""attention on the GPU: launchers of the Triton kernels in ``gpu_forward`` and ``gpu_backward``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from growtas.kernels.attention.gpu_backward import (
    attention_key_gradient_kernel,
    attention_query_gradient_kernel,
    attention_table_partial_kernel,
)
from growtas.kernels.attention.gpu_forward import attention_forward_kernel
from growtas.kernels.attention.gpu_shape import Shape
from growtas.kernels.triton.configs import architecture
from growtas.kernels.triton.launch import launch
from growtas.kernels.triton.support import dot_precision, unsupported

__all__ = ["backward_", "forward", "unsupported"]

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
        if extents is None:
            self.extents: tuple[Any, ...] = (qkv, 0, 1)  # not read
        else:
            self.extents = (extents, extents.stride(0), self.batch // len(extents))
        self.sizes = (
            *self.extents, qkv.stride(0), qkv.stride(1), width, self.tokens * width, width,
            num_heads, self.tokens,
        )  # fmt: skip

    def launch_tiles(self, kernel: Any, axis: int, *arguments: Any, before: int = 0) -> None:
        """So many programs, then one per image, head and tile of tokens, which is the
        ``axis``-th block."""
        config = self.shape.config(kernel, self.architecture)
        programs = before + self.sequences * _cdiv(self.tokens, config.blocks[axis])
        launch(kernel, programs, arguments, self.shape.of(kernel, config.blocks), config)


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
        extents: int32 ``[G]`` on the device: heads of a subnet for each of G equal parts of the
            batch, at most ``num_heads``, which then only sets the layout; what belongs to other
            heads is neither read nor written.
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
        *call.sizes, scale,
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
    call.launch_tiles(
        attention_query_gradient_kernel, 0, qkv, _contiguous(tables, qkv), out, dout, lse, delta,
        key_terms, value_terms, ds_slots, p_slots, dqkv, *call.sizes, scale,
    )  # fmt: skip
    partials = grad = delta
    shares = rows = 0
    if grad_tables is not None:
        partials, grad = _table_sums(call, qkv, dout, ds_slots, p_slots, scale), grad_tables
        shares, rows = len(partials), 4 * grad_tables.shape[1]
    call.launch_tiles(
        attention_key_gradient_kernel, 1, qkv, dout, lse, delta, key_terms, value_terms, dqkv,
        partials, grad, shares, rows, *call.sizes, scale, before=rows,
    )  # fmt: skip
    return dqkv


def _table_sums(
    call: _Call, qkv: Tensor, dout: Tensor, ds_slots: Tensor, p_slots: Tensor, scale: float
) -> Tensor:
    """The tables' gradient in parts ``[shares, 2, ROWS, HEAD_PAD]``, each the sum over a fixed
    share of the images and heads."""
    kernel = attention_table_partial_kernel
    rows, pad = call.shape.constants["ROWS"], call.shape.constants["HEAD_PAD"]
    each = max(1, _cdiv(call.sequences, TABLE_SHARES))
    partials = ds_slots.new_empty(_cdiv(call.sequences, each), 2, rows, pad)
    config = call.shape.config(kernel, call.architecture)
    constants = call.shape.of(kernel, config.blocks)
    arguments = (
        qkv, dout, ds_slots, p_slots, partials, *call.extents, qkv.stride(0), qkv.stride(1),
        dout.stride(0), dout.stride(1), call.heads, call.tokens, call.sequences, each, scale,
    )  # fmt: skip
    programs = 2 * rows // constants["BLOCK_T"] * len(partials)
    launch(kernel, programs, arguments, constants, config)
    return partials


def _contiguous(tensor: Tensor | None, stand_in: Tensor) -> Tensor:
    return stand_in if tensor is None else tensor.contiguous()
