"""Exact parameter and multiply-add counts of a subnet taken out of its supernet. Pure Python.

Both count the ordinary model that `Supernet.extract` returns, so a search can bound them before it
runs anything. Arguments have the meaning and the defaults they have for `growtas.Supernet`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from decimal import Decimal, InvalidOperation
from typing import Any, Literal, NamedTuple

from growtas.base.checks import positive_int
from growtas.space.search_space import SearchSpace, SpaceDifference
from growtas.space.subnet import Subnet

Axis = Literal["params", "macs"]
Count = int | float | str | None

_UNITS = {"K": 10**3, "M": 10**6, "G": 10**9, "B": 10**9, "T": 10**12}


class Cost(NamedTuple):
    """Size of the extracted model."""

    params: int  # parameters
    macs: int  # multiply-adds for one image


CostFunction = Callable[[Subnet], Cost]


def model_cost(model: Any) -> CostFunction:
    """The cost function of a supernet: ``model.num_params(subnet)`` and ``model.macs(subnet)``."""
    return lambda subnet: Cost(model.num_params(subnet), model.macs(subnet))


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


def autoformer_complexity(
    space: SearchSpace | SpaceDifference,
    subnet: Subnet,
    *,
    sequence_length: int | None = None,
    num_classes: int = 1000,
    image_size: int | Sequence[int] = 224,
    patch_size: int = 16,
    in_chans: int = 3,
    absolute_position: bool = True,
    relative_position: bool = True,
    max_relative_position: int = 14,
) -> float:
    """AutoFormer's own ``get_complexity(sequence_length)``, in multiply-adds. Not the true cost:

    - blocks are counted with two tokens beside the patches, one more than there are;
    - the classifier is counted for every token, though it reads one vector;
    - relative position is counted as about ``(2r + 1/2) N^2`` per block, whatever the heads, which
      is unrelated to the two products it takes.

    The final norm is missing too. It exists to compare with numbers that were made with it; use
    `macs` for anything else.

    Args:
        sequence_length: number of patches that the count assumes; None for those of the image.

    The other arguments and errors are those of `num_params`. The result is a float because halves
    occur.
    """
    space.supernet.validate(subnet)
    embed = subnet.embed_dim
    height, width = _grid(image_size, patch_size)
    patches = height * width
    length = (
        patches if sequence_length is None else positive_int("sequence_length", sequence_length)
    )
    outputs = positive_int("num_classes", num_classes)
    patch_inputs = positive_int("in_chans", in_chans) * patch_size**2

    total = embed + length * patch_inputs * embed + (length + 1) * outputs * embed
    halves = (patches + 1) * embed if absolute_position else 0
    tokens = length + 2
    for heads, hidden in zip(subnet.num_heads, subnet.hidden_dims, strict=True):
        inner = heads * space.head_dim
        total += tokens * embed * (2 + 4 * inner + 2 * hidden) + 2 * tokens**2 * inner
        if relative_position:
            total += 2 * max_relative_position * tokens**2
            halves += tokens**2 + tokens * inner
    return total + halves / 2


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


def parse_count(value: int | float | str, name: str = "count") -> int:
    """A number of parameters or multiply-adds: ``6000000``, ``6e6``, ``"6M"``, ``"1.3G"``.

    Units are powers of 1000: K, M, G (or B) and T, in either case.

    Raises:
        TypeError: neither a number nor text.
        ValueError: not a non-negative whole number.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise TypeError(f"{name} must be a number or a text like '6M', got {value!r}")
    text = str(value).strip()
    unit = _UNITS.get(text[-1:].upper(), 1)
    try:
        number = Decimal(text[:-1] if unit > 1 else text) * unit
    except InvalidOperation:
        raise ValueError(
            f"{name} must be a number or a text like '6M' or '1.3G', got {value!r}"
        ) from None
    if not number.is_finite() or number < 0 or number != number.to_integral_value():
        raise ValueError(f"{name} must be a whole number that is not negative, got {value!r}")
    return int(number)


def format_count(count: float) -> str:
    """`count` with a unit of 1000: 6000000 -> ``6M``, 5366056 -> ``5.366056M``."""
    for suffix, unit in (("G", 10**9), ("M", 10**6), ("K", 10**3)):
        if count >= unit:
            return f"{count / unit:.12g}{suffix}"
    return f"{count:.12g}"
