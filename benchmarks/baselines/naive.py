"""AutoFormer's way of running a supernet, written anew from a description of its mathematics.

Kept deliberately faithful, cost included: every step slices all layers of the sampled subnet, the
query, key and value rows are picked with stride 3 and concatenated, the relative-position index is
rebuilt and the [N, N, d] tables are gathered in every block, the probabilities [B, h, N, N] are
stored, GELU runs in fp32 and autograd scatters every slice gradient into a tensor of the full size.

Parameter names, shapes and row order are AutoFormer's (M. Chen et al., ICCV 2021), so its
checkpoints fit. `qkv_bias` chooses how the first 3 * h * d bias entries are read: "autoformer" as a
plain prefix (what its checkpoints need), "blocks" as the leading part of each of three blocks
(what growtas does by default); the weight rows are interleaved (q, k, v, q, k, v, ...) in both.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SubnetSizes(Protocol):
    """The part of `growtas.Subnet` that a baseline reads."""

    @property
    def embed_dim(self) -> int: ...

    @property
    def num_heads(self) -> Sequence[int]: ...

    @property
    def mlp_ratio(self) -> Sequence[float]: ...


class SlicedLinear(nn.Linear):
    """Linear layer that runs on the leading rows and columns of its weight."""

    def set_sample_config(self, in_features: int, out_features: int) -> None:
        self.sampled_weight = self.weight[:, :in_features][:out_features, :]
        self.sampled_bias = self.bias[:out_features]

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.sampled_weight, self.sampled_bias)


class SlicedQKV(SlicedLinear):
    """Linear layer whose weight rows are interleaved as q, k, v, q, k, v, ..."""

    def __init__(self, in_features: int, out_features: int, head_dim: int, qkv_bias: str) -> None:
        super().__init__(in_features, out_features)
        self.head_dim = head_dim
        self.qkv_bias = qkv_bias

    def set_sample_config(self, in_features: int, out_features: int) -> None:
        weight = self.weight[:, :in_features]
        self.sampled_weight = torch.cat([weight[t:out_features:3, :] for t in range(3)], dim=0)
        if self.qkv_bias == "autoformer":
            self.sampled_bias = self.bias[:out_features]
        else:
            self.sampled_bias = self.bias.view(3, -1)[:, : out_features // 3].reshape(-1)


class SlicedLayerNorm(nn.LayerNorm):
    """LayerNorm over the leading channels; eps 1e-5."""

    def set_sample_config(self, embed_dim: int) -> None:
        self.sampled_dim = embed_dim
        self.sampled_weight = self.weight[:embed_dim]
        self.sampled_bias = self.bias[:embed_dim]

    def forward(self, x: Tensor) -> Tensor:
        shape = (self.sampled_dim,)
        return F.layer_norm(x, shape, self.sampled_weight, self.sampled_bias, self.eps)


class SlicedPatchEmbed(nn.Module):
    """Non-overlapping patches to tokens [B, P, E] with the leading E filters."""

    def __init__(self, in_chans: int, embed_dim: int, patch_size: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_chans, embed_dim, kernel_size=patch_size, stride=patch_size)

    def set_sample_config(self, embed_dim: int) -> None:
        self.sampled_weight = self.proj.weight[:embed_dim, ...]
        self.sampled_bias = self.proj.bias[:embed_dim, ...]  # type: ignore[index]

    def forward(self, images: Tensor) -> Tensor:
        stride = self.proj.stride
        x = F.conv2d(images, self.sampled_weight, self.sampled_bias, stride=stride)  # type: ignore[arg-type]
        return x.flatten(2).transpose(1, 2)


class RelativePosition2D(nn.Module):
    """Table of vectors [N, N, d] by vertical and horizontal offset of key minus query."""

    def __init__(self, head_dim: int, max_relative_position: int) -> None:
        super().__init__()
        self.max_relative_position = max_relative_position
        rows = 2 * max_relative_position + 2
        self.embeddings_table_v = nn.Parameter(torch.zeros(rows, head_dim))
        self.embeddings_table_h = nn.Parameter(torch.zeros(rows, head_dim))

    def set_sample_config(self, head_dim: int) -> None:
        self.sampled_table_v = self.embeddings_table_v[:, :head_dim]
        self.sampled_table_h = self.embeddings_table_h[:, :head_dim]

    def forward(self, num_tokens: int) -> Tensor:
        """Row 0 of each table stands for every pair with the class token (token 0)."""
        patches = num_tokens - 1
        side = int(patches**0.5)
        limit = self.max_relative_position
        token = torch.arange(patches, device=self.embeddings_table_v.device)
        row = torch.div(token, side, rounding_mode="floor")
        column = token % side
        vertical = (row[None, :] - row[:, None]).clamp(-limit, limit) + limit + 1
        horizontal = (column[None, :] - column[:, None]).clamp(-limit, limit) + limit + 1
        vertical = F.pad(vertical, (1, 0, 1, 0), "constant", 0).long()
        horizontal = F.pad(horizontal, (1, 0, 1, 0), "constant", 0).long()
        return self.sampled_table_v[vertical] + self.sampled_table_h[horizontal]


class NaiveAttention(nn.Module):
    """Attention with relative position on keys and values, every intermediate stored."""

    def __init__(self, dim: int, head_dim: int, max_relative_position: int, qkv_bias: str) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.scale = head_dim**-0.5
        self.qkv = SlicedQKV(dim, 3 * dim, head_dim, qkv_bias)
        self.rel_pos_embed_k = RelativePosition2D(head_dim, max_relative_position)
        self.rel_pos_embed_v = RelativePosition2D(head_dim, max_relative_position)
        self.proj = SlicedLinear(dim, dim)

    def set_sample_config(self, embed_dim: int, num_heads: int) -> None:
        self.sampled_heads = num_heads
        inner = num_heads * self.head_dim
        self.qkv.set_sample_config(embed_dim, 3 * inner)
        self.proj.set_sample_config(inner, embed_dim)
        self.rel_pos_embed_k.set_sample_config(self.head_dim)
        self.rel_pos_embed_v.set_sample_config(self.head_dim)

    def core(self, qkv: Tensor) -> Tensor:
        """[B, N, 3 * h * d] -> [B, N, h * d]; the part that an attention kernel replaces."""
        batch, tokens, _ = qkv.shape
        heads = self.sampled_heads
        qkv = qkv.reshape(batch, tokens, 3, heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]
        logits = (q @ k.transpose(-2, -1)) * self.scale
        keys = self.rel_pos_embed_k(tokens)
        by_token = q.permute(2, 0, 1, 3).reshape(tokens, batch * heads, -1)
        relative = (by_token @ keys.transpose(2, 1)).transpose(1, 0)
        logits = logits + relative.reshape(batch, heads, tokens, tokens) * self.scale
        probabilities = logits.softmax(dim=-1)

        out = (probabilities @ v).transpose(1, 2).reshape(batch, tokens, -1)
        values = self.rel_pos_embed_v(tokens)
        by_token = probabilities.permute(2, 0, 1, 3).reshape(tokens, batch * heads, -1)
        relative = (by_token @ values).transpose(1, 0).reshape(batch, heads, tokens, -1)
        return out + relative.transpose(2, 1).reshape(batch, tokens, -1)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(self.core(self.qkv(x)))


class NaiveBlock(nn.Module):
    """Pre-norm transformer block; the identity when the sampled depth does not reach it."""

    def __init__(
        self,
        dim: int,
        hidden_dim: int,
        head_dim: int,
        max_relative_position: int,
        qkv_bias: str,
    ) -> None:
        super().__init__()
        self.attn = NaiveAttention(dim, head_dim, max_relative_position, qkv_bias)
        self.attn_layer_norm = SlicedLayerNorm(dim)
        self.ffn_layer_norm = SlicedLayerNorm(dim)
        self.fc1 = SlicedLinear(dim, hidden_dim)
        self.fc2 = SlicedLinear(hidden_dim, dim)
        self.is_identity = False

    def set_sample_config(self, embed_dim: int, num_heads: int, mlp_ratio: float) -> None:
        self.is_identity = False
        hidden = int(embed_dim * mlp_ratio)
        self.attn_layer_norm.set_sample_config(embed_dim)
        self.attn.set_sample_config(embed_dim, num_heads)
        self.ffn_layer_norm.set_sample_config(embed_dim)
        self.fc1.set_sample_config(embed_dim, hidden)
        self.fc2.set_sample_config(hidden, embed_dim)

    def set_identity(self) -> None:
        self.is_identity = True

    def forward(self, x: Tensor) -> Tensor:
        if self.is_identity:
            return x
        x = x + self.attn(self.attn_layer_norm(x))
        hidden = self.fc1(self.ffn_layer_norm(x))
        hidden = F.gelu(hidden.float()).type_as(hidden)  # exact erf form, in fp32
        return x + self.fc2(hidden)


class NaiveSupernet(nn.Module):
    """Supernet with a current subnet: `set_sample_config(subnet)`, then `forward(images)`.

    Sizes are those of the largest buffers. Images are square, [B, in_chans, S, S]; the logits
    [B, num_classes] come from the mean of the patch tokens (AutoFormer's `gp`).
    """

    def __init__(
        self,
        *,
        embed_dim: int,
        depth: int,
        num_heads: int,
        mlp_ratio: float,
        head_dim: int = 64,
        image_size: int = 224,
        patch_size: int = 16,
        in_chans: int = 3,
        num_classes: int = 1000,
        max_relative_position: int = 14,
        qkv_bias: str = "autoformer",
    ) -> None:
        super().__init__()
        if embed_dim != num_heads * head_dim:
            raise ValueError(
                f"embed_dim must be num_heads * head_dim = {num_heads * head_dim}: got {embed_dim}"
            )
        if qkv_bias not in ("autoformer", "blocks"):
            raise ValueError(f"qkv_bias must be 'autoformer' or 'blocks': got {qkv_bias!r}")
        self.patch_embed_super = SlicedPatchEmbed(in_chans, embed_dim, patch_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.pos_embed = nn.Parameter(
            torch.zeros(1, (image_size // patch_size) ** 2 + 1, embed_dim)
        )
        hidden = int(embed_dim * mlp_ratio)
        self.blocks = nn.ModuleList(
            NaiveBlock(embed_dim, hidden, head_dim, max_relative_position, qkv_bias)
            for _ in range(depth)
        )
        self.norm = SlicedLayerNorm(embed_dim)
        self.head = SlicedLinear(embed_dim, num_classes)

    def set_sample_config(self, subnet: SubnetSizes) -> None:
        """Slice every layer. To be called before each step, as a supernet training loop does."""
        embed_dim, depth = subnet.embed_dim, len(subnet.num_heads)
        self.sampled_dim = embed_dim
        self.patch_embed_super.set_sample_config(embed_dim)
        for index, block in enumerate(self.blocks):
            assert isinstance(block, NaiveBlock)
            if index < depth:
                block.set_sample_config(embed_dim, subnet.num_heads[index], subnet.mlp_ratio[index])
            else:
                block.set_identity()
        self.norm.set_sample_config(embed_dim)
        self.head.set_sample_config(embed_dim, self.head.out_features)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patch_embed_super(images)
        cls_token = self.cls_token[..., : self.sampled_dim].expand(x.shape[0], -1, -1)
        x = torch.cat((cls_token, x), dim=1)
        x = x + self.pos_embed[..., : self.sampled_dim]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 1:].mean(dim=1))
