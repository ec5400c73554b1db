"""Plain PyTorch done well: what a careful engineer writes without a kernel of their own.

- Attention with relative position on keys and values is one scaled_dot_product_attention call: the
  bias of a query on a patch is a row term plus a column term, so H + W + 1 extra query entries
  against one-hot key and value entries replace the [N, N, d] tables (64 + 14 + 14 + 1 = 93 at
  224 px, padded to 96).
- Weights stay where they are: every product reads a strided view, and the backward pass adds its
  gradient straight into the same slice of `.grad`, so nothing of full size is filled or scattered.

Parameters have growtas.Supernet's names and shapes, so both load the same state dict.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.baselines.naive import SubnetSizes


def _leading(tensor: Tensor, extents: Sequence[int]) -> Tensor:
    for dim, extent in enumerate(extents):
        tensor = tensor.narrow(dim, 0, extent)
    return tensor


def _grad(parameter: Tensor, extents: Sequence[int]) -> Tensor:
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return _leading(parameter.grad, extents)


class SliceInPlace(torch.autograd.Function):
    """parameter[:e0, :e1, ...] as a view; the gradient is added into the same part of `.grad`."""

    @staticmethod
    def forward(ctx: Any, parameter: Tensor, *extents: int) -> Tensor:
        ctx.parameter, ctx.extents = parameter, extents
        return _leading(parameter.detach(), extents)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, ...]:  # type: ignore[override]
        _grad(ctx.parameter, ctx.extents).add_(grad)
        return (None,) * (1 + len(ctx.extents))


class SliceLinear(torch.autograd.Function):
    """x [..., I] times the leading part of weight, plus bias; gradients go into the slices.

    weight is [O, I_max] or [G, ..., I_max] with the last `extents` entry equal to I; the leading
    extents are flattened into the output features.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, *extents: int) -> Tensor:
        device = x.device.type
        autocast = torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if autocast else x.dtype
        ctx.parameters, ctx.extents, ctx.input_dtype = (weight, bias), extents, x.dtype
        x = x.to(dtype)
        matrix = _leading(weight.detach(), extents).to(dtype).reshape(-1, extents[-1])
        ctx.save_for_backward(x, matrix)
        offset = _leading(bias.detach(), extents[:-1]).to(dtype).reshape(-1)
        return F.linear(x, matrix, offset)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        x, matrix = ctx.saved_tensors
        weight, bias = ctx.parameters
        rows = grad.reshape(-1, grad.shape[-1])
        columns = x.reshape(-1, x.shape[-1])
        target = _grad(weight, ctx.extents)
        if target.dim() == 2 and target.dtype == rows.dtype:
            target.addmm_(rows.t(), columns)
        else:  # addmm_ takes neither mixed dtypes nor the [3, h, d, I] slice
            target.add_((rows.t() @ columns).view(target.shape))
        _grad(bias, ctx.extents[:-1]).add_(rows.sum(0).view(ctx.extents[:-1]))
        grad_x = (rows @ matrix).view(x.shape).to(ctx.input_dtype)
        return (grad_x, None, None, *(None for _ in ctx.extents))


class Grid(NamedTuple):
    """Constants of one patch grid, built once."""

    height: int
    width: int
    vertical: Tensor  # [H, H] table row of (query row, key row)
    horizontal: Tensor  # [W, W] table row of (query column, key column)
    one_hot: Tensor  # [N, X] key-side constants; X: H + W + 1, padded


