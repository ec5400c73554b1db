"""The supernet: one Vision Transformer whose leading slices are all subnets of a search space."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from growtas.kernels import GradientAccumulator
from growtas.kernels.arguments import check_floating
from growtas.kernels.dispatch import select
from growtas.kernels.extents import LinearExtents, check_groups, masked
from growtas.space import SearchSpace, Subnet
from growtas.space.cost import Cost
from growtas.supernet.family import slices
from growtas.supernet.geometry import Box
from growtas.supernet.layers import (
    SlicedLayerNorm,
    SlicedLinear,
    drawn,
    leading,
    shapes_under,
    survival,
)
from growtas.supernet.vit.config import ModelConfig, SupernetConfig, SupernetOptions
from growtas.supernet.vit.extents import Extents
from growtas.supernet.vit.geometry import vit_geometry
from growtas.supernet.vit.layers import Block, PatchEmbedding, Run
from growtas.supernet.vit.standalone import VisionTransformer


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
        **options: Unpack[SupernetOptions],
    ) -> None:
        super().__init__()
        if not isinstance(space, SearchSpace):
            raise TypeError(f"space must be a SearchSpace (SearchSpace.preset(...)), got {space!r}")
        config = SupernetConfig(image_size, patch_size, num_classes, in_chans, **options)
        self.space = space
        self.config: dict[str, Any] = config.to_dict()
        self.image_size: tuple[int, int] = tuple(self.config["image_size"])
        self.grid = config.grid
        self.geometry = vit_geometry(config, space.head_dim)

        size, std = space.supernet, config.init_std
        shapes = self.geometry.boxes(size.largest())
        self.patch_embed = PatchEmbedding(shapes["patch_embed.weight"], patch_size)
        self.cls_token = drawn(shapes["cls_token"], std) if config.class_token else None
        self.pos_embed = drawn(shapes["pos_embed"], std) if config.absolute_position else None
        self.blocks = nn.ModuleList(
            Block(
                shapes_under(shapes, f"blocks.{i}."),
                config,
                drop_path=config.drop_path * i / max(size.depth - 1, 1),
            )
            for i in range(size.depth)
        )
        self.norm = SlicedLayerNorm(shapes["norm.weight"], config.layer_norm_eps)
        self.head = SlicedLinear(shapes["head.weight"], shapes["head.bias"], std)

    @classmethod
    def from_config(cls, config: Mapping[str, Any], space: SearchSpace) -> Supernet:
        """A freshly initialised supernet with another's ``config``."""
        return cls(space, **config)

    def forward(
        self,
        images: Tensor,
        subnet: Subnet | Sequence[Subnet],
        *,
        gradients: GradientAccumulator | None = None,
    ) -> Tensor:
        """Class logits of one subnet, or of several, each on its share of the batch.

        Several run in one launch of each kernel on the Triton backend (:meth:`forward_static`),
        and one after another elsewhere: on a CPU that is faster, because nothing is launched and
        each is computed at its own size.

        Args:
            images: ``[B, in_chans, height, width]``, normalised floats.
            subnet: any subnet that fits the supernet's sizes; or S of them, where subnet s gets the
                images ``s * B / S`` to ``(s + 1) * B / S``.
            gradients: None for ordinary dense gradients; an accumulator makes the operators add
                into the slices of ``.grad`` instead.

        Returns:
            ``[B, num_classes]`` in the promoted dtype of images and parameters (under autocast in
            the autocast dtype).

        Raises:
            TypeError: images that are no tensor of floats.
            ValueError: images of another shape or device, or that S does not divide; a subnet
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
            x = self.block(i, x, subnet, gradients=gradients)
        return self.classify(x, gradients=gradients)

    def embed(
        self, images: Tensor, embed_dim: int, *, gradients: GradientAccumulator | None = None
    ) -> Tensor:
        """What the first block reads, ``[B, N, embed_dim]``; errors as :meth:`forward`."""
        self._check_images(images)
        x = self.patch_embed(images, embed_dim, gradients=gradients)
        if self.cls_token is not None:
            token = leading(self.cls_token, embed_dim).expand(x.shape[0], -1, -1)
            x = torch.cat((token.to(x.dtype), x), 1)
        if self.pos_embed is not None:
            x = x + leading(self.pos_embed, embed_dim)
        return x

    def block(
        self, i: int, x: Tensor, subnet: Subnet, *, gradients: GradientAccumulator | None = None
    ) -> Tensor:
        """What block i of a subnet makes of the stream, ``[B, N, embed_dim]``."""
        run = Run(subnet.num_heads[i], subnet.hidden_dims[i], self.grid, gradients)
        return self.blocks[i](x, run)

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
            extents: of :meth:`new_extents`, on the images' device, for S subnets: the images are
                divided among them as in :meth:`forward`. Not to be written between forward and
                backward.
            gradients: as for :meth:`forward`; all that is launched is taken for dirty.
            generator: of drop path, on the images' device; None: the default one.

        Returns:
            As :meth:`forward` for those subnets, up to the order of sums; drop path draws other
            numbers.

        Raises:
            TypeError, ValueError: as :meth:`forward`; also for extents of another supernet.
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
        x, by_subnet = x.unflatten(0, (extents.groups, -1)), width.view(-1, 1, 1, 1)
        if self.cls_token is not None:
            token = masked(self.cls_token, by_subnet).expand(-1, x.shape[1], -1, -1)
            x = torch.cat((token.to(x.dtype), x), 2)
        if self.pos_embed is not None:
            x = x + masked(self.pos_embed, by_subnet)
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
        return getattr(select("linear", weight, weight), "SEVERAL_SUBNETS", False)

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

    def sample(self, rng: random.Random) -> Subnet:
        """A subnet of the space, see :meth:`growtas.SearchSpace.sample`."""
        return self.space.sample(rng)

    def boxes(self, subnet: Subnet) -> dict[str, Box]:
        """For each parameter that a subnet reads, the leading box it reads; others are absent.

        Boxes nest, so ``boxes(space.largest())`` bounds what any subnet of a space reads. A
        subnet reads exactly its boxes (AutoFormer's flat qkv bias: a prefix).
        """
        self.space.supernet.validate(subnet)
        return self.geometry.boxes(subnet)

    extents = boxes  # its first name

    def no_weight_decay(self) -> set[str]:
        """Parameters without weight decay, besides biases and 1-D ones (AutoFormer's groups)."""
        return {"pos_embed", "cls_token"}

    def num_params(self, subnet: Subnet) -> int:
        """Parameters of the extracted subnet, exactly; no tensor is touched."""
        self.space.supernet.validate(subnet)
        return self.geometry.num_params(subnet)

    def macs(self, subnet: Subnet) -> int:
        """Multiply-adds of one image through the extracted subnet (see growtas.macs)."""
        self.space.supernet.validate(subnet)
        return self.geometry.macs(subnet)

    def cost(self, subnet: Subnet) -> Cost:
        """Both."""
        return Cost(self.num_params(subnet), self.macs(subnet))

    def extract(self, subnet: Subnet) -> VisionTransformer:
        """The subnet as a stand-alone module, on the supernet's device and in its dtype.

        Its logits equal the supernet's to rounding; its parameter count is ``num_params(subnet)``.
        It starts in the supernet's train/eval mode and shares no memory with it.

        Raises:
            ValueError: the subnet does not fit the supernet.
        """
        own = slices(self, self.boxes(subnet))
        with torch.random.fork_rng(devices=[]):  # initial weights must not advance a run's draws
            module = VisionTransformer(
                embed_dim=subnet.embed_dim,
                num_heads=subnet.num_heads,
                hidden_dims=subnet.hidden_dims,
                head_dim=self.space.head_dim,
                **{name: self.config[name] for name in ModelConfig.__dataclass_fields__},
            )
        module.to(self.head.weight.device, self.head.weight.dtype)
        convolution = "patch_embed.proj."
        named = {name.replace("patch_embed.", convolution): value for name, value in own.items()}
        shapes = {name: value.shape for name, value in module.state_dict().items()}
        module.load_state_dict({k: value.reshape(shapes[k]) for k, value in named.items()})
        return module.train(self.training)
