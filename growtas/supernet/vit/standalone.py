"""An ordinary Vision Transformer in plain PyTorch: what extraction hands over.

It runs with torch alone. Relative position uses an exact reformulation as one plain attention of
head dim ``d + H + W + 1`` (design notes: docs/attention.md): the query carries its products with
the row and column tables, the key one-hot codes of its row and column, so any scaled dot product
attention kernel applies and no N x N tensor is written by this module.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from growtas.base.checks import positive_int
from growtas.supernet.vit.config import ModelConfig, StandaloneOptions, check_pool

if TYPE_CHECKING:
    from growtas.base.image_transform import ImageTransform

_TIMM_POOL = {"avg": "mean", "token": "cls"}  # timm's names: ours


class RelativeAttention(nn.Module):
    """Multi-head self-attention, with 2-D relative position on keys and values if asked."""

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        head_dim: int,
        grid: tuple[int, int],
        class_token: bool,
        max_relative_position: int | None,
    ) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.grid = num_heads, head_dim, grid
        self.prefix = int(class_token)
        self.qkv = nn.Linear(embed_dim, 3 * num_heads * head_dim)
        self.proj = nn.Linear(num_heads * head_dim, embed_dim)
        self.rel_pos: nn.Parameter | None = None
        if max_relative_position is not None:
            rows = 2 * max_relative_position + 2
            self.rel_pos = nn.Parameter(torch.zeros(4, rows, head_dim))
            for name, side in (("row_index", grid[0]), ("column_index", grid[1])):
                at = torch.arange(side)
                distance = (at[None, :] - at[:, None]).clamp(
                    -max_relative_position, max_relative_position
                )
                index = distance + max_relative_position + 1  # [query, key]
                self.register_buffer(name, index, persistent=False)
            self.register_buffer("codes", self._codes(), persistent=False)

    row_index: Tensor
    column_index: Tensor
    codes: Tensor

    def _codes(self) -> Tensor:
        """One-hot row, column and class-token code of every key: ``[N, H + W (+ 1)]``."""
        height, width = self.grid
        rows = torch.eye(height).repeat_interleave(width, 0)
        columns = torch.eye(width).repeat(height, 1)
        codes = torch.cat((rows, columns), 1)
        if self.prefix:
            codes = F.pad(codes, (0, 1, 1, 0))
            codes[0, -1] = 1.0
        return codes

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        q, k, v = self.qkv(x).view(batch, tokens, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        scale = float(self.head_dim) ** -0.5
        if self.rel_pos is None:
            out = F.scaled_dot_product_attention(q, k, v, scale=scale)
        else:
            out = self._relative_attention(q, k, v, self.rel_pos.to(q.dtype), scale)
        return self.proj(out.transpose(1, 2).flatten(2))

    def _relative_attention(
        self, q: Tensor, k: Tensor, v: Tensor, tables: Tensor, scale: float
    ) -> Tensor:
        height, width = self.grid
        row_keys, row_values = tables[0][self.row_index], tables[2][self.row_index]
        column_keys, column_values = tables[1][self.column_index], tables[3][self.column_index]

        patches = q[:, :, self.prefix :].unflatten(2, self.grid)  # [B, h, H, W, d]
        terms = [
            torch.einsum("bhyxd,ykd->bhyxk", patches, row_keys).flatten(2, 3),
            torch.einsum("bhyxd,xkd->bhyxk", patches, column_keys).flatten(2, 3),
        ]
        if self.prefix:
            terms.append(q[:, :, 1:] @ (tables[0, 0] + tables[1, 0]).unsqueeze(-1))
        # a class-token query sees the same table entry at every key: softmax ignores it
        query_codes = F.pad(torch.cat(terms, -1), (0, 0, self.prefix, 0))
        key_codes = self.codes.to(k.dtype).expand(*k.shape[:2], -1, -1)

        out = F.scaled_dot_product_attention(
            torch.cat((q, query_codes), -1),
            torch.cat((k, key_codes), -1),
            torch.cat((v, key_codes), -1),
            scale=scale,
        )
        out, sums = out.split((self.head_dim, out.shape[-1] - self.head_dim), -1)
        rows, columns = sums[:, :, self.prefix :, : height + width].split((height, width), -1)
        relative = torch.einsum(
            "bhyxk,ykd->bhyxd", rows.unflatten(2, self.grid), row_values
        ) + torch.einsum("bhyxk,xkd->bhyxd", columns.unflatten(2, self.grid), column_values)
        relative = relative.flatten(2, 3)
        if self.prefix:
            token = (tables[2, 0] + tables[3, 0]).unsqueeze(0)
            relative = relative + sums[:, :, 1:, -1:] @ token
            first = token.expand(*relative.shape[:2], 1, -1)  # its probabilities sum to one
            relative = torch.cat((first, relative), 2)
        return out + relative


class MLP(nn.Module):
    """fc1, exact GELU, fc2."""

    def __init__(self, embed_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(embed_dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, attention: RelativeAttention, mlp: MLP, embed_dim: int, eps: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(embed_dim, eps)
        self.attn = attention
        self.norm2 = nn.LayerNorm(embed_dim, eps)
        self.mlp = mlp

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PatchEmbedding(nn.Module):
    """Strided convolution to tokens ``[B, P, embed_dim]`` in row-major order."""

    def __init__(self, in_chans: int, embed_dim: int, patch_size: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_chans, embed_dim, patch_size, patch_size)

    def forward(self, images: Tensor) -> Tensor:
        return self.proj(images).flatten(2).transpose(1, 2)


class VisionTransformer(nn.Module):
    """A stand-alone Vision Transformer, blocks of individual head counts and hidden widths.

    Parameter names follow timm's ViT, with ``blocks.i.attn.rel_pos`` ``[4, 2r + 2, head_dim]``
    beside them where relative position is on. Arguments as in :class:`growtas.Supernet`;
    ``num_heads`` and ``hidden_dims`` have one entry per block. With ``num_classes=0`` there is no
    classifier, and the logits are the features it would read.

    Attributes:
        config: the arguments, as plain values.
        num_classes, num_features, embed_dim: as in timm's models.
        transform: what makes a PIL image the input of this model, ``[in_chans, height, width]``;
            None if that is not known.
        classes: a name for each class, in the order of the logits; None if not known.

    Raises:
        ValueError: a size or option outside its range.
    """

    def __init__(
        self,
        *,
        embed_dim: int,
        num_heads: Sequence[int],
        hidden_dims: Sequence[int],
        head_dim: int,
        image_size: Sequence[int],
        patch_size: int,
        num_classes: int,
        **options: Unpack[StandaloneOptions],
    ) -> None:
        super().__init__()
        if len(num_heads) != len(hidden_dims):
            raise ValueError(
                f"num_heads is for {len(num_heads)} blocks, hidden_dims for {len(hidden_dims)}: "
                "both need one entry per block"
            )
        sizes = {"embed_dim": embed_dim, "head_dim": head_dim}
        sizes |= {f"num_heads[{i}]": heads for i, heads in enumerate(num_heads)}
        sizes |= {f"hidden_dims[{i}]": hidden for i, hidden in enumerate(hidden_dims)}
        for name, value in sizes.items():
            positive_int(name, value)
        config = ModelConfig(image_size, patch_size, num_classes, **options)
        self.transform: ImageTransform | None = None
        self.classes: tuple[str, ...] | None = None
        self.embed_dim = self.num_features = embed_dim
        self.config: dict[str, Any] = {
            "embed_dim": embed_dim,
            "num_heads": list(num_heads),
            "hidden_dims": list(hidden_dims),
            "head_dim": head_dim,
            **config.to_dict(),
        }
        grid, eps = config.grid, config.layer_norm_eps
        self.pool, self.prefix = config.pool, int(config.class_token)
        tokens = grid[0] * grid[1] + self.prefix
        self.patch_embed = PatchEmbedding(config.in_chans, embed_dim, patch_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim)) if config.class_token else None
        self.pos_embed = (
            nn.Parameter(torch.zeros(1, tokens, embed_dim)) if config.absolute_position else None
        )
        self.blocks = nn.ModuleList(
            Block(
                RelativeAttention(
                    embed_dim, heads, head_dim, grid, config.class_token, config.reach
                ),
                MLP(embed_dim, hidden),
                embed_dim,
                eps,
            )
            for heads, hidden in zip(num_heads, hidden_dims, strict=True)
        )
        self.norm = nn.LayerNorm(embed_dim, eps)
        self.head = _classifier(embed_dim, num_classes)

    @property
    def num_classes(self) -> int:
        """Width of the logits; 0 without a classifier."""
        return self.config["num_classes"]

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``[B, num_classes]`` of images ``[B, in_chans, height, width]``."""
        return self.forward_head(self.forward_features(images))

    def forward_features(self, images: Tensor) -> Tensor:
        """The normalised tokens that the head reads, ``[B, N, embed_dim]``; a class token is
        first."""
        x = self.patch_embed(images)
        if self.cls_token is not None:
            x = torch.cat((self.cls_token.expand(x.shape[0], -1, -1).to(x.dtype), x), 1)
        if self.pos_embed is not None:
            x = x + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits of the tokens of :meth:`forward_features`; with `pre_logits` what the classifier
        reads, ``[B, embed_dim]``."""
        x = x[:, 0] if self.pool == "cls" else x[:, self.prefix :].mean(1)
        return x if pre_logits else self.head(x)

    def no_weight_decay(self) -> set[str]:
        """Parameters without weight decay, besides biases and 1-D ones; the supernet's."""
        return {"pos_embed", "cls_token"}

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by a freshly initialised one for `num_classes` classes, or none
        for 0. The names in `classes` are forgotten.

        Args:
            num_classes: width of the logits.
            global_pool: what it reads, in timm's words: ``"avg"`` for the mean of the patch tokens,
                ``"token"`` for the class token; None to leave that as it is.

        Raises:
            ValueError: a negative number, or another or an impossible `global_pool`.
        """
        if num_classes != 0:
            positive_int("num_classes", num_classes)
        if global_pool is not None:
            if global_pool not in _TIMM_POOL:
                raise ValueError(
                    f"global_pool is {global_pool!r}, allowed: {', '.join(_TIMM_POOL)}"
                )
            check_pool(_TIMM_POOL[global_pool], self.config["class_token"])
            self.pool = self.config["pool"] = _TIMM_POOL[global_pool]
        self.config["num_classes"], self.classes = num_classes, None
        self.head = _classifier(self.embed_dim, num_classes).to(self.norm.weight)


def _classifier(embed_dim: int, num_classes: int) -> nn.Module:
    return nn.Linear(embed_dim, num_classes) if num_classes else nn.Identity()
