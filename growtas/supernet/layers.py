"""Modules that own max-size parameters and are called with the extents of a subnet.

No module remembers a subnet: extents come in as arguments, so torch.compile treats them as
dynamic sizes and one module serves any number of threads or passes. Where they are on the device,
the sizes from the host are the supernet's.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from growtas import kernels
from growtas.kernels import GradientAccumulator
from growtas.kernels.autocast import autocast_dtype
from growtas.kernels.dispatch import transformed
from growtas.kernels.extents import BlockExtents, LinearExtents

INIT_STD = 0.02  # of AutoFormer's truncated normals (and of most ViTs)


class SlicedLinear(nn.Module):
    """Weight ``[out_max, in_max]`` and bias; initialised truncated-normal and zero."""

    def __init__(self, in_max: int, out_max: int, init_std: float = INIT_STD) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_max, in_max))
        self.bias = nn.Parameter(torch.zeros(out_max))
        nn.init.trunc_normal_(self.weight, std=init_std)

    def forward(
        self,
        x: Tensor,
        out_features: int | None = None,
        *,
        input_activation: str | None = None,
        sample_scale: Tensor | None = None,
        residual: Tensor | None = None,
        gradients: GradientAccumulator | None = None,
        extents: LinearExtents | None = None,
    ) -> Tensor:
        return kernels.linear(
            x, self.weight, self.bias, out_features=out_features,
            input_activation=input_activation, sample_scale=sample_scale, residual=residual,
            gradients=gradients, extents=extents,
        )  # fmt: skip


class SlicedLayerNorm(nn.Module):
    """LayerNorm whose statistics cover the width of its input."""

    def __init__(self, width_max: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width_max))
        self.bias = nn.Parameter(torch.zeros(width_max))
        self.eps = eps

    def forward(
        self,
        x: Tensor,
        *,
        gradients: GradientAccumulator | None = None,
        extents: Tensor | None = None,
        present: Tensor | None = None,
    ) -> Tensor:
        return kernels.layer_norm(
            x, self.weight, self.bias, eps=self.eps, gradients=gradients, extents=extents,
            present=present,
        )  # fmt: skip

    def leaving(
        self,
        x: Tensor,
        *,
        gradients: GradientAccumulator | None = None,
        extents: Tensor | None = None,
        present: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The output, for a branch that leaves the stream, and x, for where it comes back."""
        return kernels.pre_norm(
            x, self.weight, self.bias, eps=self.eps, gradients=gradients, extents=extents,
            present=present,
        )  # fmt: skip

    def bound(
        self, x: Tensor, extents: Tensor | None, present: Tensor | None
    ) -> Callable[[], Tensor]:
        """The same output later, from today's parameters: functional calls only lend them."""
        return partial(
            kernels.layer_norm, x, self.weight, self.bias, eps=self.eps, extents=extents,
            present=present,
        )  # fmt: skip


