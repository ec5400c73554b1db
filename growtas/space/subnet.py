"""One architecture of a weight-sharing Vision Transformer, and the buffers it is read from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, ClassVar, NamedTuple

from growtas.base.checks import as_tuple, mapping, positive_float, positive_int


class Axes(NamedTuple):
    """What the subnets of a family choose, as fields of their class; the number of blocks, their
    `depth`, is chosen too.

    Attributes:
        subnet: fields with one value.
        block: fields with a value for each block.
    """

    subnet: tuple[str, ...]
    block: tuple[str, ...]


@dataclass(frozen=True)
class Subnet:
    """One architecture. Hashable; ratios are kept as floats, so 4 and 4.0 give equal subnets.

    Args:
        embed_dim: width of the residual stream.
        num_heads: attention heads of each block; its length is the depth.
        mlp_ratio: hidden width of each block's MLP over `embed_dim`; as long as `num_heads`.

    Raises:
        TypeError: a value is not a number of the right kind.
        ValueError: a value is not positive, or the two per-block lists differ in length.
    """

    axes: ClassVar = Axes(subnet=("embed_dim",), block=("num_heads", "mlp_ratio"))

    embed_dim: int
    num_heads: tuple[int, ...]
    mlp_ratio: tuple[float, ...]
    # MLP hidden width of each block: int(embed_dim * ratio). Stored, so that torch.compile sees
    # plain integers and not arithmetic on floats.
    hidden_dims: tuple[int, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        heads = as_tuple("num_heads", self.num_heads)
        ratios = as_tuple("mlp_ratio", self.mlp_ratio)
        heads = tuple(positive_int(f"num_heads[{i}]", h) for i, h in enumerate(heads))
        ratios = tuple(positive_float(f"mlp_ratio[{i}]", r) for i, r in enumerate(ratios))
        object.__setattr__(self, "embed_dim", positive_int("embed_dim", self.embed_dim))
        object.__setattr__(self, "num_heads", heads)
        object.__setattr__(self, "mlp_ratio", ratios)
        if len(heads) != len(ratios):
            raise ValueError(
                f"num_heads has {len(heads)} entries and mlp_ratio {len(ratios)}; "
                "both need one per block"
            )
        if not heads:
            raise ValueError("num_heads and mlp_ratio are empty; a subnet has at least one block")
        hidden_dims = tuple(int(self.embed_dim * ratio) for ratio in ratios)
        object.__setattr__(self, "hidden_dims", hidden_dims)
        for i, hidden in enumerate(hidden_dims):
            if hidden < 1:
                raise ValueError(
                    f"mlp_ratio[{i}] = {ratios[i]} leaves no hidden unit at embed_dim "
                    f"{self.embed_dim}"
                )

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return len(self.num_heads)

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and numbers, ready for JSON or YAML; `from_dict` reads it back."""
        return {
            "embed_dim": self.embed_dim,
            "depth": self.depth,
            "num_heads": list(self.num_heads),
            "mlp_ratio": list(self.mlp_ratio),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Subnet:
        """Read what `to_dict` gives, or what AutoFormer writes: the RETRAIN section of its YAML
        files, or its config dict with `layer_num` and one (equal) embedding dim per block.

        Raises:
            TypeError: `values` is not a mapping, or a value is not a number.
            ValueError: a field is missing or unknown, embedding dims differ, or the depth given is
                not the number of blocks.
        """
        fields = {str(key).lower(): value for key, value in mapping("subnet", values).items()}
        if "layer_num" in fields:
            fields["depth"] = fields.pop("layer_num")
        mapping("subnet", fields, required=("embed_dim", *BLOCK_AXES), optional=("depth",))
        embed = fields["embed_dim"]
        if isinstance(embed, (list, tuple)):
            if len(set(embed)) != 1:
                raise ValueError(f"embed_dim is {list(embed)}; all blocks share one embed_dim")
            embed = embed[0]
        subnet = cls(embed, fields["num_heads"], fields["mlp_ratio"])
        if fields.get("depth", subnet.depth) != subnet.depth:
            raise ValueError(
                f"depth is {fields['depth']}, but num_heads and mlp_ratio list {subnet.depth}"
            )
        return subnet

    def __str__(self) -> str:
        heads, ratios = _run_lengths(self.num_heads), _run_lengths(self.mlp_ratio)
        return f"embed={self.embed_dim} depth={self.depth} heads={heads} ratio={ratios}"


SUBNET_AXES = (*Subnet.axes.subnet, "depth")
BLOCK_AXES = Subnet.axes.block
AXES = SUBNET_AXES + BLOCK_AXES


@dataclass(frozen=True)
class SupernetSize:
    """Extents of the max-size parameter buffers, of which every subnet takes the leading part."""

    embed_dim: int
    num_heads: int
    mlp_ratio: float
    depth: int

    def __post_init__(self) -> None:
        for axis in AXES:
            value = axis_number(axis, f"supernet {axis}", getattr(self, axis))
            object.__setattr__(self, axis, value)

    @property
    def hidden_dim(self) -> int:
        """Width of the MLP buffers: int(embed_dim * mlp_ratio)."""
        return int(self.embed_dim * self.mlp_ratio)

    def largest(self) -> Subnet:
        """The subnet that reads all of the buffers."""
        return Subnet(
            self.embed_dim, (self.num_heads,) * self.depth, (self.mlp_ratio,) * self.depth
        )

    def validate(self, subnet: Subnet) -> None:
        """Raise ValueError unless the buffers hold `subnet`, be it in a search space or not."""
        for axis, block, value in axis_values(subnet):
            limit = getattr(self, axis)
            if value > limit:
                raise ValueError(
                    f"{axis}{block_label(block)} = {value} is larger than the supernet's {limit}"
                )

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers by field name."""
        return {axis: getattr(self, axis) for axis in AXES}


def axis_number(axis: str, label: str, value: Any) -> float:
    """`value` as a valid choice of `axis`: a positive float for ratios, else a positive int."""
    return (positive_float if axis == "mlp_ratio" else positive_int)(label, value)


def axis_values(subnet: Subnet) -> list[tuple[str, int | None, float]]:
    """(axis, block if it is one of the blocks', value) of every choice that a subnet makes."""
    if not isinstance(subnet, Subnet):
        raise TypeError(f"expected a Subnet, got {subnet!r}")
    values: list[tuple[str, int | None, float]] = [
        (axis, None, getattr(subnet, axis)) for axis in SUBNET_AXES
    ]
    for axis in BLOCK_AXES:
        values += [(axis, i, value) for i, value in enumerate(getattr(subnet, axis))]
    return values


def block_label(block: int | None) -> str:
    """What messages put behind the axis."""
    return "" if block is None else f"[{block}]"


def _run_lengths(values: Iterable[float]) -> str:
    runs = [(f"{value:g}", len(list(group))) for value, group in groupby(values)]
    return ",".join(text if count == 1 else f"{text}x{count}" for text, count in runs)
