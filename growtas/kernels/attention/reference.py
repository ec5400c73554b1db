"""attention, the specification, in plain PyTorch.

For query i and key j (AutoFormer; relative position after Shaw et al., split in two dimensions):

    logits[i, j] = scale * q_i . (k_j + RK[i, j]),      A = softmax over j
    out_i        = sum_j A[i, j] (v_j + RV[i, j])
    RK[i, j]     = tables[0, a(i, j)] + tables[1, b(i, j)],   RV likewise with tables[2], tables[3]

Between patches a = clamp(row_j - row_i, -r, r) + r + 1 and b the same with columns; a = b = 0
where either is the class token. RK is never built: because an entry depends on the key only
through its row or its column, q against a table is one small product, picked by index.
Unlike every other backend, this one stores the B x h x N x N probabilities.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from growtas.kernels.extents import inside


def unsupported(*tensors: Tensor) -> str | None:
    """None: plain PyTorch takes every device and dtype."""
    return None


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """float32, or float64 for float64."""
    return torch.promote_types(dtype, torch.float32)


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


def groups(extents: Tensor, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Of every subnet its extent, int32 ``[1]``, and its equal part of each tensor's images."""
    count = len(extents)
    return zip(extents.split(1), *(t.tensor_split(count) for t in tensors), strict=True)


def _split(qkv: Tensor, num_heads: int, extents: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v ``[B, h, N, d]`` in the accumulation dtype; zeros in heads beyond the extent."""
    q, k, v = qkv.unflatten(-1, (3, num_heads, -1)).permute(2, 0, 3, 1, 4)
    dtype = accumulation_dtype(qkv.dtype)
    q, k, v = (_existing(t.to(dtype), extents) for t in (q, k, v))
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


def forward(
    qkv: Tensor,
    tables: Tensor | None,
    num_heads: int,
    grid: tuple[int, int],
    scale: float,
    extents: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Returns out ``[B, N, h * d]`` and the log-sum-exp of the logits ``[B, h, N]``.

    With the number of heads on the device, one for each group of images, those beyond it are
    masked.
    """
    if extents is not None and len(extents) > 1:
        parts = [
            forward(images, tables, num_heads, grid, scale, extent)
            for extent, images in groups(extents, qkv)
        ]
        out, lse = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
        return out, lse
    q, k, v = _split(qkv, num_heads, extents)
    index: Index = ()
    if tables is not None:
        index = relative_index(qkv.shape[1], grid, tables.shape[1], qkv.device)
        tables = tables.to(q.dtype)
    logits = _logits(q, k, tables, index, scale)
    lse = logits.logsumexp(-1)
    probabilities = logits.softmax(-1)
    out = probabilities @ v
    if tables is not None:
        for table, rows in zip(tables[2:], index, strict=True):
            out = out + _bucket_sums(probabilities, rows, table.shape[0]) @ table
    return out.transpose(1, 2).flatten(2).to(qkv.dtype), lse


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
    """Adds the tables' gradient into ``grad_tables``; returns dqkv ``[B, N, 3 * h * d]``.

    Other backends recompute the probabilities from ``lse``; here softmax is run again.
    """
    if extents is not None and len(extents) > 1:
        parts = [
            backward_(douts, qkvs, tables, out, lse, num_heads, grid, scale, grad_tables, extent)
            for extent, douts, qkvs in groups(extents, dout, qkv)
        ]
        return torch.cat(parts)
    q, k, v = _split(qkv, num_heads, extents)
    index: Index = ()
    if tables is not None:
        index = relative_index(qkv.shape[1], grid, tables.shape[1], qkv.device)
        tables = tables.to(q.dtype)
    probabilities = _logits(q, k, tables, index, scale).softmax(-1)
    do = dout.unflatten(-1, (num_heads, -1)).transpose(1, 2).to(q.dtype)
    do = _existing(do, extents)

    dv = probabilities.mT @ do
    dp = do @ v.mT
    if tables is not None:
        for table, rows in zip(tables[2:], index, strict=True):
            dp = dp + (do @ table.mT).gather(-1, rows.expand_as(dp))
    ds = probabilities * (dp - (probabilities * dp).sum(-1, keepdim=True)) * scale
    # Tables that no head reads may hold anything: it must not reach their gradient.
    ds, probabilities = _existing(ds, extents), _existing(probabilities, extents)
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
    return dqkv.flatten(2).to(qkv.dtype)
