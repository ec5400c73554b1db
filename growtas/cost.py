"""Exact parameter and multiply-add counts of a subnet taken out of its supernet. Pure Python.

Both count the ordinary model that `Supernet.extract` returns, so a search can bound them before it
runs anything. Arguments have the meaning and the defaults they have for `growtas.Supernet`.
"""

from __future__ import annotations

from collections.abc import Sequence

from growtas.checks import positive_int
from growtas.space import SearchSpace, SpaceDifference
from growtas.subnet import Subnet


def num_params(
    space: SearchSpace | SpaceDifference,
    subnet: Subnet,
    *,
    num_classes: int = 1000,
    image_size: int | Sequence[int] = 224,
    patch_size: int = 16,
    in_chans: int = 3,
    class_token: bool = True,
    absolute_position: bool = True,
    relative_position: bool = True,
    max_relative_position: int = 14,
) -> int:
    """Number of weights of the extracted subnet.

    Args:
        space: gives the head dim and the size of the supernet.
        subnet: any architecture that fits into the supernet, whether or not it is in `space`.
        num_classes: outputs of the classifier.
        image_size: pixels, one side or (height, width).
        patch_size: pixels per patch side.
        in_chans: image channels.
        class_token, absolute_position, relative_position: which of these the model has.
        max_relative_position: reach of the relative position tables, in patches.

    Raises:
        ValueError: the subnet exceeds the supernet, a size is out of range, or the patch size
            does not divide the image size.
    """
    space.supernet.validate(subnet)
    embed, head_dim = subnet.embed_dim, space.head_dim
    height, width = _grid(image_size, patch_size)
    outputs = positive_int("num_classes", num_classes)
    patch_inputs = positive_int("in_chans", in_chans) * patch_size**2

    total = (patch_inputs + 1) * embed + 2 * embed + (embed + 1) * outputs
    if class_token:
        total += embed
    if absolute_position:
        total += (height * width + int(class_token)) * embed
    for heads, hidden in zip(subnet.num_heads, subnet.hidden_dims, strict=True):
        inner = heads * head_dim
        norms = 4 * embed
        attention = (embed + 1) * 3 * inner + (inner + 1) * embed
        mlp = (embed + 1) * hidden + (hidden + 1) * embed
        total += norms + attention + mlp
    if relative_position:
        if max_relative_position < 0:
            raise ValueError(
                f"max_relative_position must be 0 or more, got {max_relative_position}"
            )
        total += subnet.depth * 4 * (2 * max_relative_position + 2) * head_dim
    return total


def macs(
    space: SearchSpace | SpaceDifference,
    subnet: Subnet,
    *,
    num_classes: int = 1000,
    image_size: int | Sequence[int] = 224,
    patch_size: int = 16,
    in_chans: int = 3,
    class_token: bool = True,
    absolute_position: bool = True,
    relative_position: bool = True,
    max_relative_position: int = 14,
) -> int:
    """Multiply-adds of one forward of one image through the extracted subnet.

    Counts matrix products, as torch.utils.flop_counter does (its FLOPs are twice this number);
    biases, norms, softmax, activations and additions are not counted. Relative position costs what
    its form as one plain attention costs: head dim d + H + W (+ 1 with a class token) on an H x W
    grid, and the small products with the position tables before and after it.

    Arguments and errors are those of `num_params`; `absolute_position` and `max_relative_position`
    have no influence.
    """
    space.supernet.validate(subnet)
    embed, head_dim = subnet.embed_dim, space.head_dim
    height, width = _grid(image_size, patch_size)
    patches, token = height * width, int(class_token)
    tokens = patches + token
    outputs = positive_int("num_classes", num_classes)
    codes = height + width + token if relative_position else 0

    total = patches * positive_int("in_chans", in_chans) * patch_size**2 * embed + embed * outputs
    for heads, hidden in zip(subnet.num_heads, subnet.hidden_dims, strict=True):
        linears = tokens * embed * (4 * heads * head_dim + 2 * hidden)
        attention = 2 * tokens**2 * heads * (head_dim + codes)
        positions = 2 * patches * heads * head_dim * codes  # with the key and the value tables
        total += linears + attention + positions
    return total


def _grid(image_size: int | Sequence[int], patch_size: int) -> tuple[int, int]:
    """Patches per column and per row."""
    patch = positive_int("patch_size", patch_size)
    sides = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    if len(sides) != 2:
        raise ValueError(f"image_size must be one side or (height, width), got {image_size}")
    for side in sides:
        if positive_int("image_size", side) % patch:
            raise ValueError(f"image_size {side} is not a multiple of patch_size {patch}")
    return sides[0] // patch, sides[1] // patch
