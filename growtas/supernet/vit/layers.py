"""Layers of a Vision Transformer that reads the leading slices of its parameters."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from growtas import kernels
from growtas.kernels import GradientAccumulator
from growtas.supernet.geometry import Box
from growtas.supernet.layers import (
    SlicedLayerNorm,
    SlicedLinear,
    computed_again,
    drawn,
    shapes_under,
    survival,
)
from growtas.supernet.vit.config import SupernetConfig
from growtas.supernet.vit.extents import BlockExtents


class Run(NamedTuple):
    """What the layers of a block are told.

    Attributes:
        num_heads, hidden_dim: sizes of the block; the largest where `sizes` is given.
        grid: rows and columns of patches.
        gradients: as for the operators.
        sizes: how much of the largest sizes is used, where that lies on the device.
    """

    num_heads: int
    hidden_dim: int
    grid: tuple[int, int]
    gradients: GradientAccumulator | None = None
    sizes: BlockExtents | None = None


class PatchEmbedding(nn.Module):
    """Non-overlapping patches to tokens: a strided convolution written as one product.

    The weight is a convolution's ``[out_max, in_chans, p, p]`` flattened to two dimensions, and is
    initialised like PyTorch's convolution, as AutoFormer's is.
    """

    def __init__(self, weight: Box, patch_size: int) -> None:
        super().__init__()
        out_max, features = weight
        self.patch_size = patch_size
        self.weight = nn.Parameter(torch.empty(weight))
        self.bias = nn.Parameter(torch.empty(out_max))
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        nn.init.uniform_(self.bias, -(features**-0.5), features**-0.5)

    def forward(self, images: Tensor, embed_dim: int, **options: Any) -> Tensor:
        batch, channels, height, width = images.shape
        p = self.patch_size
        patches = images.reshape(batch, channels, height // p, p, width // p, p)
        patches = patches.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
        return kernels.linear(patches, self.weight, self.bias, out_features=embed_dim, **options)


class Attention(nn.Module):
    """Multi-head attention with 2-D relative position on keys and values, shared by the heads.

    q, k and v are three leading blocks ``[3, heads, head_dim, in]`` of the weight, so a subnet's
    heads and width are a leading slice of each. A flat bias is AutoFormer's, of which the first
    ``3 * heads * head_dim`` entries are read.
    """

    def __init__(self, shapes: Mapping[str, Box], init_std: float) -> None:
        super().__init__()
        self.qkv = SlicedLinear(shapes["qkv.weight"], shapes["qkv.bias"], init_std)
        self.proj = SlicedLinear(shapes["proj.weight"], shapes["proj.bias"], init_std)
        table = shapes.get("rel_pos")
        self.rel_pos = None if table is None else drawn(table, init_std)

    def forward(self, x: Tensor, run: Run, residual: Tensor, scale: Tensor | None) -> Tensor:
        """`residual` plus the branch of x, a factor per sample in front of it."""
        gradients, sizes = run.gradients, run.sizes
        qkv = self.qkv(
            x, run.num_heads * self.qkv.weight.shape[2], gradients=gradients,
            extents=None if sizes is None else sizes.qkv,
        )  # fmt: skip
        heads = kernels.attention(
            qkv, self.rel_pos, num_heads=run.num_heads, grid=run.grid, gradients=gradients,
            extents=None if sizes is None else sizes.heads,
        )  # fmt: skip
        return self.proj(
            heads, residual.shape[-1], sample_scale=scale, residual=residual, gradients=gradients,
            extents=None if sizes is None else sizes.proj,
        )  # fmt: skip


class MLP(nn.Module):
    """fc1, exact GELU, fc2."""

    def __init__(self, shapes: Mapping[str, Box], init_std: float) -> None:
        super().__init__()
        self.fc1 = SlicedLinear(shapes["fc1.weight"], shapes["fc1.bias"], init_std)
        self.fc2 = SlicedLinear(shapes["fc2.weight"], shapes["fc2.bias"], init_std)

    def forward(self, x: Tensor, run: Run, residual: Tensor, scale: Tensor | None) -> Tensor:
        """As that of `Attention`."""
        gradients, sizes = run.gradients, run.sizes
        hidden = self.fc1(
            x, run.hidden_dim, gradients=gradients, extents=None if sizes is None else sizes.fc1
        )
        return self.fc2(
            hidden, residual.shape[-1], input_activation="gelu", sample_scale=scale,
            residual=residual, gradients=gradients, extents=None if sizes is None else sizes.fc2,
        )  # fmt: skip


class Block(nn.Module):
    """Pre-norm transformer block; drop path drops a branch per sample (stochastic depth)."""

    def __init__(self, shapes: Mapping[str, Box], config: SupernetConfig, drop_path: float) -> None:
        super().__init__()
        self.norm1 = SlicedLayerNorm(shapes["norm1.weight"], config.layer_norm_eps)
        self.attn = Attention(shapes_under(shapes, "attn."), config.init_std)
        self.norm2 = SlicedLayerNorm(shapes["norm2.weight"], config.layer_norm_eps)
        self.mlp = MLP(shapes_under(shapes, "mlp."), config.init_std)
        self.drop_path = drop_path

    def forward(self, x: Tensor, run: Run) -> Tensor:
        """The stream ``[B, N, embed_dim]`` behind the block."""
        return self._branches(x, run, (self._survival(x), self._survival(x)))

    def forward_static(
        self,
        x: Tensor,
        grid: tuple[int, int],
        sizes: BlockExtents,
        survival: Tensor | None,
        gradients: GradientAccumulator | None = None,
    ) -> Tensor:
        """The same at the largest sizes, as much of it as the extents say; x where inactive.

        An inactive block has 0 heads and hidden neurons, so of its layers only the two that add to
        the stream do anything, and they add nothing.

        Args:
            x: ``[B, N, width_max]``.
            grid: rows and columns of patches.
            sizes: on x's device.
            survival: ``[2, B]``, drop path's factors for the two branches; None: no drop path.
            gradients: as for the operators.
        """
        heads, hidden = self.attn.qkv.weight.shape[1], self.mlp.fc1.weight.shape[0]
        scales = (None, None) if survival is None else (survival[0], survival[1])
        return self._branches(x, Run(heads, hidden, grid, gradients, sizes), scales)

    def _branches(self, x: Tensor, run: Run, scales: tuple[Tensor | None, Tensor | None]) -> Tensor:
        width, active = (None, None) if run.sizes is None else (run.sizes.embed, run.sizes.active)
        y, x, again = self.norm1.leaving(x, run.gradients, width, active)
        with computed_again(y, again):
            x = self.attn(y, run, x, scales[0])
        y, x, again = self.norm2.leaving(x, run.gradients, width, active)
        with computed_again(y, again):
            return self.mlp(y, run, x, scales[1])

    def _survival(self, x: Tensor) -> Tensor | None:
        """Per sample: 1 / (1 - drop_path) with probability 1 - drop_path, else 0; None where no
        branch is dropped."""
        if not self.training or self.drop_path <= 0.0:
            return None
        return survival(x, 1.0 - self.drop_path, (x.shape[0],))
