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
from collections.abc import Iterator
from typing import Any, NamedTuple

from growtas.search.candidate import Cost, CostFunction
from growtas.search.config import Limit
from growtas.space import SearchSpace, Subnet

MAX_PAIRS = 500_000  # a table of this size takes about a second
_CHECKS = 16


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


class SizeTable:
    """Sizes of the subnets of a space, see the module. Made with `build`."""

    def __init__(self, groups: list[_Group]) -> None:
        self._groups = groups

    @classmethod
    def build(cls, space: SearchSpace, cost: CostFunction) -> SizeTable | None:
        """The table, or None if it would exceed `MAX_PAIRS` or `cost` is no sum over blocks."""
        pairs = sum(
            _multisets(space.num_heads, d) * _multisets(space.mlp_ratio, d) for d in space.depth
        )
        if pairs * len(space.embed_dim) > MAX_PAIRS:
            return None
        table = cls([_group(space, cost, e, d) for e in space.embed_dim for d in space.depth])
        rng = random.Random(0)
        samples = [space.sample(rng) for _ in range(_CHECKS)]
        return table if all(table._size(subnet) == cost(subnet) for subnet in samples) else None

    def _size(self, subnet: Subnet) -> Cost:
        heads, ratios = tuple(sorted(subnet.num_heads)), tuple(sorted(subnet.mlp_ratio))
        for group in self._groups:
            if (group.embed_dim, group.depth) == (subnet.embed_dim, subnet.depth):
                part = next(p for p in group.heads if p.values == heads)
                other = next(p for p in group.ratios if p.values == ratios)
                return _add(group.base, part.cost, other.cost)
        raise KeyError(subnet)

    def sizes(self) -> Iterator[Cost]:
        """Every size there is; some repeatedly."""
        for group in self._groups:
            for heads, ratios in itertools.product(group.heads, group.ratios):
                yield _add(group.base, heads.cost, ratios.cost)

    def inside(self, limit: Limit) -> Selection:
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
                    size = _add(group.base, heads.cost, ratios.cost)
                    if limit.admits(size.params, size.macs):
                        found.append((group, heads, ratios))
        return Selection(found)


class Selection:
    """The subnets inside a window, as pairs of multisets."""

    def __init__(self, found: list[tuple[_Group, _Part, _Part]]) -> None:
        self._found = found
        self.count = sum(heads.ways * ratios.ways for _, heads, ratios in found)  # subnets
        # AutoFormer draws the depth first: a subnet is as likely as its depth leaves it.
        orders = {
            id(g): sum(p.ways for p in g.heads) * sum(p.ways for p in g.ratios) for g, _, _ in found
        }
        self._weights = list(
            itertools.accumulate(h.ways * r.ways / orders[id(g)] for g, h, r in found)
        )

    def sample(self, rng: random.Random) -> Subnet:
        """One subnet, distributed as ``space.sample`` is inside the window."""
        group, heads, ratios = rng.choices(self._found, cum_weights=self._weights)[0]
        return Subnet(
            group.embed_dim,
            tuple(rng.sample(heads.values, group.depth)),
            tuple(rng.sample(ratios.values, group.depth)),
        )

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
