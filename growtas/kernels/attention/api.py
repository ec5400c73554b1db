"""``attention``: self-attention with 2-D relative position on keys and values."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from growtas.kernels.arguments import check_floating, whole
from growtas.kernels.autocast import cast_to_autocast
from growtas.kernels.call import Operator
from growtas.kernels.dtypes import accumulation_dtype
from growtas.kernels.extents import check_extent
from growtas.kernels.gradients import GradientAccumulator


class AttentionCall(NamedTuple):
    """One call of :func:`attention`: its arguments, checked.

    Attributes:
        num_heads: heads of the subnet; with `extents` the most there can be.
        height, width: of the grid of patches.
        scale: of the logits.
        extents: heads on the device.
    """

    qkv: Tensor
    tables: Tensor | None
    num_heads: int
    height: int
    width: int
    scale: float
    extents: Tensor | None

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return self.height, self.width

    def outputs(self) -> tuple[Tensor, Tensor]:
        """out ``[B, N, h * d]`` and the log-sum-exp of the logits ``[B, h * N]``, not filled. The
        latter is flat, because compiled code would ask of a dimension of its own whether it is 1: a
        graph for every pattern of blocks with one head."""
        batch, tokens, features = self.qkv.shape
        dtype = accumulation_dtype(self.qkv.dtype)
        lse = self.qkv.new_empty(batch, self.num_heads * tokens, dtype=dtype)
        return self.qkv.new_empty(batch, tokens, features // 3), lse

    def boxes(self) -> tuple[tuple[int, ...]]:
        """Of the tables: all of them."""
        return (() if self.tables is None else tuple(self.tables.shape),)


def attention(
    qkv: Tensor,
    tables: Tensor | None = None,
    *,
    num_heads: int,
    grid: tuple[int, int],
    scale: float | None = None,
    gradients: GradientAccumulator | None = None,
    extents: Tensor | None = None,
) -> Tensor:
    """softmax(scale * q (k + RK)^T) (v + RV): AutoFormer's attention (see ``reference.py``).

    Args:
        qkv: ``[B, N, 3 * num_heads * head_dim]``, blocks q, k, v, each ``[num_heads, head_dim]``;
            N = H * W patches in row-major order, or one more with a class token first. float32,
            bfloat16, float16 or (CPU) float64.
        tables: whole parameter ``[4, 2r + 2, head_dim]`` shared by all heads: keys by row
            distance, keys by column, values by row, values by column; row 0 is for the class
            token. float32 or qkv's dtype. None: attention without relative position.
        num_heads: heads in this subnet.
        grid: ``(H, W)`` of the patches, any size.
        scale: default ``head_dim ** -0.5``; applied to the relative term too.
        gradients: None for dense gradients, or an accumulator for the tables' ``.grad``.
        extents: int32 ``[S]`` on the device: the heads there are, 0 or more, for each of S equal
            parts of the batch. Then `num_heads` is the most that can occur; other heads are not
            read, nor meaningful in outputs.

    Returns:
        ``[B, N, num_heads * head_dim]`` in qkv's dtype. Softmax and sums are float32 (float64 for
        float64).

    Raises:
        ValueError: shapes that do not fit together, or extents that are not int32 ``[S]`` on qkv's
            device with S dividing the batch, or, where they are on the CPU, not within `num_heads`.
        TypeError: a qkv that is no tensor of these dtypes, a size that is no integer, a grid that
            is no pair, or tables that are neither float32 nor of qkv's dtype.
    """
    check_floating("qkv", qkv)
    qkv = cast_to_autocast(qkv)
    num_heads = whole("num_heads", num_heads)
    if qkv.dim() != 3 or qkv.shape[-1] % (3 * num_heads) != 0:
        raise ValueError(
            f"qkv must be [B, N, 3 * {num_heads} heads * head_dim], got {tuple(qkv.shape)}"
        )
    if not isinstance(grid, (tuple, list)) or len(grid) != 2:
        raise TypeError(f"grid must be (height, width) of the patches, got {grid!r}")
    height, width = whole("grid[0]", grid[0]), whole("grid[1]", grid[1])
    if qkv.shape[1] - height * width not in (0, 1):
        raise ValueError(
            f"qkv has {qkv.shape[1]} tokens; a grid of {height} x {width} needs "
            f"{height * width}, or {height * width + 1} with a class token"
        )
    head_dim = qkv.shape[-1] // (3 * num_heads)
    if tables is not None:
        if tables.dim() != 3 or tables.shape[0] != 4 or tables.shape[1] % 2 or tables.shape[1] < 2:
            raise ValueError(f"tables must be [4, 2r + 2, head_dim], got {tuple(tables.shape)}")
        if tables.shape[2] != head_dim:
            raise ValueError(f"tables have head_dim {tables.shape[2]}, qkv has {head_dim}")
        if tables.dtype not in (qkv.dtype, torch.float32):
            raise TypeError(
                f"tables are {tables.dtype}; with qkv {qkv.dtype} they must be that or float32"
            )
    check_extent("extents", extents, qkv, 0, num_heads)
    if scale is None:
        scale = float(head_dim) ** -0.5
    call = AttentionCall(qkv, tables, num_heads, height, width, scale, extents)
    return ATTENTION(call, gradients)


ATTENTION = Operator("attention", AttentionCall, parameters=1, saved=1, keeps_y=True)
