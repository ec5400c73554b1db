"""attention on the GPU: launchers of the Triton kernels in ``gpu_forward`` and ``gpu_backward``."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from growtas.kernels.attention.gpu_backward import (
    attention_key_gradient_kernel,
    attention_query_gradient_kernel,
    attention_table_gradient_kernel,
    attention_table_partial_kernel,
)
from growtas.kernels.attention.gpu_forward import attention_forward_kernel
from growtas.kernels.triton_support import dot_precision, power_of_two, unavailable, unsupported

__all__ = ["available", "backward_", "forward", "unsupported"]

available = unavailable


class Tiles(NamedTuple):
    """How a kernel is cut: queries and keys per tile, warps, pipeline stages."""

    block_m: int
    block_n: int
    warps: int
    stages: int


# By pass. Sizes that fit the shared memory and registers of sm_80 and sm_90 up to head dim 128.
FORWARD = Tiles(64, 64, 4, 2)
QUERY_GRADIENT = Tiles(64, 64, 4, 2)
KEY_GRADIENT = Tiles(64, 64, 4, 2)
TABLE_PROGRAMS = 264  # two for each of a large GPU's processors


def _cdiv(a: int, b: int) -> int:
    return -(-a // b)


class _Shape:
    """Everything about a call that the kernels take as constants or sizes."""

    def __init__(
        self, qkv: Tensor, tables: Tensor | None, num_heads: int, grid: tuple[int, int]
    ) -> None:
        self.batch, self.tokens, features = qkv.shape
        self.heads = num_heads
        self.head_dim = features // (3 * num_heads)
        self.rows = 2 if tables is None else tables.shape[1]
        height, width = grid
        self.constants: dict[str, Any] = {
            "GRID_H": height,
            "GRID_W": width,
            "CLS": self.tokens - height * width,
            "SLOTS": power_of_two(height + width + 2),
            "HEAD_DIM": self.head_dim,
            "HEAD_PAD": power_of_two(self.head_dim),
            "RELATIVE": tables is not None,
            "DEVICE_EXTENTS": False,
            "PRECISION": dot_precision(qkv.dtype),
        }
        self.table_constants = {"TABLE_ROWS": self.rows, "ROWS": power_of_two(2 * self.rows)}
        out_width = num_heads * self.head_dim
        self.sizes = (
            qkv.stride(0), qkv.stride(1), out_width, self.tokens * out_width, out_width,
            num_heads, self.tokens,
        )  # fmt: skip


def forward(
    qkv: Tensor, tables: Tensor | None, num_heads: int, grid: tuple[int, int], scale: float
) -> tuple[Tensor, Tensor]:
    """See :func:`growtas.kernels.attention.reference.forward`; no N x N tensor is stored."""
    qkv = qkv.contiguous()
    shape = _Shape(qkv, tables, num_heads, grid)
    out = qkv.new_empty(shape.batch, shape.tokens, num_heads * shape.head_dim)
    lse = qkv.new_empty(shape.batch, num_heads, shape.tokens, dtype=torch.float32)
    scratch = lse
    if tables is not None:
        scratch = lse.new_empty(*lse.shape, shape.constants["SLOTS"])
    block_m, block_n, warps, stages = FORWARD
    programs = _cdiv(shape.tokens, block_m) * num_heads * shape.batch
    attention_forward_kernel[(programs,)](
        qkv, _tables(tables, qkv), out, lse, scratch, lse, *shape.sizes, scale,
        **shape.constants, **shape.table_constants,
        BLOCK_M=block_m, BLOCK_N=block_n, num_warps=warps, num_stages=stages,
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
) -> Tensor:
    """See :func:`growtas.kernels.attention.reference.backward_`. Deterministic."""
    qkv, dout = qkv.contiguous(), dout.contiguous()
    shape = _Shape(qkv, tables, num_heads, grid)
    dqkv = torch.empty_like(qkv)
    delta = torch.empty_like(lse)
    key_terms = value_terms = ds_slots = p_slots = delta  # not read without tables
    if tables is not None:
        slots = (2, *lse.shape, shape.constants["SLOTS"])
        key_terms, value_terms = qkv.new_empty(slots).unbind(0)
        ds_slots, p_slots = lse.new_empty(slots).unbind(0)
    sequences = shape.batch * num_heads

    block_m, block_n, warps, stages = QUERY_GRADIENT
    attention_query_gradient_kernel[(sequences * _cdiv(shape.tokens, block_m),)](
        qkv, _tables(tables, qkv), out, dout, lse, delta, key_terms, value_terms, ds_slots, p_slots,
        dqkv, lse, *shape.sizes, scale, **shape.constants, **shape.table_constants,
        BLOCK_M=block_m, BLOCK_N=block_n, num_warps=warps, num_stages=stages,
    )  # fmt: skip
    block_m, block_n, warps, stages = KEY_GRADIENT
    attention_key_gradient_kernel[(sequences * _cdiv(shape.tokens, block_n),)](
        qkv, dout, lse, delta, key_terms, value_terms, dqkv, lse, *shape.sizes, scale,
        **shape.constants, BLOCK_M=block_m, BLOCK_N=block_n, num_warps=warps, num_stages=stages,
    )  # fmt: skip
    if grad_tables is not None:
        _add_table_gradient(qkv, dout, ds_slots, p_slots, shape, scale, grad_tables)
    return dqkv


def _add_table_gradient(
    qkv: Tensor, dout: Tensor, ds_slots: Tensor, p_slots: Tensor, shape: _Shape, scale: float,
    grad: Tensor,
) -> None:  # fmt: skip
    sequences = shape.batch * shape.heads
    each = _cdiv(sequences, TABLE_PROGRAMS)
    programs = _cdiv(sequences, each)
    rows, pad = shape.table_constants["ROWS"], shape.constants["HEAD_PAD"]
    partials = ds_slots.new_empty(programs, 2, rows, pad)
    constants = {k: v for k, v in shape.constants.items() if k != "RELATIVE"}
    attention_table_partial_kernel[(2 * programs,)](
        qkv, dout, ds_slots, p_slots, partials, ds_slots, qkv.stride(0), qkv.stride(1),
        dout.stride(0), dout.stride(1), shape.heads, shape.tokens, sequences, scale,
        **constants, **shape.table_constants, EACH=each, BLOCK_M=64, num_warps=4, num_stages=2,
    )  # fmt: skip
    attention_table_gradient_kernel[(4 * shape.rows,)](
        partials, grad, programs, **shape.table_constants,
        HEAD_DIM=shape.head_dim, HEAD_PAD=pad, BLOCK=32, num_warps=4,
    )  # fmt: skip


def _tables(tables: Tensor | None, stand_in: Tensor) -> Tensor:
    return stand_in if tables is None else tables.contiguous()
