"""AutoFormer's own count of multiply-adds. Pure Python."""

from __future__ import annotations

from typing import Unpack

from growtas.base.checks import positive_int
from growtas.space import SearchSpace, SpaceDifference, Subnet
from growtas.supernet.vit.config import CostOptions, SupernetConfig


def autoformer_complexity(
    space: SearchSpace | SpaceDifference,
    subnet: Subnet,
    *,
    sequence_length: int | None = None,
    **model: Unpack[CostOptions],
) -> float:
    """AutoFormer's own ``get_complexity(sequence_length)``, in multiply-adds. Not the true cost:

    - blocks are counted with two tokens beside the patches, one more than there are;
    - the classifier is counted for every token, though it reads one vector;
    - relative position is counted as about ``(2r + 1/2) N^2`` per block, whatever the heads, which
      is unrelated to the two products it takes.

    The final norm is missing too. It exists to compare with numbers that were made with it; use
    `growtas.macs` for anything else.

    Args:
        sequence_length: number of patches that the count assumes; None for those of the image.

    The other arguments and errors are those of `growtas.num_params`. The result is a float because
    halves occur.
    """
    space.supernet.validate(subnet)
    config = SupernetConfig(**model)
    embed = subnet.embed_dim
    patches = config.grid[0] * config.grid[1]
    length = (
        patches if sequence_length is None else positive_int("sequence_length", sequence_length)
    )
    patch_inputs = config.in_chans * config.patch_size**2

    total = embed + length * patch_inputs * embed + (length + 1) * config.num_classes * embed
    halves = (patches + 1) * embed if config.absolute_position else 0
    tokens = length + 2
    for heads, hidden in zip(subnet.num_heads, subnet.hidden_dims, strict=True):
        inner = heads * space.head_dim
        total += tokens * embed * (2 + 4 * inner + 2 * hidden) + 2 * tokens**2 * inner
        if config.relative_position:
            total += 2 * config.max_relative_position * tokens**2
            halves += tokens**2 + tokens * inner
    return total + halves / 2
