"""The sizes of a Vision Transformer: which axes its parameters follow. Pure Python."""

from __future__ import annotations

from functools import lru_cache
from typing import Unpack

from growtas.space import SearchSpace, SpaceDifference, Subnet
from growtas.supernet.geometry import Axis, Dims, Geometry
from growtas.supernet.vit.config import CostOptions, SupernetConfig

EMBED = Axis("embed", "embed_dim")
HEADS = Axis("heads", "num_heads", per_block=True)
HIDDEN = Axis("hidden", "hidden_dims", per_block=True)
AXES = (EMBED, HEADS, HIDDEN)


def vit_geometry(config: SupernetConfig, head_dim: int) -> Geometry:
    """The sizes of subnets of a supernet with these options and heads of this width."""
    rows, columns = config.grid
    patches, token = rows * columns, int(config.class_token)
    tokens = patches + token
    head_width = HEADS * head_dim
    parameters: dict[str, Dims] = {
        "pos_embed": (1, tokens, EMBED),
        "cls_token": (1, 1, EMBED),
        "patch_embed.weight": (EMBED, config.in_chans * config.patch_size**2),
        "patch_embed.bias": (EMBED,),
        "blocks.{i}.attn.qkv.weight": (3, HEADS, head_dim, EMBED),
        "blocks.{i}.attn.qkv.bias": (3, HEADS, head_dim),
        "blocks.{i}.attn.rel_pos": (4, 2 * config.max_relative_position + 2, head_dim),
        "blocks.{i}.attn.proj.weight": (EMBED, head_width),
        "blocks.{i}.attn.proj.bias": (EMBED,),
        "blocks.{i}.norm1.weight": (EMBED,),
        "blocks.{i}.norm1.bias": (EMBED,),
        "blocks.{i}.norm2.weight": (EMBED,),
        "blocks.{i}.norm2.bias": (EMBED,),
        "blocks.{i}.mlp.fc1.weight": (HIDDEN, EMBED),
        "blocks.{i}.mlp.fc1.bias": (HIDDEN,),
        "blocks.{i}.mlp.fc2.weight": (EMBED, HIDDEN),
        "blocks.{i}.mlp.fc2.bias": (EMBED,),
        "norm.weight": (EMBED,),
        "norm.bias": (EMBED,),
        "head.weight": (config.num_classes, EMBED),
        "head.bias": (config.num_classes,),
    }
    if config.qkv_bias == "autoformer":
        # A prefix of the flat bias: an entry changes its role with the number of heads.
        parameters["blocks.{i}.attn.qkv.bias"] = (head_width * 3,)
    if not config.absolute_position:
        del parameters["pos_embed"]
    if not config.class_token:
        del parameters["cls_token"]
    if not config.relative_position:
        del parameters["blocks.{i}.attn.rel_pos"]
    matrices = {
        "patch_embed.weight": patches,
        "blocks.{i}.attn.qkv.weight": tokens,
        "blocks.{i}.attn.proj.weight": tokens,
        "blocks.{i}.mlp.fc1.weight": tokens,
        "blocks.{i}.mlp.fc2.weight": tokens,
        "head.weight": 1,
    }
    # Relative position is one plain attention whose heads are longer by one-hot codes of row,
    # column and class token, with products of the patches with the key and the value tables.
    codes = rows + columns + token if config.relative_position else 0
    attention: list[Dims] = [(2 * tokens**2 * (head_dim + codes), HEADS)]
    if codes:
        attention.append((2 * patches * codes, head_width))
    return Geometry(AXES, parameters, matrices, attention)


def num_params(
    space: SearchSpace | SpaceDifference, subnet: Subnet, **model: Unpack[CostOptions]
) -> int:
    """Number of weights of the ordinary model that `Supernet.extract` returns for the subnet.

    Args:
        space: gives the head dim and the size of the supernet.
        subnet: any architecture that fits into the supernet, whether or not it is in `space`.
        model: arguments of :class:`growtas.Supernet`, with its defaults.

    Raises:
        ValueError: the subnet exceeds the supernet, or an argument is out of its range.
    """
    return _geometry(space, subnet, model).num_params(subnet)


def macs(space: SearchSpace | SpaceDifference, subnet: Subnet, **model: Unpack[CostOptions]) -> int:
    """Multiply-adds of one forward of one image through the extracted subnet.

    Counts matrix products, as torch.utils.flop_counter does (its FLOPs are twice this number);
    biases, norms, softmax, activations and additions are not counted. Relative position costs what
    its form as one plain attention costs: head dim d + H + W (+ 1 with a class token) on an H x W
    grid, and the small products with the position tables before and after it.

    Arguments and errors are those of `num_params`.
    """
    return _geometry(space, subnet, model).macs(subnet)


def _geometry(space: SearchSpace | SpaceDifference, subnet: Subnet, model: CostOptions) -> Geometry:
    space.supernet.validate(subnet)
    if "image_size" in model and not isinstance(model["image_size"], int):
        model = {**model, "image_size": tuple(model["image_size"])}
    return _built(space.head_dim, **model)


@lru_cache(maxsize=64, typed=True)  # a search asks thousands of times, of one model
def _built(head_dim: int, **model: Unpack[CostOptions]) -> Geometry:
    return vit_geometry(SupernetConfig(**model), head_dim)
