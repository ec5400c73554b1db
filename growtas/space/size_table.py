"""All sizes of a search space, grouped: windows are sampled uniformly, or known to be empty.

The size of a Vision Transformer does not depend on the order of its blocks, and heads and MLP add
up. So for each embedding dim and depth it is enough to know what each multiset of heads adds, and
each multiset of MLP ratios: AutoFormer-S has 7.7e13 subnets but 1.4e5 pairs of multisets.
"""

from __future__ import annotations

import itertools
import math
import random
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, Protocol

from growtas.space.cost import Cost, CostFunction
from growtas.space.search_space import SearchSpace, SpaceDifference, Subnet

MAX_PAIRS = 500_000  # a table of this size takes about a second
_CHECKS = 16


class Bounds(Protocol):
    """A window on the size; `growtas.search.Limit` is one."""

    def window(self, axis: str) -> tuple[float, float]:
        """Least and most allowed on "params" or "macs"."""

    def admits(self, params: int, macs: int) -> bool:
        """Whether a model of this size is inside."""


class _Part(NamedTuple):
    """The heads, or the MLP ratios, of all blocks in any order."""

    values: tuple[Any, ...]
    cost: Cost  # beyond that of the smallest choice in every block
    ways: int  # number of different orders


class _Group(NamedTuple):
    """The subnets of one embedding dim and depth."""

    embed_dim: int
    depth: int
    base: Cost  # with the smallest heads and ratio in every block
    heads: list[_Part]
    ratios: list[_Part]  # by growing params

    @property
    def members(self) -> int:
        """How many there are."""
        return sum(part.ways for part in self.heads) * sum(part.ways for part in self.ratios)


class Family(NamedTuple):
    """The subnets of one size that differ only in the order of their blocks."""

    group: _Group
    heads: _Part
    ratios: _Part

    @property
    def size(self) -> Cost:
        """Size of each of them."""
        return _add(self.group.base, self.heads.cost, self.ratios.cost)

    @property
    def members(self) -> int:
        """How many there are."""
        return self.heads.ways * self.ratios.ways

    def sample(self, rng: random.Random) -> Subnet:
        """One of them, each equally likely."""
        return Subnet(
            self.group.embed_dim,
            tuple(rng.sample(self.heads.values, self.group.depth)),
            tuple(rng.sample(self.ratios.values, self.group.depth)),
        )


class SizeTable:
    """Sizes of the subnets of a space, see the module. Made with `build`."""

    def __init__(self, groups: list[_Group], removed: SearchSpace | None = None) -> None:
        self._groups = groups
        self._removed = removed

    @classmethod
    def build(cls, space: SearchSpace | SpaceDifference, cost: CostFunction) -> SizeTable | None:
        """The table, or None if it would exceed `MAX_PAIRS` or `cost` is no sum over blocks."""
        base, removed = (
            (space, None) if isinstance(space, SearchSpace) else (space.base, space.removed)
        )
        pairs = sum(
            _multisets(base.num_heads, d) * _multisets(base.mlp_ratio, d) for d in base.depth
        )
        if pairs * len(base.embed_dim) > MAX_PAIRS:
            return None
        groups = [_group(base, cost, e, d) for e in base.embed_dim for d in base.depth]
        table = cls(groups, removed)
        rng = random.Random(0)
        samples = [base.sample(rng) for _ in range(_CHECKS)]
        return table if all(table._size(subnet) == cost(subnet) for subnet in samples) else None

    def _size(self, subnet: Subnet) -> Cost:
        heads, ratios = tuple(sorted(subnet.num_heads)), tuple(sorted(subnet.mlp_ratio))
        for group in self._groups:
            if (group.embed_dim, group.depth) == (subnet.embed_dim, subnet.depth):
                part = next(p for p in group.heads if p.values == heads)
                other = next(p for p in group.ratios if p.values == ratios)
                return Family(group, part, other).size
        raise KeyError(subnet)

    def families(self) -> Iterator[Family]:
        """All subnets of the space, in families of one size."""
        for group in self._groups:
            families = (
                Family(group, heads, ratios)
                for heads, ratios in itertools.product(group.heads, group.ratios)
            )
            yield from families if self._removed is None else filter(self._holds, families)

    def sizes(self) -> Iterator[Cost]:
        """Every size there is; some repeatedly."""
        return (family.size for family in self.families())

    def inside(self, limit: Bounds) -> Selection:
        """The part of the table that `limit` admits."""
        low, high = limit.window("params")
        found = []
        for group in self._groups:
            growth = [ratios.cost.params for ratios in group.ratios]
            for heads in group.heads:
                fixed = group.base.params + heads.cost.params
                for ratios in group.ratios[
                    bisect_left(growth, low - fixed) : bisect_right(growth, high - fixed)
                ]:
                    family = Family(group, heads, ratios)
                    if limit.admits(*family.size) and self._holds(family):
                        found.append(family)
        return Selection(found)

    def _holds(self, family: Family) -> bool:
        """Whether the family is in the space: of a difference, none or all of its subnets are."""
        gone = self._removed
        return gone is None or not (
            family.group.embed_dim in gone.embed_dim
            and family.group.depth in gone.depth
            and set(family.heads.values) <= set(gone.num_heads)
            and set(family.ratios.values) <= set(gone.mlp_ratio)
        )


