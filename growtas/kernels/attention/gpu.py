"""attention on the GPU: launchers of the Triton kernels in ``gpu_forward`` and ``gpu_backward``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from growtas.kernels.attention.api import AttentionCall
from growtas.kernels.attention.gpu_backward import (
    attention_key_gradient_kernel,
    attention_query_gradient_kernel,
    attention_table_partial_kernel,
)
from growtas.kernels.attention.gpu_forward import attention_forward_kernel
from growtas.kernels.attention.gpu_shape import Shape
from growtas.kernels.call import Grads
from growtas.kernels.triton.configs import architecture
from growtas.kernels.triton.launch import launch
from growtas.kernels.triton.support import dot_precision

SEVERAL_SUBNETS = True
TABLE_SHARES = 132  # at most: with the two sides, two programs for each of an H100's processors


def _cdiv(a: int, b: int) -> int:
    return -(-a // b)


class _Launcher:
    """The sizes of a call, and how its kernels are launched."""

    def __init__(self, call: AttentionCall, qkv: Tensor) -> None:
        """qkv: the call's, contiguous."""
        batch, self.tokens, features = qkv.shape
        self.heads = call.num_heads
        self.sequences = batch * self.heads
        width = features // 3
        self.architecture = architecture(qkv.device)
        self.shape = Shape(
            head_dim=width // self.heads,
            grid=call.grid,
            class_token=self.tokens - call.height * call.width,
            table_rows=None if call.tables is None else call.tables.shape[1],
            dtype=qkv.dtype,
            precision=dot_precision(qkv.dtype),
            device_extents=call.extents is not None,
        )
        if call.extents is None:
            self.extents: tuple[Any, ...] = (qkv, 0, 1)  # not read
        else:
            self.extents = (call.extents, call.extents.stride(0), batch // len(call.extents))
        self.sizes = (
            *self.extents, qkv.stride(0), qkv.stride(1), width, self.tokens * width, width,
            self.heads, self.tokens,
        )  # fmt: skip

    def launch_tiles(self, kernel: Any, axis: int, *arguments: Any, before: int = 0) -> None:
        """So many programs, then one per image, head and tile of tokens, which is the
        ``axis``-th block."""
        config = self.shape.config(kernel, self.architecture)
        programs = before + self.sequences * _cdiv(self.tokens, config.blocks[axis])
        launch(kernel, programs, arguments, self.shape.of(kernel, config.blocks), config)

    def sum_tables(
        self, qkv: Tensor, dout: Tensor, ds_slots: Tensor, p_slots: Tensor, scale: float
    ) -> Tensor:
        """The tables' gradient in parts ``[shares, 2, ROWS, HEAD_PAD]``, each the sum over a fixed
        share of the images and heads."""
        kernel = attention_table_partial_kernel
        rows, pad = self.shape.constants["ROWS"], self.shape.constants["HEAD_PAD"]
        each = max(1, _cdiv(self.sequences, TABLE_SHARES))
        partials = ds_slots.new_empty(_cdiv(self.sequences, each), 2, rows, pad)
        config = self.shape.config(kernel, self.architecture)
        constants = self.shape.of(kernel, config.blocks)
        arguments = (
            qkv, dout, ds_slots, p_slots, partials, *self.extents, qkv.stride(0), qkv.stride(1),
            dout.stride(0), dout.stride(1), self.heads, self.tokens, self.sequences, each, scale,
        )  # fmt: skip
        programs = 2 * rows // constants["BLOCK_T"] * len(partials)
        launch(kernel, programs, arguments, constants, config)
        return partials


def forward(call: AttentionCall) -> tuple[Tensor, Tensor]:
    """See :func:`growtas.kernels.attention.reference.forward`; no N x N tensor is stored. With
    extents on the device `num_heads` only sets the layout: what belongs to other heads is neither
    read nor written."""
    qkv = call.qkv.contiguous()
    launcher = _Launcher(call, qkv)
    out, lse = call.outputs()
    scratch = lse
    if call.tables is not None:
        scratch = lse.new_empty(*lse.shape, launcher.shape.slots)
    launcher.launch_tiles(
        attention_forward_kernel, 0, qkv, _contiguous(call.tables, qkv), out, lse, scratch,
        *launcher.sizes, call.scale,
    )  # fmt: skip
    return out, lse


def backward(call: AttentionCall, saved: Sequence[Tensor], dy: Tensor, grads: Grads) -> Tensor:
    """dqkv. Deterministic."""
    (out, lse), (grad_tables,) = saved, grads.parameters
    qkv, dout = call.qkv.contiguous(), dy.contiguous()
    launcher = _Launcher(call, qkv)
    dqkv = torch.empty_like(qkv)
    delta = torch.empty_like(lse)
    key_terms = value_terms = ds_slots = p_slots = delta  # not read without tables
    if call.tables is not None:
        slots = (2, *lse.shape, launcher.shape.slots)
        key_terms, value_terms = qkv.new_empty(slots).unbind(0)
        ds_slots, p_slots = lse.new_empty(slots).unbind(0)
    launcher.launch_tiles(
        attention_query_gradient_kernel, 0, qkv, _contiguous(call.tables, qkv), out, dout, lse,
        delta, key_terms, value_terms, ds_slots, p_slots, dqkv, *launcher.sizes, call.scale,
    )  # fmt: skip
    partials = grad = delta
    shares = rows = 0
    if grad_tables is not None:
        partials = launcher.sum_tables(qkv, dout, ds_slots, p_slots, call.scale)
        grad, shares, rows = grad_tables, len(partials), 4 * grad_tables.shape[1]
    launcher.launch_tiles(
        attention_key_gradient_kernel, 1, qkv, dout, lse, delta, key_terms, value_terms, dqkv,
        partials, grad, shares, rows, *launcher.sizes, call.scale, before=rows,
    )  # fmt: skip
    return dqkv


def _contiguous(tensor: Tensor | None, stand_in: Tensor) -> Tensor:
    return stand_in if tensor is None else tensor.contiguous()
