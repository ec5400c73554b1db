"""Search spaces of a weight-sharing Vision Transformer. Pure Python, without torch.

A subnet reads the leading part of every max-size parameter, so a space is given by the choices of
four axes: embedding dim (one per subnet), depth (one per subnet), heads and MLP ratio (one per
block). The presets are the AutoFormer spaces (Chen et al., 2021, table 1) and one for 8x8 digits.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from growtas.base.atomic import write_atomically
from growtas.base.checks import as_tuple, listed, mapping, positive_int
from growtas.base.config import load_yaml, nearest, read_text
from growtas.space.subnet import (
    AXES,
    SUBNET_AXES,
    Subnet,
    SupernetSize,
    axis_number,
    axis_values,
    block_label,
)


@dataclass(frozen=True)
class SearchSpace:
    """All subnets whose every value is one of the listed choices.

    Spaces compare as sets of subnets of one supernet: `small <= space`, `small < space`,
    `subnet in space`, `space - small`. Spaces with another `supernet` or `head_dim` are neither
    equal nor nested. `name` is a label and takes no part in comparisons.

    Args:
        embed_dim, depth, num_heads, mlp_ratio: choices per axis; sorted on construction.
        head_dim: width of one attention head, the same in all subnets.
        supernet: extents of the shared buffers; None for the largest choices. `restrict` keeps it.
        name: label for logs.

    Raises:
        TypeError: a choice is not a number of the right kind.
        ValueError: an axis is empty, lists a value twice, or exceeds the supernet.
    """

    embed_dim: tuple[int, ...]
    depth: tuple[int, ...]
    num_heads: tuple[int, ...]
    mlp_ratio: tuple[float, ...]
    head_dim: int = 64
    supernet: SupernetSize = None  # type: ignore[assignment]  # never None once constructed
    name: str = field(default="custom", compare=False)

    def __post_init__(self) -> None:
        for axis in AXES:
            values = as_tuple(axis, getattr(self, axis))
            choices = tuple(sorted(axis_number(axis, axis, value) for value in values))
            if not choices:
                raise ValueError(f"{axis} has no choices; every axis needs at least one")
            if len(set(choices)) < len(choices):
                raise ValueError(f"{axis} lists a value more than once: {listed(choices)}")
            object.__setattr__(self, axis, choices)
        object.__setattr__(self, "head_dim", positive_int("head_dim", self.head_dim))
        if self.supernet is None:
            size = SupernetSize(**{axis: getattr(self, axis)[-1] for axis in AXES})
            object.__setattr__(self, "supernet", size)
        for axis in AXES:
            largest, limit = getattr(self, axis)[-1], getattr(self.supernet, axis)
            if largest > limit:
                raise ValueError(f"{axis} choice {largest} is larger than the supernet's {limit}")
        self.smallest()  # refuses blocks without a hidden unit

    @classmethod
    def preset(cls, name: str) -> SearchSpace:
        """A ready-made space: "autoformer-tiny", "-small", "-base" (in full) or "digits".

        The base space has the published heads 8, 9, 10; AutoFormer's supernet file has only 9, 10.
        """
        if name not in _PRESETS:
            hint = nearest(str(name), _PRESETS)
            raise ValueError(f"unknown space {name!r}{hint}; known: {listed(_PRESETS)}")
        return _PRESETS[name]

    @property
    def size(self) -> int:
        """Exact number of subnets, of any magnitude."""
        per_block = len(self.num_heads) * len(self.mlp_ratio)
        return len(self.embed_dim) * sum(per_block**depth for depth in self.depth)

    def __len__(self) -> int:
        return _len(self.size)

    def __bool__(self) -> bool:
        return True  # never empty; truth by __len__ would overflow

    def validate(self, subnet: Subnet) -> None:
        """Raise ValueError, naming the value and what is allowed, unless `subnet` is in here."""
        for axis, block, value in axis_values(subnet):
            self._check_choice(axis, value, block)

    def _check_choice(self, axis: str, value: float, block: int | None = None) -> None:
        choices, limit = getattr(self, axis), getattr(self.supernet, axis)
        if value not in choices:
            beyond = f" and larger than the supernet's {limit}" if value > limit else ""
            raise ValueError(
                f"{axis}{block_label(block)} = {value} is not in space {self.name!r}{beyond}; "
                f"allowed: {listed(choices)}"
            )

    def __contains__(self, subnet: object) -> bool:
        return isinstance(subnet, Subnet) and all(
            value in getattr(self, axis) for axis, _, value in axis_values(subnet)
        )

    def restrict(
        self,
        embed_dim: int | Iterable[int] | None = None,
        depth: int | Iterable[int] | None = None,
        num_heads: int | Iterable[int] | None = None,
        mlp_ratio: float | Iterable[float] | None = None,
    ) -> SearchSpace:
        """The sub-space with fewer choices on the axes given (one value or several).

        Raises:
            ValueError: a value is not a choice of this space.
        """
        chosen: dict[str, Any] = {}
        for axis, values in zip(AXES, (embed_dim, depth, num_heads, mlp_ratio), strict=True):
            if values is None:
                continue
            chosen[axis] = (values,) if hasattr(values, "__float__") else as_tuple(axis, values)
            for value in chosen[axis]:
                self._check_choice(axis, axis_number(axis, axis, value))
        return replace(self, **chosen)

    def shares_supernet(self, other: SearchSpace) -> bool:
        """Whether both spaces are parts of the same supernet."""
        return self.supernet == other.supernet and self.head_dim == other.head_dim

    def __le__(self, other: object) -> bool:
        if not isinstance(other, SearchSpace):
            return NotImplemented
        return self.shares_supernet(other) and all(
            set(getattr(self, axis)) <= set(getattr(other, axis)) for axis in AXES
        )

    def __lt__(self, other: object) -> bool:
        if not isinstance(other, SearchSpace):
            return NotImplemented
        return self <= other and self != other

    def __sub__(self, other: object) -> SpaceDifference:
        """The subnets of this space that are not in `other`, a space of the same supernet."""
        if not isinstance(other, SearchSpace):
            return NotImplemented
        return SpaceDifference(self, other)

    def sample(self, rng: random.Random) -> Subnet:
        """One subnet, every choice uniform and independent. The draws come in AutoFormer's order:
        depth, the MLP ratio of every block, the heads of every block, embedding dim."""
        if not hasattr(rng, "choice"):
            raise TypeError(f"rng must be a random.Random, got {rng!r}")
        depth = rng.choice(self.depth)
        ratios = tuple(rng.choice(self.mlp_ratio) for _ in range(depth))
        heads = tuple(rng.choice(self.num_heads) for _ in range(depth))
        return Subnet(rng.choice(self.embed_dim), heads, ratios)

    def smallest(self) -> Subnet:
        """The subnet with the smallest choice on every axis."""
        return self._corner(0)

    def largest(self) -> Subnet:
        """The subnet with the largest choice on every axis; it reads all that any other reads."""
        return self._corner(-1)

    def _corner(self, index: int) -> Subnet:
        depth, heads, ratio = self.depth[index], self.num_heads[index], self.mlp_ratio[index]
        return Subnet(self.embed_dim[index], (heads,) * depth, (ratio,) * depth)

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and numbers, ready for JSON or YAML; `from_dict` reads it back."""
        choices: dict[str, Any] = {axis: list(getattr(self, axis)) for axis in AXES}
        supernet = self.supernet.to_dict()
        return {"name": self.name, **choices, "head_dim": self.head_dim, "supernet": supernet}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SearchSpace:
        """Read what `to_dict` gives, or the sections SUPERNET and SEARCH_SPACE of AutoFormer's
        files; their other sections (RETRAIN) describe subnets and are left alone.

        Raises:
            TypeError: `values` or a section is not a mapping, or a choice is not a number.
            ValueError: a field is missing or unknown, or a value is not allowed.
        """
        fields = mapping("space", values)
        if "SEARCH_SPACE" in fields:
            autoformer, fields = fields, {"name": fields.get("name", "autoformer")}
            choices = mapping("SEARCH_SPACE", autoformer["SEARCH_SPACE"])
            for axis, values in choices.items():
                if isinstance(values, Mapping):  # PreNAS's, made from a few candidates
                    raise ValueError(
                        f"{axis} has choices per embedding dim, which no SearchSpace has; "
                        "growtas.load_subnets reads PreNAS's candidates"
                    )
            fields |= _lower(choices)
            if "SUPERNET" in autoformer:
                fields["supernet"] = _lower(mapping("SUPERNET", autoformer["SUPERNET"]))
        mapping("space", fields, required=AXES, optional=("head_dim", "supernet", "name"))
        if fields.get("supernet") is not None:
            sizes = mapping("supernet", fields["supernet"], required=AXES, optional=())
            fields["supernet"] = SupernetSize(**sizes)
        return cls(**fields)

    @classmethod
    def from_yaml(cls, path: str | Path) -> SearchSpace:
        """Read a YAML file: what `to_yaml` writes, or AutoFormer's; the file gives a nameless
        space its name.

        Raises:
            ValueError: the file is not YAML or does not describe a space; it names the file.
        """
        path = Path(path)
        values = load_yaml(read_text(path), source=str(path))
        try:
            return cls.from_dict({"name": path.stem, **mapping("space", values)})
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}: {error}") from None

    def to_yaml(self, path: str | Path) -> None:
        """Write a YAML file that `from_yaml` reads back."""
        import yaml

        text = yaml.safe_dump(self.to_dict(), sort_keys=False, default_flow_style=None)
        write_atomically(path, text)