class Selection:
    """Some families of a table, as the subnets inside a window.

    Args:
        found: the families.
        equal: `sample` gives every subnet the same chance, instead of the one it has in
            ``space.sample``.
    """

    def __init__(self, found: Iterable[Family], equal: bool = False) -> None:
        self._found = list(found)
        self.count = sum(family.members for family in self._found)  # subnets
        groups = {id(family.group): family.group for family in self._found}
        # AutoFormer draws the depth first: a subnet is as likely as its depth leaves it.
        shares = {key: 1 if equal else group.members for key, group in groups.items()}
        self._weights = list(
            itertools.accumulate(f.members / shares[id(f.group)] for f in self._found)
        )

    def sample(self, rng: random.Random) -> Subnet:
        """One subnet; IndexError if there is none."""
        return rng.choices(self._found, cum_weights=self._weights)[0].sample(rng)

    def __iter__(self) -> Iterator[Subnet]:
        for group, heads, ratios in self._found:
            for pair in itertools.product(_orders(heads.values), _orders(ratios.values)):
                yield Subnet(group.embed_dim, *pair)


def _multisets(choices: tuple[Any, ...], depth: int) -> int:
    return math.comb(depth + len(choices) - 1, depth)


def _group(space: SearchSpace, cost: CostFunction, embed_dim: int, depth: int) -> _Group:
    few, narrow = (space.num_heads[0],) * depth, (space.mlp_ratio[0],) * depth
    base = cost(Subnet(embed_dim, few, narrow))

    def parts(choices: tuple[Any, ...], axis: str) -> list[_Part]:
        made = []
        for values in itertools.combinations_with_replacement(choices, depth):
            pair = (values, narrow) if axis == "num_heads" else (few, values)
            size = cost(Subnet(embed_dim, *pair))
            ways = math.factorial(depth)
            for repeats in Counter(values).values():
                ways //= math.factorial(repeats)
            made.append(_Part(values, Cost(size.params - base.params, size.macs - base.macs), ways))
        return sorted(made, key=lambda part: part.cost.params)

    return _Group(
        embed_dim,
        depth,
        base,
        parts(space.num_heads, "num_heads"),
        parts(space.mlp_ratio, "mlp_ratio"),
    )


def _add(a: Cost, b: Cost, c: Cost) -> Cost:
    return Cost(a.params + b.params + c.params, a.macs + b.macs + c.macs)


def _orders(values: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
    """The different orders of a multiset."""
    if not values:
        yield ()
    for value in sorted(set(values)):
        rest = list(values)
        rest.remove(value)
        for order in _orders(tuple(rest)):
            yield (value, *order)