def make_grid(height: int, width: int, max_relative_position: int, head_dim: int) -> Grid:
    def offsets(size: int) -> Tensor:
        at = torch.arange(size)
        limit = max_relative_position
        return (at[None, :] - at[:, None]).clamp(-limit, limit) + limit + 1

    # d + X is a multiple of 16, which the fused kernels like
    extra = -(-(head_dim + height + width + 1) // 16) * 16 - head_dim
    one_hot = torch.zeros(height * width + 1, extra)
    patch = torch.arange(height * width)
    one_hot[patch + 1, patch // width] = 1
    one_hot[patch + 1, height + patch % width] = 1
    one_hot[0, height + width] = 1
    return Grid(height, width, offsets(height), offsets(width), one_hot)


def relative_attention(qkv: Tensor, tables: Tensor, num_heads: int, grid: Grid) -> Tensor:
    """[B, N, 3 * h * d] -> [B, N, h * d], exactly AutoFormer's attention.

    tables [4, R, d]: keys vertical, keys horizontal, values vertical, values horizontal; row 0
    belongs to the class token (token 0).
    """
    batch, tokens, _ = qkv.shape
    height, width, vertical, horizontal, one_hot = grid
    q, k, v = qkv.view(batch, tokens, 3, num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
    head_dim = q.shape[-1]
    tables = tables.to(qkv.dtype)
    key_rows, key_columns = tables[0][vertical], tables[1][horizontal]
    value_rows, value_columns = tables[2][vertical], tables[3][horizontal]
    to_class = tables[:, 0]

    patches = q[:, :, 1:].reshape(batch, num_heads, height, width, head_dim)
    bias = torch.cat(
        (
            torch.einsum("bhyxd,yYd->bhyxY", patches, key_rows),
            torch.einsum("bhyxd,xXd->bhyxX", patches, key_columns),
            (patches @ (to_class[0] + to_class[1])).unsqueeze(-1),
        ),
        dim=-1,
    ).flatten(2, 3)
    # The class token's bias is the same for every key, so softmax ignores it: zero will do.
    bias = F.pad(bias, (0, one_hot.shape[1] - bias.shape[-1], 1, 0))
    constants = one_hot.to(qkv.dtype).expand(batch, num_heads, -1, -1)
    out = F.scaled_dot_product_attention(
        torch.cat((q, bias), dim=-1),
        torch.cat((k, constants), dim=-1),
        torch.cat((v, constants), dim=-1),
        scale=head_dim**-0.5,
    )
    sums = out[:, :, 1:, head_dim:].reshape(batch, num_heads, height, width, -1)
    by_row, by_column = sums[..., :height], sums[..., height : height + width]
    of_class = sums[..., height + width, None]
    patches = (
        torch.einsum("bhyxY,yYd->bhyxd", by_row, value_rows)
        + torch.einsum("bhyxX,xXd->bhyxd", by_column, value_columns)
        + of_class * (to_class[2] + to_class[3])
    ).flatten(2, 3)
    first = (to_class[2] + to_class[3]).expand(batch, num_heads, 1, head_dim)
    out = out[..., :head_dim] + torch.cat((first, patches), dim=2)
    return out.transpose(1, 2).reshape(batch, tokens, num_heads * head_dim)


class _Parameters(nn.Module):
    """A weight and a bias under the names of a layer; the arithmetic is in the Functions above."""

    def __init__(self, weight: Sequence[int], bias: Sequence[int]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(*weight))
        self.bias = nn.Parameter(torch.zeros(*bias))

    def linear(self, x: Tensor, *extents: int) -> Tensor:
        return SliceLinear.apply(x, self.weight, self.bias, *extents)

    def layer_norm(self, x: Tensor) -> Tensor:
        dim = x.shape[-1]
        weight = SliceInPlace.apply(self.weight, dim)
        return F.layer_norm(x, (dim,), weight, SliceInPlace.apply(self.bias, dim), 1e-5)


class _Attention(nn.Module):
    def __init__(self, dim: int, num_heads: int, head_dim: int, table_rows: int) -> None:
        super().__init__()
        self.qkv = _Parameters((3, num_heads, head_dim, dim), (3, num_heads, head_dim))
        self.rel_pos = nn.Parameter(torch.zeros(4, table_rows, head_dim))
        self.proj = _Parameters((dim, num_heads * head_dim), (dim,))


class _Mlp(nn.Module):
    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = _Parameters((hidden_dim, dim), (hidden_dim,))
        self.fc2 = _Parameters((dim, hidden_dim), (dim,))


class SmartBlock(nn.Module):
    """Parameters of one block."""

    def __init__(
        self, dim: int, hidden_dim: int, num_heads: int, head_dim: int, table_rows: int
    ) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.norm1 = _Parameters((dim,), (dim,))
        self.attn = _Attention(dim, num_heads, head_dim, table_rows)
        self.norm2 = _Parameters((dim,), (dim,))
        self.mlp = _Mlp(dim, hidden_dim)

    def forward(self, x: Tensor, num_heads: int, hidden_dim: int, grid: Grid) -> Tensor:
        dim, head_dim = x.shape[-1], self.head_dim
        qkv = self.attn.qkv.linear(self.norm1.layer_norm(x), 3, num_heads, head_dim, dim)
        tables = SliceInPlace.apply(self.attn.rel_pos, *self.attn.rel_pos.shape)
        out = relative_attention(qkv, tables, num_heads, grid)
        x = x + self.attn.proj.linear(out, dim, num_heads * head_dim)
        hidden = F.gelu(self.mlp.fc1.linear(self.norm2.layer_norm(x), hidden_dim, dim))
        return x + self.mlp.fc2.linear(hidden, dim, hidden_dim)


class SmartSupernet(nn.Module):
    """`forward(images, subnet)` on the leading slices; same function as the naive supernet.

    Zero the gradients in place (`zero_grad(set_to_none=False)`): they are written by slice.
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
    ) -> None:
        super().__init__()
        self.patch_size = patch_size
        side = image_size // patch_size
        hidden = int(embed_dim * mlp_ratio)
        rows = 2 * max_relative_position + 2
        self.patch_embed = _Parameters((embed_dim, in_chans * patch_size**2), (embed_dim,))
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, side**2 + 1, embed_dim))
        self.blocks = nn.ModuleList(
            SmartBlock(embed_dim, hidden, num_heads, head_dim, rows) for _ in range(depth)
        )
        self.norm = _Parameters((embed_dim,), (embed_dim,))
        self.head = _Parameters((num_classes, embed_dim), (num_classes,))
        self.grid = make_grid(side, side, max_relative_position, head_dim)

    def _apply(self, fn: Any, recurse: bool = True) -> SmartSupernet:
        super()._apply(fn, recurse)
        vertical, horizontal = fn(self.grid.vertical), fn(self.grid.horizontal)
        self.grid = self.grid._replace(
            vertical=vertical, horizontal=horizontal, one_hot=fn(self.grid.one_hot)
        )
        return self

    def tokens(self, images: Tensor, dim: int) -> Tensor:
        """[B, C, S, S] -> [B, N, dim] with the class token first and positions added."""
        size = self.patch_size
        batch, chans, height, width = images.shape
        patches = images.view(batch, chans, height // size, size, width // size, size)
        patches = patches.permute(0, 2, 4, 1, 3, 5).reshape(batch, -1, chans * size * size)
        x = self.patch_embed.linear(patches, dim, patches.shape[-1])
        first = SliceInPlace.apply(self.cls_token, 1, 1, dim)
        x = torch.cat((first.expand(batch, -1, -1).to(x.dtype), x), dim=1)
        return x + SliceInPlace.apply(self.pos_embed, 1, x.shape[1], dim)

    def forward(self, images: Tensor, subnet: SubnetSizes) -> Tensor:
        dim = subnet.embed_dim
        x = self.tokens(images, dim)
        for block, heads, ratio in zip(
            self.blocks, subnet.num_heads, subnet.mlp_ratio, strict=False
        ):
            x = self.run_block(block, x, heads, int(dim * ratio))
        x = self.norm.layer_norm(x)[:, 1:].mean(dim=1)
        return self.head.linear(x, self.head.weight.shape[0], dim)

    def run_block(self, block: nn.Module, x: Tensor, num_heads: int, hidden_dim: int) -> Tensor:
        return block(x, num_heads, hidden_dim, self.grid)