@dataclass(frozen=True)
class SpaceDifference:
    """The subnets of `base` that are not in `removed`: what GrowTAS+ samples (A - A1).

    Raises:
        ValueError: the two spaces belong to different supernets.
    """

    base: SearchSpace
    removed: SearchSpace

    def __post_init__(self) -> None:
        if not self.base.shares_supernet(self.removed):
            raise ValueError(
                f"space {self.removed.name!r} ({self.removed.supernet}, head_dim "
                f"{self.removed.head_dim}) is not of the same supernet as {self.base.name!r} "
                f"({self.base.supernet}, head_dim {self.base.head_dim})"
            )

    @property
    def supernet(self) -> SupernetSize:
        """Extents of the shared buffers."""
        return self.base.supernet

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.base.head_dim

    @property
    def name(self) -> str:
        """Label for logs."""
        return f"part of {self.base.name}"

    @property
    def size(self) -> int:
        """Exact number of subnets, 0 if `removed` covers `base`."""
        common: dict[str, Any] = {
            axis: set(getattr(self.base, axis)) & set(getattr(self.removed, axis)) for axis in AXES
        }
        shared = self.base.restrict(**common).size if all(common.values()) else 0
        return self.base.size - shared

    def __len__(self) -> int:
        return _len(self.size)

    def __bool__(self) -> bool:
        return self.size > 0

    def __contains__(self, subnet: object) -> bool:
        return subnet in self.base and subnet not in self.removed

    def validate(self, subnet: Subnet) -> None:
        """Raise ValueError unless `subnet` is in `base` and not in `removed`."""
        self.base.validate(subnet)
        if subnet in self.removed:
            raise ValueError(f"subnet {subnet} is in the removed part of {self.base.name!r}")

    def sample(self, rng: random.Random) -> Subnet:
        """One subnet as `base.sample` draws it, given that it is not in `removed`.

        Raises:
            ValueError: the difference is empty.
        """
        self._check_not_empty()
        # Ends: some axis has a choice that `removed` lacks, so a draw succeeds with a probability
        # of at least one over the number of choices of that axis.
        while (subnet := self.base.sample(rng)) in self.removed:
            pass
        return subnet

    def smallest(self) -> Subnet:
        """A subnet with the fewest block weights; ValueError if the difference is empty."""
        return min(self._extremes(0), key=self._block_weights)

    def largest(self) -> Subnet:
        """A subnet with the most block weights; ValueError if the difference is empty."""
        return max(self._extremes(-1), key=self._block_weights)

    def _extremes(self, index: int) -> list[Subnet]:
        """Candidates for the smallest (0) or largest (-1) subnet: that corner of `base` if it is
        not removed, else the corner moved along one axis to a choice that `removed` lacks."""
        self._check_not_empty()
        corner = self.base._corner(index)
        if corner in self:
            return [corner]
        candidates = []
        for axis in AXES:
            gone = getattr(self.removed, axis)
            left = [value for value in getattr(self.base, axis) if value not in gone]
            changes: dict[str, Any]
            if left and axis in SUBNET_AXES:
                changes = {axis: left[index]}
                candidates.append(self.base.restrict(**changes)._corner(index))
            elif left:
                changes = {axis: (left[index], *getattr(corner, axis)[1:])}
                candidates.append(replace(corner, **changes))
        return candidates

    def _block_weights(self, subnet: Subnet) -> int:
        attention = 4 * self.head_dim * sum(subnet.num_heads)
        return subnet.embed_dim * (attention + 2 * sum(subnet.hidden_dims))

    def _check_not_empty(self) -> None:
        if not self:
            raise ValueError(f"nothing is left of space {self.base.name!r} after the removal")


