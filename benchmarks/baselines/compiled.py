"""torch.compile, used the two ways that survive a new subnet at every step.

Static: one graph per block shape (12 in AutoFormer-T), everything in a block fused; the weights
enter as views and the slice gradients are added outside the graph, as in the smart baseline.
Dynamic: one graph for every block shape, the extents are arguments; the weights enter whole, since
a view of each size would be a new static parameter, so autograd makes full-size gradients.

Both need a warm-up that the runner reports apart.
"""

from __future__ import annotations

from typing import Any

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


def block_function(
    x: Tensor,
    norm1: tuple[Tensor, Tensor],
    qkv: tuple[Tensor, Tensor],
    tables: Tensor,
    proj: tuple[Tensor, Tensor],
    norm2: tuple[Tensor, Tensor],
    fc1: tuple[Tensor, Tensor],
    fc2: tuple[Tensor, Tensor],
    num_heads: int,
    grid: Grid,
) -> Tensor:
    """One block on the sampled slices: the smart baseline's arithmetic without its Functions."""
    dim = x.shape[-1]
    y = F.layer_norm(x, (dim,), *norm1, 1e-5)
    y = F.linear(y, qkv[0].reshape(-1, dim), qkv[1].reshape(-1))
    y = relative_attention(y, tables, num_heads, grid)
    x = x + F.linear(y, *proj)
    y = F.layer_norm(x, (dim,), *norm2, 1e-5)
    return x + F.linear(F.gelu(F.linear(y, *fc1)), *fc2)


def _whole(layer: nn.Module) -> tuple[Any, Any]:
    return layer.weight, layer.bias


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

        def cut(layer: nn.Module, *extents: int) -> tuple[Tensor, Tensor]:
            bias = extents if len(extents) == 1 else extents[:-1]
            return (
                SliceInPlace.apply(layer.weight, *extents),
                SliceInPlace.apply(layer.bias, *bias),
            )

        return self.compiled(
            x,
            cut(block.norm1, dim),
            cut(block.attn.qkv, 3, num_heads, head_dim, dim),
            SliceInPlace.apply(block.attn.rel_pos, *block.attn.rel_pos.shape),
            cut(block.attn.proj, dim, inner),
            cut(block.norm2, dim),
            cut(block.mlp.fc1, hidden_dim, dim),
            cut(block.mlp.fc2, dim, hidden_dim),
            num_heads,
            self.grid,
        )


class CompiledDynamic(SmartSupernet):
    """Smart supernet with one dynamic=True graph; gradients of the blocks are dense."""

    def __init__(self, **sizes: Any) -> None:
        super().__init__(**sizes)
        torch._dynamo.config.recompile_limit = RECOMPILE_LIMIT

        def block(
            x: Tensor,
            norm1: tuple[Tensor, Tensor],
            qkv: tuple[Tensor, Tensor],
            tables: Tensor,
            proj: tuple[Tensor, Tensor],
            norm2: tuple[Tensor, Tensor],
            fc1: tuple[Tensor, Tensor],
            fc2: tuple[Tensor, Tensor],
            dim: int,
            num_heads: int,
            hidden_dim: int,
            grid: Grid,
        ) -> Tensor:
            inner = num_heads * tables.shape[-1]
            return block_function(
                x,
                (norm1[0][:dim], norm1[1][:dim]),
                (qkv[0][:, :num_heads, :, :dim], qkv[1][:, :num_heads]),
                tables,
                (proj[0][:dim, :inner], proj[1][:dim]),
                (norm2[0][:dim], norm2[1][:dim]),
                (fc1[0][:hidden_dim, :dim], fc1[1][:hidden_dim]),
                (fc2[0][:dim, :hidden_dim], fc2[1][:dim]),
                num_heads,
                grid,
            )

        self.compiled = torch.compile(block, dynamic=True, fullgraph=True)

    def run_block(self, block: nn.Module, x: Tensor, num_heads: int, hidden_dim: int) -> Tensor:
        assert isinstance(block, SmartBlock)
        return self.compiled(
            x,
            _whole(block.norm1),
            _whole(block.attn.qkv),
            block.attn.rel_pos,
            _whole(block.attn.proj),
            _whole(block.norm2),
            _whole(block.mlp.fc1),
            _whole(block.mlp.fc2),
            x.shape[-1],
            num_heads,
            hidden_dim,
            self.grid,
        )
