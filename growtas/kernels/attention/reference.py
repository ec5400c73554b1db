"""attention, the specification, in plain PyTorch.

For query i and key j (AutoFormer; relative position after Shaw et al., split in two dimensions):

    logits[i, j] = scale * q_i . (k_j + RK[i, j]),      A = softmax over j
    out_i        = sum_j A[i, j] (v_j + RV[i, j])
    RK[i, j]     = tables[0, a(i, j)] + tables[1, b(i, j)],   RV likewise with tables[2], tables[3]

Between patches a = clamp(row_j - row_i, -r, r) + r + 1 and b the same with columns; a = b = 0
where either is the class token. RK is never built: because an entry depends on the key only
through its row or its column, q against a table is one small product, picked by index.
Unlike every other backend, this one stores the B x h x N x N probabilities. With the number of
heads on the device those beyond it are masked.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from growtas.kernels.attention.api import AttentionCall
from growtas.kernels.call import Grads
from growtas.kernels.dtypes import accumulation_dtype
from growtas.kernels.extents import inside

Index = tuple[Tensor, ...]  # table rows by row distance and by column distance; empty for none


def relative_index(tokens: int, grid: tuple[int, int], rows: int, device: torch.device) -> Index:
    """Table rows a, b (int64 ``[N, N]``, query by key) for a table of ``rows`` = 2r + 2 rows."""
    reach = (rows - 2) // 2
    height, width = grid
    y, x = torch.meshgrid(
        torch.arange(height, device=device), torch.arange(width, device=device), indexing="ij"
    )
    prefix = tokens - height * width
    indices = []
    for position in (y.flatten(), x.flatten()):
        distance = position[None, :] - position[:, None]
        index = distance.clamp(-reach, reach) + reach + 1
        indices.append(F.pad(index, (prefix, 0, prefix, 0)))
    return tuple(indices)


def _split(call: AttentionCall) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v ``[B, h, N, d]`` in the accumulation dtype; zeros in heads beyond the extent."""
    q, k, v = call.qkv.unflatten(-1, (3, call.num_heads, -1)).permute(2, 0, 3, 1, 4)
    dtype = accumulation_dtype(call.qkv.dtype)
    q, k, v = (_existing(t.to(dtype), call.extents) for t in (q, k, v))
    return q, k, v


def _existing(x: Tensor, extents: Tensor | None) -> Tensor:
    """``[B, h, N, d]`` with zeros in heads beyond the extent, whatever was there."""
    if extents is None:
        return x
    return torch.where(inside(x.shape[1], extents).view(-1, 1, 1), x, 0.0)


def _logits(q: Tensor, k: Tensor, tables: Tensor | None, index: Index, scale: float) -> Tensor:
    logits = q @ k.mT
    if tables is not None:
        for table, rows in zip(tables[:2], index, strict=True):
            products = q @ table.mT  # [B, h, N, R]
            logits = logits + products.gather(-1, rows.expand_as(logits))
    return logits * scale


def _bucket_sums(values: Tensor, rows: Tensor, num_rows: int) -> Tensor:
    """Sums of ``values`` ``[B, h, N, N]`` over the keys of each table row: ``[B, h, N, R]``."""
    sums = values.new_zeros(*values.shape[:-1], num_rows)
    return sums.scatter_add_(-1, rows.expand_as(values), values)


def _tables(call: AttentionCall, dtype: torch.dtype) -> tuple[Tensor | None, Index]:
    """The tables in this dtype, and which of their rows every query and key take."""
    if call.tables is None:
        return None, ()
    index = relative_index(call.qkv.shape[1], call.grid, call.tables.shape[1], call.qkv.device)
    return call.tables.to(dtype), index


def forward(call: AttentionCall) -> tuple[Tensor, Tensor]:
    """out ``[B, N, h * d]`` and the log-sum-exp of the logits ``[B, h * N]``."""
    q, k, v = _split(call)
    tables, index = _tables(call, q.dtype)
    logits = _logits(q, k, tables, index, call.scale)
    probabilities = logits.softmax(-1)
    out = probabilities @ v
    if tables is not None:
        for table, rows in zip(tables[2:], index, strict=True):
            out = out + _bucket_sums(probabilities, rows, table.shape[0]) @ table
    out = out.transpose(1, 2).flatten(2).to(call.qkv.dtype)
    return out, logits.logsumexp(-1).flatten(1)


def backward(call: AttentionCall, saved: Sequence[Tensor], dy: Tensor, grads: Grads) -> Tensor:
    """dqkv ``[B, N, 3 * h * d]``. Other backends recompute the probabilities from the log-sum-exp;
    here softmax is run again."""
    (grad_tables,) = grads.parameters
    q, k, v = _split(call)
    tables, index = _tables(call, q.dtype)
    probabilities = _logits(q, k, tables, index, call.scale).softmax(-1)
    do = dy.unflatten(-1, (call.num_heads, -1)).transpose(1, 2).to(q.dtype)
    do = _existing(do, call.extents)

    dv = probabilities.mT @ do
    dp = do @ v.mT
    if tables is not None:
        for table, rows in zip(tables[2:], index, strict=True):
            dp = dp + (do @ table.mT).gather(-1, rows.expand_as(dp))
    ds = probabilities * (dp - (probabilities * dp).sum(-1, keepdim=True)) * call.scale
    # Tables that no head reads may hold anything: it must not reach their gradient.
    ds, probabilities = (_existing(t, call.extents) for t in (ds, probabilities))
    dq, dk = ds @ k, ds.mT @ q
    if tables is not None:
        for which, rows in enumerate(index):
            key_sums = _bucket_sums(ds, rows, tables.shape[1])
            dq = dq + key_sums @ tables[which]
            if grad_tables is not None:
                value_sums = _bucket_sums(probabilities, rows, tables.shape[1])
                grad_tables[which].add_(torch.einsum("bhnr,bhnd->rd", key_sums, q))
                grad_tables[which + 2].add_(torch.einsum("bhnr,bhnd->rd", value_sums, do))
    dqkv = torch.stack([dq, dk, dv]).permute(1, 3, 0, 2, 4)  # [B, N, 3, h, d]
    return dqkv.flatten(2).to(call.qkv.dtype)
