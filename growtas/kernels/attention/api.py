"""``attention``: self-attention with 2-D relative position on keys and values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from growtas.kernels.arguments import check_floating, whole
from growtas.kernels.attention.reference import accumulation_dtype
from growtas.kernels.autocast import cast_to_autocast
from growtas.kernels.dispatch import select
from growtas.kernels.extents import check_extent
from growtas.kernels.gradients import GradientAccumulator, full_size_zeros
from growtas.kernels.library import define, differentiable, own_function, second_order


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
        extents: int32 ``[G]`` on the device: the heads there are, 0 or more, for each of G equal
            parts of the batch. Then `num_heads` is the most that can occur; other heads are not
            read, nor meaningful in outputs.

    Returns:
        ``[B, N, num_heads * head_dim]`` in qkv's dtype. Softmax and sums are float32 (float64 for
        float64).

    Raises:
        ValueError: shapes that do not fit together, or extents that are not int32 ``[G]`` on qkv's
            device with G dividing the batch, or, where they are on the CPU, not within `num_heads`.
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
    arguments = (qkv, tables, num_heads, height, width, scale, extents)
    differentiated = torch.is_grad_enabled() and (
        qkv.requires_grad or (tables is not None and tables.requires_grad)
    )
    if differentiated and own_function(qkv, gradients):
        return _Attention.apply(*arguments, gradients)
    return _forward(*arguments)[0]


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *given: Any) -> Tensor:
        """The operator's arguments, and the accumulator."""
        arguments, gradients = given[:-1], given[-1]
        out, lse = _forward(*arguments)
        _keep(ctx, arguments, out, lse, gradients)
        return out

    @staticmethod
    def backward(ctx: Any, dout: Tensor | None) -> tuple[Tensor | None, ...]:
        if dout is None:
            return (None,) * 8
        qkv, tables, out, lse, extents = ctx.saved_tensors
        if torch.is_grad_enabled():
            return *_second_order(ctx, dout), *(None,) * 6
        grad_tables = None
        if ctx.needs_input_grad[1]:
            if ctx.gradients is None:
                grad_tables = full_size_zeros(tables)
            else:
                grad_tables = ctx.gradients.buffer(ctx.parameters[0], tables.shape)
        dqkv = _backward(dout, qkv, tables, out, lse, *ctx.options, grad_tables, extents)
        if ctx.gradients is not None:
            grad_tables = None
        return dqkv, grad_tables, *(None,) * 6


def _keep(
    ctx: Any,
    arguments: Sequence[Any],
    out: Tensor,
    lse: Tensor,
    gradients: GradientAccumulator | None,
) -> None:
    """What the backward pass needs of a call."""
    qkv, tables, *options, extents = arguments
    ctx.save_for_backward(qkv, tables, out, lse, extents)
    ctx.options = options
    ctx.gradients = gradients
    # the parameters themselves: saved tensors may come back as other objects
    ctx.parameters = (tables,) if gradients is not None else None
    ctx.set_materialize_grads(False)


def _second_order(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
    qkv, tables, _, _, extents = ctx.saved_tensors
    num_heads, height, width, scale = ctx.options

    def call(forward: Callable, qkv: Tensor, tables: Tensor | None) -> Tensor:
        return forward(qkv, tables, num_heads, (height, width), scale, extents)[0]

    return second_order("attention", ctx, call, (qkv, tables), dout)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.mark_non_differentiable(output[1])
    _keep(ctx, inputs, *output, None)


def _forward_impl(
    qkv: Tensor,
    tables: Tensor | None,
    num_heads: int,
    height: int,
    width: int,
    scale: float,
    extents: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    backend = select("attention", qkv)
    out, lse = backend.forward(qkv, tables, num_heads, (height, width), scale, extents)
    # Flat, because compiled code would ask of a dimension of its own whether it is 1: a graph for
    # every pattern of blocks with one head.
    return out, lse.view(qkv.shape[0], num_heads * qkv.shape[1])


def _forward_fake(
    qkv: Tensor,
    tables: Tensor | None,
    num_heads: int,
    height: int,
    width: int,
    scale: float,
    extents: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    batch, tokens, features = qkv.shape
    lse = qkv.new_empty(batch, num_heads * tokens, dtype=accumulation_dtype(qkv.dtype))
    return qkv.new_empty(batch, tokens, features // 3), lse


def _backward_impl(
    dout: Tensor,
    qkv: Tensor,
    tables: Tensor | None,
    out: Tensor,
    lse: Tensor,
    num_heads: int,
    height: int,
    width: int,
    scale: float,
    grad_tables: Tensor | None,
    extents: Tensor | None = None,
) -> Tensor:
    backend = select("attention", qkv)
    lse = lse.view(qkv.shape[0], num_heads, qkv.shape[1])
    return backend.backward_(
        dout, qkv, tables, out, lse, num_heads, (height, width), scale, grad_tables, extents
    )


def _backward_fake(
    dout: Tensor,
    qkv: Tensor,
    tables: Tensor | None,
    out: Tensor,
    lse: Tensor,
    num_heads: int,
    height: int,
    width: int,
    scale: float,
    grad_tables: Tensor | None,
    extents: Tensor | None = None,
) -> Tensor:
    return qkv.new_empty(qkv.shape)


_forward = define(
    "attention(Tensor qkv, Tensor? tables, SymInt num_heads, SymInt height, SymInt width, "
    "float scale, Tensor? extents=None) -> (Tensor, Tensor)",
    _forward_impl,
    _forward_fake,
)
_backward = define(
    "attention_backward(Tensor dout, Tensor qkv, Tensor? tables, Tensor out, Tensor lse, "
    "SymInt num_heads, SymInt height, SymInt width, float scale, Tensor(a!)? grad_tables, "
    "Tensor? extents=None) -> Tensor",
    _backward_impl,
    _backward_fake,
)
differentiable(
    "attention", _setup_context, lambda ctx, dout, _: _Attention.backward(ctx, dout)[:-1]
)