class PatchEmbedding(nn.Module):
    """Non-overlapping patches to tokens: a strided convolution written as one product.

    The weight is a convolution's ``[out_max, in_chans, p, p]`` flattened to two dimensions, and is
    initialised like PyTorch's convolution, as AutoFormer's is.
    """

    def __init__(self, in_chans: int, patch_size: int, out_max: int) -> None:
        super().__init__()
        features = in_chans * patch_size**2
        self.patch_size = patch_size
        self.weight = nn.Parameter(torch.empty(out_max, features))
        self.bias = nn.Parameter(torch.empty(out_max))
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        nn.init.uniform_(self.bias, -(features**-0.5), features**-0.5)

    def forward(
        self,
        images: Tensor,
        embed_dim: int,
        *,
        gradients: GradientAccumulator | None = None,
        extents: LinearExtents | None = None,
    ) -> Tensor:
        batch, channels, height, width = images.shape
        p = self.patch_size
        patches = images.reshape(batch, channels, height // p, p, width // p, p)
        patches = patches.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
        return kernels.linear(
            patches, self.weight, self.bias, out_features=embed_dim, gradients=gradients,
            extents=extents,
        )  # fmt: skip


class QKV(nn.Module):
    """q, k and v as three leading blocks ``[3, heads, head_dim, in]``: a subnet's heads and width
    are a leading slice of each.

    ``bias_layout="blocks"`` slices the bias ``[3, heads, head_dim]`` like the weight (PreNAS);
    ``"autoformer"`` keeps it flat and reads its first ``3 * heads * head_dim`` entries, so an
    entry changes its role with the head count, which AutoFormer's checkpoints depend on.
    """

    def __init__(
        self,
        in_max: int,
        heads_max: int,
        head_dim: int,
        bias_layout: str,
        init_std: float = INIT_STD,
    ) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.weight = nn.Parameter(torch.empty(3, heads_max, head_dim, in_max))
        shape = (3, heads_max, head_dim) if bias_layout == "blocks" else (3 * heads_max * head_dim,)
        self.bias = nn.Parameter(torch.zeros(shape))
        nn.init.trunc_normal_(self.weight, std=init_std)

    def forward(
        self,
        x: Tensor,
        num_heads: int,
        *,
        gradients: GradientAccumulator | None = None,
        extents: LinearExtents | None = None,
    ) -> Tensor:
        return kernels.linear(
            x, self.weight, self.bias, out_features=num_heads * self.head_dim, gradients=gradients,
            extents=extents,
        )  # fmt: skip


class Attention(nn.Module):
    """Multi-head attention with 2-D relative position on keys and values, shared by the heads."""

    def __init__(
        self,
        width_max: int,
        heads_max: int,
        head_dim: int,
        max_relative_position: int | None,
        qkv_bias: str,
        init_std: float = INIT_STD,
    ) -> None:
        super().__init__()
        self.qkv = QKV(width_max, heads_max, head_dim, qkv_bias, init_std)
        self.proj = SlicedLinear(heads_max * head_dim, width_max, init_std)
        self.rel_pos: nn.Parameter | None = None
        if max_relative_position is not None:
            self.rel_pos = nn.Parameter(torch.empty(4, 2 * max_relative_position + 2, head_dim))
            nn.init.trunc_normal_(self.rel_pos, std=init_std)

    def forward(
        self,
        x: Tensor,
        num_heads: int,
        grid: tuple[int, int],
        *,
        embed_dim: int,
        residual: Tensor,
        sample_scale: Tensor | None,
        gradients: GradientAccumulator | None = None,
        sizes: BlockExtents | None = None,
    ) -> Tensor:
        of_qkv = of_proj = None
        if sizes is not None:
            of_qkv = LinearExtents(sizes.head_width, sizes.embed, sizes.head_alignment)
            of_proj = LinearExtents(sizes.embed, sizes.head_width, sizes.head_alignment)
        qkv = self.qkv(x, num_heads, gradients=gradients, extents=of_qkv)
        heads = kernels.attention(
            qkv, self.rel_pos, num_heads=num_heads, grid=grid, gradients=gradients,
            extents=None if sizes is None else sizes.heads,
        )  # fmt: skip
        return self.proj(
            heads, embed_dim, sample_scale=sample_scale, residual=residual, gradients=gradients,
            extents=of_proj,
        )  # fmt: skip


class MLP(nn.Module):
    """fc1, exact GELU, fc2."""

    def __init__(self, width_max: int, hidden_max: int, init_std: float = INIT_STD) -> None:
        super().__init__()
        self.fc1 = SlicedLinear(width_max, hidden_max, init_std)
        self.fc2 = SlicedLinear(hidden_max, width_max, init_std)

    def forward(
        self,
        x: Tensor,
        hidden_dim: int,
        *,
        embed_dim: int,
        residual: Tensor,
        sample_scale: Tensor | None,
        gradients: GradientAccumulator | None = None,
        sizes: BlockExtents | None = None,
    ) -> Tensor:
        of_fc1 = of_fc2 = None
        if sizes is not None:
            of_fc1 = LinearExtents(sizes.hidden, sizes.embed, sizes.hidden_alignment)
            of_fc2 = LinearExtents(sizes.embed, sizes.hidden, sizes.hidden_alignment)
        hidden = self.fc1(x, hidden_dim, gradients=gradients, extents=of_fc1)
        return self.fc2(
            hidden, embed_dim, input_activation="gelu", sample_scale=sample_scale,
            residual=residual, gradients=gradients, extents=of_fc2,
        )  # fmt: skip


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


class Block(nn.Module):
    """Pre-norm transformer block; drop path drops a branch per sample (stochastic depth)."""

    def __init__(
        self,
        width_max: int,
        heads_max: int,
        head_dim: int,
        hidden_max: int,
        *,
        max_relative_position: int | None,
        qkv_bias: str,
        layer_norm_eps: float,
        drop_path: float,
        init_std: float = INIT_STD,
    ) -> None:
        super().__init__()
        self.norm1 = SlicedLayerNorm(width_max, layer_norm_eps)
        self.attn = Attention(
            width_max, heads_max, head_dim, max_relative_position, qkv_bias, init_std
        )
        self.norm2 = SlicedLayerNorm(width_max, layer_norm_eps)
        self.mlp = MLP(width_max, hidden_max, init_std)
        self.drop_path = drop_path

    def forward(
        self,
        x: Tensor,
        num_heads: int,
        hidden_dim: int,
        grid: tuple[int, int],
        gradients: GradientAccumulator | None = None,
    ) -> Tensor:
        scales = (self._survival(x), self._survival(x))
        return self._branches(x, num_heads, hidden_dim, grid, scales, gradients, None)

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
        return self._branches(x, heads, hidden, grid, scales, gradients, sizes)

    def _branches(
        self,
        x: Tensor,
        num_heads: int,
        hidden_dim: int,
        grid: tuple[int, int],
        scales: tuple[Tensor | None, Tensor | None],
        gradients: GradientAccumulator | None,
        sizes: BlockExtents | None,
    ) -> Tensor:
        embed_dim = x.shape[-1]
        width, active = (None, None) if sizes is None else (sizes.embed, sizes.active)
        y, x = self.norm1.leaving(x, gradients=gradients, extents=width, present=active)
        with computed_again(y, self.norm1.bound(x, width, active)):
            x = self.attn(
                y, num_heads, grid, embed_dim=embed_dim, residual=x, sample_scale=scales[0],
                gradients=gradients, sizes=sizes,
            )  # fmt: skip
        y, x = self.norm2.leaving(x, gradients=gradients, extents=width, present=active)
        with computed_again(y, self.norm2.bound(x, width, active)):
            return self.mlp(
                y, hidden_dim, embed_dim=embed_dim, residual=x, sample_scale=scales[1],
                gradients=gradients, sizes=sizes,
            )  # fmt: skip

    def _survival(self, x: Tensor) -> Tensor | None:
        """Per sample: 1 / (1 - drop_path) with probability 1 - drop_path, else 0; None where no
        branch is dropped."""
        if not self.training or self.drop_path <= 0.0:
            return None
        return survival(x, 1.0 - self.drop_path, (x.shape[0],))
