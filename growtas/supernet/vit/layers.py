"""Modules that own max-size parameters and are told how much of them to use.

No module remembers a subnet: sizes come in as arguments, so torch.compile treats them as dynamic
and one module serves any number of threads or passes.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from growtas import kernels
from growtas.kernels import GradientAccumulator
from growtas.kernels.autocast import autocast_dtype
from growtas.kernels.dispatch import transformed
from growtas.supernet.geometry import Box
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


class SlicedLinear(nn.Module):
    """Weight ``[out_max, in_max]`` or ``[parts, ..., in_max]`` and bias, initialised truncated
    normal and zero; the options are those of :func:`growtas.kernels.linear`."""

    def __init__(self, weight: Box, bias: Box, init_std: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(weight))
        self.bias = nn.Parameter(torch.zeros(bias))
        nn.init.trunc_normal_(self.weight, std=init_std)

    def forward(self, x: Tensor, out_features: int | None = None, **options: Any) -> Tensor:
        return kernels.linear(x, self.weight, self.bias, out_features=out_features, **options)


class SlicedLayerNorm(nn.Module):
    """LayerNorm whose statistics cover the width of its input."""

    def __init__(self, width: Box, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.eps = eps

    def forward(self, x: Tensor, **options: Any) -> Tensor:
        return kernels.layer_norm(x, self.weight, self.bias, eps=self.eps, **options)

    def leaving(
        self, x: Tensor, gradients: GradientAccumulator | None, sizes: BlockExtents | None
    ) -> tuple[Tensor, Tensor, Callable[[], Tensor]]:
        """The output, for a branch that leaves the stream; x, for where it comes back; and the
        same output later, from today's parameters: functional calls only lend them."""
        extents, present = (None, None) if sizes is None else (sizes.embed, sizes.active)
        y, x = kernels.pre_norm(
            x, self.weight, self.bias, eps=self.eps, gradients=gradients, extents=extents,
            present=present,
        )  # fmt: skip
        again = partial(
            kernels.layer_norm, x, self.weight, self.bias, eps=self.eps, extents=extents,
            present=present,
        )  # fmt: skip
        return y, x, again


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
        self.rel_pos: nn.Parameter | None = None
        if "rel_pos" in shapes:
            self.rel_pos = nn.Parameter(torch.empty(shapes["rel_pos"]))
            nn.init.trunc_normal_(self.rel_pos, std=init_std)

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
        self.attn = Attention(within(shapes, "attn."), config.init_std)
        self.norm2 = SlicedLayerNorm(shapes["norm2.weight"], config.layer_norm_eps)
        self.mlp = MLP(within(shapes, "mlp."), config.init_std)
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
        y, x, again = self.norm1.leaving(x, run.gradients, run.sizes)
        with computed_again(y, again):
            x = self.attn(y, run, x, scales[0])
        y, x, again = self.norm2.leaving(x, run.gradients, run.sizes)
        with computed_again(y, again):
            return self.mlp(y, run, x, scales[1])

    def _survival(self, x: Tensor) -> Tensor | None:
        """Per sample: 1 / (1 - drop_path) with probability 1 - drop_path, else 0; None where no
        branch is dropped."""
        if not self.training or self.drop_path <= 0.0:
            return None
        return survival(x, 1.0 - self.drop_path, (x.shape[0],))


def within(shapes: Mapping[str, Box], prefix: str) -> dict[str, Box]:
    """The shapes of a part of a module, by their names in there."""
    return {n.removeprefix(prefix): shape for n, shape in shapes.items() if n.startswith(prefix)}


def leading(x: Tensor, width: int) -> Tensor:
    """``x[..., :width]``; in compiled code a copy, because of a view it would ask whether it is
    contiguous, which only the widest is: a graph for that one, and one for the others."""
    if torch.compiler.is_compiling():
        return x.index_select(-1, torch.arange(width, device=x.device))
    return x[..., :width]


def computed_again(y: Tensor, again: Callable[[], Tensor]) -> contextlib.AbstractContextManager:
    """Within the context, operators that save ``y`` for their backward pass save ``again`` instead,
    which is called then: a LayerNorm's output costs less to compute than to keep.

    ``again`` must return the bits of ``y``. torch.compile decides such things by itself, and
    tensors without memory are left alone: empty ones all have the same address.
    """
    plain = type(y) is Tensor and not y.is_meta and y.numel() > 0 and not transformed()
    if not y.requires_grad or torch.compiler.is_compiling() or not plain:
        return contextlib.nullcontext()
    place, device, dtype = y.data_ptr(), y.device.type, y.dtype

    def pack(saved: Tensor) -> Any:
        return again if saved.data_ptr() == place else saved

    def unpack(packed: Any) -> Tensor:
        if packed is not again:
            return packed
        low = dtype in (torch.bfloat16, torch.float16)  # as under autocast
        with torch.no_grad(), torch.autocast(device, dtype if low else None, enabled=low):
            return again()

    return torch.autograd.graph.saved_tensors_hooks(pack, unpack)


def survival(
    x: Tensor,
    keep: float | Tensor,
    shape: tuple[int, ...],
    generator: torch.Generator | None = None,
) -> Tensor:
    """Drop path's factors: 1 / keep with probability keep, else 0.

    From one seed the same samples are dropped as in AutoFormer's runs: as in timm's ``drop_path``
    of that time, a sample is kept where keep + uniform, in the dtype of the branch, reaches 1.

    Args:
        x: the branch's input, ``[B, ...]``.
        keep: a number, or a tensor that broadcasts to `shape`.
        shape: of the result.
        generator: on x's device; None: the default one.
    """
    dtype = autocast_dtype(x) or x.dtype
    # PyTorch 2.11 draws other numbers for new_empty and rand when it compiles them.
    drawn = torch.empty(shape, device=x.device, dtype=dtype).uniform_(generator=generator)
    kept = drawn.add_(keep).ge_(1.0)
    return kept.to(torch.promote_types(dtype, torch.float32)) / keep