def _len(size: int) -> int:
    if size >= 2**63:
        raise OverflowError(f"the space has {size} subnets, more than len() can say; use .size")
    return size


def _lower(values: Mapping[str, Any]) -> dict[str, Any]:
    return {str(key).lower(): value for key, value in values.items()}


_PRESETS = {
    space.name: space
    for space in (
        SearchSpace(
            embed_dim=(192, 216, 240),
            depth=(12, 13, 14),
            num_heads=(3, 4),
            mlp_ratio=(3.5, 4.0),
            supernet=SupernetSize(embed_dim=256, num_heads=4, mlp_ratio=4.0, depth=14),
            name="autoformer-tiny",
        ),
        SearchSpace(
            embed_dim=(320, 384, 448),
            depth=(12, 13, 14),
            num_heads=(5, 6, 7),
            mlp_ratio=(3.0, 3.5, 4.0),
            name="autoformer-small",
        ),
        SearchSpace(
            embed_dim=(528, 576, 624),
            depth=(14, 15, 16),
            num_heads=(8, 9, 10),
            mlp_ratio=(3.0, 3.5, 4.0),
            supernet=SupernetSize(embed_dim=640, num_heads=10, mlp_ratio=4.0, depth=16),
            name="autoformer-base",
        ),
        SearchSpace(
            embed_dim=(32, 48, 64),
            depth=(4, 5, 6),
            num_heads=(2, 3, 4),
            mlp_ratio=(2.0, 3.0, 4.0),
            head_dim=16,
            name="digits",
        ),
    )
}
