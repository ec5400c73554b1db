"""The supernet: one Vision Transformer whose leading slices are all subnets of a search space."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from growtas.base.checks import positive_int
from growtas.kernels import GradientAccumulator
from growtas.kernels.arguments import check_floating
from growtas.kernels.dispatch import select
from growtas.kernels.extents import Extents, LinearExtents, check_groups, masked
from growtas.space import SearchSpace, Subnet, cost
from growtas.supernet.layers import (
    INIT_STD,
    Block,
    PatchEmbedding,
    SlicedLayerNorm,
    SlicedLinear,
    leading,
    survival,
)
from growtas.supernet.standalone import VisionTransformer, check_geometry

QKV_BIAS = ("blocks", "autoformer")


class Supernet(nn.Module):
    """Weight-sharing Vision Transformer over a :class:`~growtas.SearchSpace` (AutoFormer, ICCV
    2021; GrowTAS). The subnet is an argument of ``forward``; the module keeps none.

    Args:
        space: choices and sizes of the max-size parameters.
        image_size: side in pixels, or ``(height, width)``; a multiple of ``patch_size``.
        patch_size: side of a square patch in pixels.
        num_classes: outputs of the classifier.
        in_chans: image channels.
        pool: ``"mean"`` over the patch tokens (class token excluded), or ``"cls"``.
        class_token: put a learned token before the patches (AutoFormer does even with mean pool).
        absolute_position: add a learned position embedding.
        relative_position: 2-D relative position on keys and values in every block.
        max_relative_position: distances beyond it share a table row; tables have 2r + 2 rows.
        drop_path: stochastic depth rate of the supernet's last block; block i of L has
            ``drop_path * i / (L - 1)`` whatever the sampled depth.
        qkv_bias: ``"blocks"``, or ``"autoformer"`` for AutoFormer's checkpoints.
        layer_norm_eps: AutoFormer's 1e-5.
        init_std: of the truncated normals that weights, tokens and tables start from. AutoFormer's
            0.02 suits embedding dims of some hundreds; narrow models learn faster from about
            ``embed_dim ** -0.5``.

    Raises:
        ValueError: a size, rate or option outside its range.
    """

    def __init__(
        self,
        space: SearchSpace,
        image_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        num_classes: int = 1000,
        in_chans: int = 3,
        *,
        pool: str = "mean",
        class_token: bool = True,
        absolute_position: bool = True,
        relative_position: bool = True,
        max_relative_position: int = 14,
        drop_path: float = 0.0,
        qkv_bias: str = "blocks",
        layer_norm_eps: float = 1e-5,
        init_std: float = INIT_STD,
    ) -> None:
        super().__init__()
        if not isinstance(space, SearchSpace):
            raise TypeError(f"space must be a SearchSpace (SearchSpace.preset(...)), got {space!r}")
        height, width = check_geometry(
            image_size, patch_size, pool, class_token, max_relative_position, layer_norm_eps
        )
        for name, value in (("num_classes", num_classes), ("in_chans", in_chans)):
            positive_int(name, value)
        if not 0.0 <= drop_path < 1.0:
            raise ValueError(f"drop_path is {drop_path}, it must be in [0, 1)")
        if not 0.0 < init_std <= 1.0:
            raise ValueError(f"init_std is {init_std}, it must be in (0, 1]")
        if qkv_bias not in QKV_BIAS:
            raise ValueError(f"qkv_bias is {qkv_bias!r}, allowed: {', '.join(QKV_BIAS)}")

        self.space = space
        self.config: dict[str, Any] = {
            "image_size": [height, width],
            "patch_size": patch_size,
            "num_classes": num_classes,
            "in_chans": in_chans,
            "pool": pool,
            "class_token": class_token,
            "absolute_position": absolute_position,
            "relative_position": relative_position,
            "max_relative_position": max_relative_position,
            "drop_path": drop_path,
            "qkv_bias": qkv_bias,
            "layer_norm_eps": layer_norm_eps,
            "init_std": init_std,
        }
        self.image_size = (height, width)
        self.grid = (height // patch_size, width // patch_size)

        size = space.supernet
        tokens = self.grid[0] * self.grid[1] + int(class_token)
        self.patch_embed = PatchEmbedding(in_chans, patch_size, size.embed_dim)
        self.cls_token = self._token(1, size.embed_dim, init_std) if class_token else None
        self.pos_embed = (
            self._token(tokens, size.embed_dim, init_std) if absolute_position else None
        )
        self.blocks = nn.ModuleList(
            Block(
                size.embed_dim,
                size.num_heads,
                space.head_dim,
                size.hidden_dim,
                max_relative_position=max_relative_position if relative_position else None,
                qkv_bias=qkv_bias,
                layer_norm_eps=layer_norm_eps,
                drop_path=drop_path * i / max(size.depth - 1, 1),
                init_std=init_std,
            )
            for i in range(size.depth)
        )
        self.norm = SlicedLayerNorm(size.embed_dim, layer_norm_eps)
        self.head = SlicedLinear(size.embed_dim, num_classes, init_std)

    @staticmethod
    def _token(count: int, width: int, std: float) -> nn.Parameter:
        return nn.Parameter(nn.init.trunc_normal_(torch.empty(1, count, width), std=std))

    @classmethod
    def from_config(cls, config: Mapping[str, Any], space: SearchSpace) -> Supernet:
        """A freshly initialised supernet with another's ``config``."""
        values = dict(config)
        values["image_size"] = tuple(values["image_size"])
        return cls(space, **values)

    def forward(
        self,
        images: Tensor,
        subnet: Subnet | Sequence[Subnet],
        *,
        gradients: GradientAccumulator | None = None,
    ) -> Tensor:
        """Class logits of one subnet, or of several, each on its part of the batch.

        Several run in one launch of each kernel on the Triton backend (:meth:`forward_static`),
        and one after another elsewhere: on a CPU that is faster, because nothing is launched and
        each is computed at its own size.

        Args:
            images: ``[B, in_chans, height, width]``, normalised floats.
            subnet: any subnet that fits the supernet's sizes; or G of them, where subnet g gets the
                images ``g * B / G`` to ``(g + 1) * B / G``.
            gradients: None for ordinary dense gradients; an accumulator makes the operators add
                into the slices of ``.grad`` instead.

        Returns:
            ``[B, num_classes]`` in the promoted dtype of images and parameters (under autocast in
            the autocast dtype).

        Raises:
            TypeError: images that are no tensor of floats.
            ValueError: images of another shape or device, or that G does not divide; a subnet
                larger than the supernet; of several on Triton, one that :meth:`new_extents` does
                not take.
        """
        if isinstance(subnet, Sequence):
            return self._forward_several(images, subnet, gradients)
        # the operators check extents too; compiled code must not depend on the ratios' values
        if not torch.compiler.is_compiling():
            self.space.supernet.validate(subnet)
        x = self.embed(images, subnet.embed_dim, gradients=gradients)
        for i in range(subnet.depth):
            x = self.blocks[i](x, subnet.num_heads[i], subnet.hidden_dims[i], self.grid, gradients)
        return self.classify(x, gradients=gradients)

    def embed(
        self, images: Tensor, embed_dim: int, *, gradients: GradientAccumulator | None = None
    ) -> Tensor:
        """What the first block reads, ``[B, N, embed_dim]``.

        Raises:
            TypeError: images that are no tensor of floats.
            ValueError: images of another shape or device.
        """
        self._check_images(images)
        x = self.patch_embed(images, embed_dim, gradients=gradients)
        if self.cls_token is not None:
            token = leading(self.cls_token, embed_dim).expand(x.shape[0], -1, -1)
            x = torch.cat((token.to(x.dtype), x), 1)
        if self.pos_embed is not None:
            x = x + leading(self.pos_embed, embed_dim)
        return x

    def classify(self, x: Tensor, *, gradients: GradientAccumulator | None = None) -> Tensor:
        """Class logits of what the last block gave, ``[B, N, embed_dim]``."""
        return self.head(self._pooled(self.norm(x, gradients=gradients)), gradients=gradients)

    def _forward_several(
        self, images: Tensor, subnets: Sequence[Subnet], gradients: GradientAccumulator | None
    ) -> Tensor:
        self._check_images(images)
        check_groups(images, len(subnets))
        if self.reads_extents_on_device():
            extents = self.new_extents(len(subnets))
            extents.write(subnets)
            return self.forward_static(images, extents, gradients=gradients)
        parts = images.tensor_split(len(subnets))
        logits = [
            self.forward(x, s, gradients=gradients) for x, s in zip(parts, subnets, strict=True)
        ]
        return torch.cat(logits)

    def forward_static(
        self,
        images: Tensor,
        extents: Extents,
        *,
        gradients: GradientAccumulator | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Class logits of the subnets that `extents` holds, in one fixed sequence of launches.

        No shape, branch or argument depends on the subnets, so one CUDA graph serves all: see
        docs/one-graph.md. Every block runs; those beyond a subnet's depth pass the stream on.

        Args:
            images: ``[B, in_chans, height, width]``, normalised floats.
            extents: of :meth:`new_extents`, on the images' device, for G subnets: the images are
                divided among them as in :meth:`forward`. Not to be written between forward and
                backward.
            gradients: as for :meth:`forward`; all that is launched is taken for dirty.
            generator: of drop path, on the images' device; None: the default one.

        Returns:
            As :meth:`forward` for those subnets, up to the order of sums; drop path draws other
            numbers.

        Raises:
            TypeError: images that are no tensor of floats.
            ValueError: images of another shape or device, or that G does not divide; or extents of
                another supernet.
        """
        self._check_images(images)
        check_groups(images, extents.groups)
        if len(extents.blocks) != len(self.blocks):
            raise ValueError(
                f"extents have {len(extents.blocks)} blocks, the supernet {len(self.blocks)}"
            )
        width, multiple = extents.embed, extents.embed_multiple
        x = self.patch_embed(
            images, self.space.supernet.embed_dim, gradients=gradients,
            extents=LinearExtents(width, None, multiple),
        )  # fmt: skip
        x, by_group = x.unflatten(0, (extents.groups, -1)), width.view(-1, 1, 1, 1)
        if self.cls_token is not None:
            token = masked(self.cls_token, by_group).expand(-1, x.shape[1], -1, -1)
            x = torch.cat((token.to(x.dtype), x), 2)
        if self.pos_embed is not None:
            x = x + masked(self.pos_embed, by_group)
        x = x.flatten(0, 1)
        survival = self._survival(images, generator)
        for i, (block, sizes) in enumerate(zip(self.blocks, extents.blocks, strict=True)):
            factors = None if survival is None else survival[i]
            assert isinstance(block, Block)
            x = block.forward_static(x, self.grid, sizes, factors, gradients)
        x = self._pooled(self.norm(x, gradients=gradients, extents=width))
        return self.head(x, gradients=gradients, extents=LinearExtents(None, width, multiple))

    def _pooled(self, x: Tensor) -> Tensor:
        if self.config["pool"] == "cls":
            return x[:, 0]
        return x[:, x.shape[1] - self.grid[0] * self.grid[1] :].mean(1)

    def _survival(self, images: Tensor, generator: torch.Generator | None) -> Tensor | None:
        """Drop path's factors ``[depth, 2, B]``; None where no branch is dropped."""
        rate, count = self.config["drop_path"], len(self.blocks)
        if not self.training or rate <= 0.0:
            return None
        keep = torch.linspace(1.0, 1.0 - rate, count, device=images.device).view(-1, 1, 1)
        return survival(images, keep, (count, 2, images.shape[0]), generator)

    def new_extents(self, groups: int = 1) -> Extents:
        """A table on the parameters' device for :meth:`forward_static`, to be written for so many
        subnets. It takes every subnet of the space, and of the others that fit the supernet those
        whose widths share the common divisors of the space's."""
        size, space = self.space.supernet, self.space
        hidden = [int(e * r) for e in space.embed_dim for r in space.mlp_ratio]
        return Extents(
            size.depth,
            size.embed_dim,
            size.num_heads,
            space.head_dim,
            size.hidden_dim,
            embed_multiple=math.gcd(size.embed_dim, *space.embed_dim),
            hidden_multiple=math.gcd(size.hidden_dim, *hidden),
            groups=groups,
            device=self.head.weight.device,
        )

    def reads_extents_on_device(self) -> bool:
        """Whether the backend in use runs several subnets in one launch: the Triton one."""
        weight = self.head.weight
        return select("linear", weight, weight).__name__.endswith(".gpu")

    def _check_images(self, images: Tensor) -> None:
        check_floating("images", images)
        expected = (self.config["in_chans"], *self.image_size)
        if images.dim() != 4 or tuple(images.shape[1:]) != expected:
            raise ValueError(
                f"images must be [B, {expected[0]}, {expected[1]}, {expected[2]}], got "
                f"{tuple(images.shape)}"
            )
        device = self.patch_embed.weight.device
        if images.device != device:
            raise ValueError(f"images are on {images.device}, the model on {device}")

    def extents(self, subnet: Subnet) -> dict[str, tuple[int, ...]]:
        """For each parameter that a subnet reads, the leading box it reads; others are absent.

        Boxes nest, so ``extents(space.largest())`` bounds what any subnet of a space reads. A
        subnet reads exactly its boxes (AutoFormer's flat qkv bias: a prefix).
        """
        self.space.supernet.validate(subnet)
        embed, head_dim = subnet.embed_dim, self.space.head_dim
        boxes: dict[str, tuple[int, ...]] = {
            "patch_embed.weight": (embed, self.patch_embed.weight.shape[1]),
            "patch_embed.bias": (embed,),
        }
        if self.cls_token is not None:
            boxes["cls_token"] = (1, 1, embed)
        if self.pos_embed is not None:
            boxes["pos_embed"] = (1, self.pos_embed.shape[1], embed)
        for i, (heads, hidden) in enumerate(zip(subnet.num_heads, subnet.hidden_dims, strict=True)):
            block = f"blocks.{i}."
            for norm in ("norm1", "norm2"):
                boxes[f"{block}{norm}.weight"] = boxes[f"{block}{norm}.bias"] = (embed,)
            boxes[f"{block}attn.qkv.weight"] = (3, heads, head_dim, embed)
            flat = self.config["qkv_bias"] == "autoformer"
            boxes[f"{block}attn.qkv.bias"] = (
                (3 * heads * head_dim,) if flat else (3, heads, head_dim)
            )
            if self.config["relative_position"]:
                rows = 2 * self.config["max_relative_position"] + 2
                boxes[f"{block}attn.rel_pos"] = (4, rows, head_dim)
            boxes[f"{block}attn.proj.weight"] = (embed, heads * head_dim)
            boxes[f"{block}attn.proj.bias"] = (embed,)
            boxes[f"{block}mlp.fc1.weight"] = (hidden, embed)
            boxes[f"{block}mlp.fc1.bias"] = (hidden,)
            boxes[f"{block}mlp.fc2.weight"] = (embed, hidden)
            boxes[f"{block}mlp.fc2.bias"] = (embed,)
        boxes["norm.weight"] = boxes["norm.bias"] = (embed,)
        boxes["head.weight"] = (self.config["num_classes"], embed)
        boxes["head.bias"] = (self.config["num_classes"],)
        return boxes

    def no_weight_decay(self) -> set[str]:
        """Parameters without weight decay, besides biases and 1-D ones (AutoFormer's groups)."""
        return {"pos_embed", "cls_token"}

    def _cost_arguments(self) -> dict[str, Any]:
        names = (
            "num_classes", "patch_size", "in_chans", "class_token", "absolute_position",
            "relative_position", "max_relative_position",
        )  # fmt: skip
        return {"image_size": self.image_size, **{name: self.config[name] for name in names}}

    def num_params(self, subnet: Subnet) -> int:
        """Parameters of the extracted subnet, exactly; no tensor is touched."""
        self.space.supernet.validate(subnet)
        return cost.num_params(self.space, subnet, **self._cost_arguments())

    def macs(self, subnet: Subnet) -> int:
        """Multiply-adds of one image through the extracted subnet (see growtas.space.cost.macs)."""
        self.space.supernet.validate(subnet)
        return cost.macs(self.space, subnet, **self._cost_arguments())

    def extract(self, subnet: Subnet) -> VisionTransformer:
        """The subnet as an ordinary module with its own copy of the weights; same logits."""
        from growtas.supernet.extract import extract

        return extract(self, subnet)
