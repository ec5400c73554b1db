"""torch.compile, used the two ways that survive a new subnet at every step.

Static: one graph per block shape (12 in AutoFormer-T), everything in a block fused; the weights
enter as views and the slice gradients are added outside the graph, as in the smart baseline.
Dynamic: one graph for every block shape, the extents are arguments; the weights enter whole, since
a view of each size would be a new static parameter, so autograd makes full-size gradients.

Both need a warm-up that the runner reports apart.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.baselines.smart import (
    Grid,
    SliceInPlace,
    SmartBlock,
    SmartSupernet,
    relative_attention,
)

RECOMPILE_LIMIT = 64  # more than the block shapes of any AutoFormer space, times dtype and task


Pair = tuple[Tensor, Tensor]  # weight and bias


class BlockWeights(NamedTuple):
    """What a block computes with."""

    norm1: Pair
    qkv: Pair
    tables: Tensor
    proj: Pair
    norm2: Pair
    fc1: Pair
    fc2: Pair


def block_function(x: Tensor, w: BlockWeights, num_heads: int, grid: Grid) -> Tensor:
    """One block on the sampled slices: the smart baseline's arithmetic without its Functions."""
    dim = x.shape[-1]
    y = F.layer_norm(x, (dim,), *w.norm1, 1e-5)
    y = F.linear(y, w.qkv[0].reshape(-1, dim), w.qkv[1].reshape(-1))
    y = relative_attention(y, w.tables, num_heads, grid)
    x = x + F.linear(y, *w.proj)
    y = F.layer_norm(x, (dim,), *w.norm2, 1e-5)
    return x + F.linear(F.gelu(F.linear(y, *w.fc1)), *w.fc2)


def sliced_block(x: Tensor, w: BlockWeights, num_heads: int, hidden_dim: int, grid: Grid) -> Tensor:
    """The same on slices of whole weights."""
    dim, inner = x.shape[-1], num_heads * w.tables.shape[-1]
    leading = BlockWeights(
        norm1=(w.norm1[0][:dim], w.norm1[1][:dim]),
        qkv=(w.qkv[0][:, :num_heads, :, :dim], w.qkv[1][:, :num_heads]),
        tables=w.tables,
        proj=(w.proj[0][:dim, :inner], w.proj[1][:dim]),
        norm2=(w.norm2[0][:dim], w.norm2[1][:dim]),
        fc1=(w.fc1[0][:hidden_dim, :dim], w.fc1[1][:hidden_dim]),
        fc2=(w.fc2[0][:dim, :hidden_dim], w.fc2[1][:dim]),
    )
    return block_function(x, leading, num_heads, grid)


class CompiledStatic(SmartSupernet):
    """Smart supernet with each block compiled per shape."""

    def __init__(self, **sizes: Any) -> None:
        super().__init__(**sizes)
        torch._dynamo.config.recompile_limit = RECOMPILE_LIMIT
        self.compiled = torch.compile(block_function, dynamic=False, fullgraph=True)

    def run_block(self, block: nn.Module, x: Tensor, num_heads: int, hidden_dim: int) -> Tensor:
        assert isinstance(block, SmartBlock)
        dim, head_dim = x.shape[-1], block.head_dim
        inner = num_heads * head_dim

        def cut(layer: nn.Module, *sizes: int) -> Pair:
            bias = sizes if len(sizes) == 1 else sizes[:-1]
            return (
                SliceInPlace.apply(layer.weight, *sizes),
                SliceInPlace.apply(layer.bias, *bias),
            )

        weights = BlockWeights(
            norm1=cut(block.norm1, dim),
            qkv=cut(block.attn.qkv, 3, num_heads, head_dim, dim),
            tables=SliceInPlace.apply(block.attn.rel_pos, *block.attn.rel_pos.shape),
            proj=cut(block.attn.proj, dim, inner),
            norm2=cut(block.norm2, dim),
            fc1=cut(block.mlp.fc1, hidden_dim, dim),
            fc2=cut(block.mlp.fc2, dim, hidden_dim),
        )
        return self.compiled(x, weights, num_heads, self.grid)


class CompiledDynamic(SmartSupernet):
    """Smart supernet with one dynamic=True graph; gradients of the blocks are dense."""

    def __init__(self, **sizes: Any) -> None:
        super().__init__(**sizes)
        torch._dynamo.config.recompile_limit = RECOMPILE_LIMIT
        self.compiled = torch.compile(sliced_block, dynamic=True, fullgraph=True)

    def run_block(self, block: nn.Module, x: Tensor, num_heads: int, hidden_dim: int) -> Tensor:
        assert isinstance(block, SmartBlock)

        def whole(layer: nn.Module) -> Pair:
            return layer.weight, layer.bias  # type: ignore[return-value]

        weights = BlockWeights(
            norm1=whole(block.norm1),
            qkv=whole(block.attn.qkv),
            tables=block.attn.rel_pos,
            proj=whole(block.attn.proj),
            norm2=whole(block.norm2),
            fc1=whole(block.mlp.fc1),
            fc2=whole(block.mlp.fc2),
        )
        return self.compiled(x, weights, num_heads, hidden_dim, self.grid)
