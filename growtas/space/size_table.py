"""All sizes of a search space, grouped: windows are sampled uniformly, or known to be empty.

A model's size does not depend on the order of its blocks, and what their axes choose adds up. So
for each choice of the other axes and each depth it is enough to know what each multiset of a block
axis adds, in a Vision Transformer heads and MLP ratios: AutoFormer-S has 7.7e13 subnets but 1.4e5
pairs of multisets.
"""

from __future__ import annotations

import itertools
import math
import random
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

from growtas.space.cost import Cost, CostFunction
from growtas.space.family import AnySpace, AnySubnet
from growtas.space.search_space import SearchSpace, SpaceDifference

MAX_PAIRS = 500_000  # a table of this size takes about a second
_CHECKS = 16


class Bounds(Protocol):
    """A window on the size; `growtas.search.Limit` is one."""

    def window(self, axis: str) -> tuple[float, float]:
        """Least and most allowed on "params" or "macs"."""

    def admits(self, params: int, macs: int) -> bool:
        """Whether a model of this size is inside."""


class _Part(NamedTuple):
    """What one axis of all blocks chooses, in any order."""

    values: tuple[Any, ...]
    cost: Cost  # beyond that of the smallest choice in every block
    ways: int  # number of different orders


class _Group(NamedTuple):
    """The subnets of one depth and one choice of each axis that is the same in all blocks."""

    smallest: AnySubnet  # with the smallest choices in every block
    base: Cost  # of it
    parts: tuple[list[_Part], ...]  # for each block axis, by growing params

    @property
    def members(self) -> int:
        """How many there are."""
        return math.prod(sum(part.ways for part in parts) for parts in self.parts)

    def subnet(self, values: Iterable[tuple[Any, ...]]) -> Any:
        """The one with these values of the block axes."""
        changes: dict[str, Any] = dict(zip(self.smallest.axes.block, values, strict=True))
        return replace(self.smallest, **changes)


class Family(NamedTuple):
    """The subnets of one size that differ only in the order of their blocks."""

    group: _Group
    parts: tuple[_Part, ...]

    @property
    def size(self) -> Cost:
        """Size of each of them."""
        params, macs = self.group.base
        for part in self.parts:
            params += part.cost.params
            macs += part.cost.macs
        return Cost(params, macs)

    @property
    def members(self) -> int:
        """How many there are."""
        return math.prod([part.ways for part in self.parts])

    def sample(self, rng: random.Random) -> Any:
        """One of them, each equally likely."""
        depth = self.group.smallest.depth
        return self.group.subnet(tuple(rng.sample(part.values, depth)) for part in self.parts)


class SizeTable:
    """Sizes of the subnets of a space, see the module. Made with `build`."""

    def __init__(self, groups: dict[tuple[Any, ...], _Group], removed: SearchSpace | None) -> None:
        self._groups = groups  # by the values of the axes that are the same in all blocks, depth
        self._removed = removed

    @classmethod
    def build(cls, space: AnySpace | SpaceDifference, cost: CostFunction) -> SizeTable | None:
        """The table, or None if it would exceed `MAX_PAIRS` or `cost` is no sum over blocks."""
        base, removed = (
            (space.base, space.removed) if isinstance(space, SpaceDifference) else (space, None)
        )
        smallest = base.smallest()
        axes = smallest.axes
        once = [getattr(base, axis) for axis in axes.subnet]
        pairs = sum(
            math.prod(math.comb(depth + len(getattr(base, axis)) - 1, depth) for axis in axes.block)
            for depth in base.depth
        )
        if pairs * math.prod(map(len, once)) > MAX_PAIRS:
            return None
        groups = {}
        for *values, depth in itertools.product(*once, base.depth):
            blocks = {axis: (getattr(base, axis)[0],) * depth for axis in axes.block}
            changes = {**dict(zip(axes.subnet, values, strict=True)), **blocks}
            groups[*values, depth] = _group(base, cost, replace(smallest, **changes))
        table = cls(groups, removed)
        rng = random.Random(0)
        samples = [base.sample(rng) for _ in range(_CHECKS)]
        return table if all(table._size(subnet) == cost(subnet) for subnet in samples) else None

    def _size(self, subnet: AnySubnet) -> Cost:
        axes = subnet.axes
        group = self._groups[*[getattr(subnet, axis) for axis in axes.subnet], subnet.depth]
        chosen = [tuple(sorted(getattr(subnet, axis))) for axis in axes.block]
        parts = [
            next(part for part in parts if part.values == values)
            for parts, values in zip(group.parts, chosen, strict=True)
        ]
        return Family(group, tuple(parts)).size

    def families(self) -> Iterator[Family]:
        """All subnets of the space, in families of one size."""
        for group in self._groups.values():
            families = (Family(group, parts) for parts in itertools.product(*group.parts))
            yield from families if self._removed is None else filter(self._holds, families)

    def sizes(self) -> Iterator[Cost]:
        """Every size there is; some repeatedly."""
        return (family.size for family in self.families())

    def inside(self, limit: Bounds) -> Selection:
        """The part of the table that `limit` admits."""
        low, high = limit.window("params")
        found = []
        for group in self._groups.values():
            *others, last = group.parts
            growth = [part.cost.params for part in last]
            for first in itertools.product(*others):
                params, macs = Family(group, first).size
                begin, end = bisect_left(growth, low - params), bisect_right(growth, high - params)
                found += [
                    Family(group, (*first, part))
                    for part in last[begin:end]
                    if limit.admits(params + part.cost.params, macs + part.cost.macs)
                ]
        return Selection(found if self._removed is None else filter(self._holds, found))

    def _holds(self, family: Family) -> bool:
        """Whether the family is in the space: of a difference, none or all of its subnets are."""
        gone = self._removed
        if gone is None:
            return True
        one = family.group.smallest
        return not (
            one.depth in gone.depth
            and all(getattr(one, axis) in getattr(gone, axis) for axis in one.axes.subnet)
            and all(
                set(part.values) <= set(getattr(gone, axis))
                for axis, part in zip(one.axes.block, family.parts, strict=True)
            )
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

    def sample(self, rng: random.Random) -> Any:
        """One subnet; IndexError if there is none."""
        return rng.choices(self._found, cum_weights=self._weights)[0].sample(rng)

    def __iter__(self) -> Iterator[Any]:
        for group, parts in self._found:
            for values in itertools.product(*[_orders(part.values) for part in parts]):
                yield group.subnet(values)


def _group(space: AnySpace, cost: CostFunction, smallest: Any) -> _Group:
    base, depth = cost(smallest), smallest.depth

    def parts(axis: str) -> list[_Part]:
        made = []
        for values in itertools.combinations_with_replacement(getattr(space, axis), depth):
            size = cost(replace(smallest, **{axis: values}))
            ways = math.factorial(depth)
            for repeats in Counter(values).values():
                ways //= math.factorial(repeats)
            made.append(_Part(values, Cost(size.params - base.params, size.macs - base.macs), ways))
        return sorted(made, key=lambda part: part.cost.params)

    return _Group(smallest, base, tuple(map(parts, smallest.axes.block)))


def _orders(values: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
    """The different orders of a multiset."""
    if not values:
        yield ()
    for value in sorted(set(values)):
        rest = list(values)
        rest.remove(value)
        for order in _orders(tuple(rest)):
            yield (value, *order)
