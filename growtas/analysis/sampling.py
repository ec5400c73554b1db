"""Which subnets an analysis looks at: random ones in a window, or relatives of a given one."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any, Literal

from growtas.base.checks import positive_int
from growtas.search import CostFunction, Limit
from growtas.search.config import parse_count
from growtas.search.window import Window
from growtas.space import SearchSpace, Subnet
from growtas.space.size_table import SizeTable

Relation = Literal["larger", "smaller"]


def random_subnets(
    space: SearchSpace, limit: Limit, cost: CostFunction, *, count: int, seed: int = 0
) -> list[Subnet]:
    """`count` different random subnets inside a window; all of them where it has fewer.

    Drawn as training draws them (``space.sample``), given that they are inside: exactly so by the
    table of all sizes, without a miss however narrow the window.

    Raises:
        ValueError: `count` below 1, no subnet inside (the message states the reachable sizes), or a
            bounded window of a space that is too large for the table.
    """
    positive_int("count", count)
    table = SizeTable.build(space, cost) if limit.is_bounded else None
    if table is None and limit.is_bounded:
        raise ValueError(
            f"space {space.name!r} has too many sizes for uniform draws inside {limit.name!r}; "
            "leave the window out"
        )
    return Window(space, limit, cost, table).draw_many(random.Random(seed), count)


def derived_subnets(
    space: SearchSpace, reference: Subnet, relation: Relation, *, count: int, seed: int = 0
) -> list[Subnet]:
    """`count` different random subnets that contain `reference`, or that it contains.

    One subnet contains another if no choice of it is smaller: embedding dim, depth, and heads and
    MLP ratio of every block that the other has. So its weights include those of the other (Fig. 2
    of the paper). Each choice is drawn uniformly from what the relation leaves of it.

    Returns:
        The subnets, `reference` not among them; all there are where that is fewer than `count`.

    Raises:
        ValueError: `count` below 1, `reference` is not in `space`, or it has no such subnet.
    """
    positive_int("count", count)
    space.validate(reference)
    choices = _choices(space, reference, relation)
    total = sum(math.prod(map(len, axes)) for axes in choices.values()) - 1  # without `reference`
    if total == 0:
        raise ValueError(f"space {space.name!r} has no subnet {relation} than {reference}")
    rng = random.Random(seed)
    drawn: dict[Subnet, None] = {}
    while len(drawn) < min(count, total):
        depth = rng.choice(list(choices))
        embed_dim, *blocks = map(rng.choice, choices[depth])
        subnet = Subnet(embed_dim, tuple(blocks[:depth]), tuple(blocks[depth:]))
        if subnet != reference:
            drawn[subnet] = None
    return list(drawn)


def parse_window(text: str, axis: Literal["params", "macs"] = "params") -> Limit:
    """``"5.5M-6.5M"``, or ``"6M"`` for at most that, as a limit on `axis`.

    Raises:
        ValueError: neither; the message says what can be written.
    """
    low, dash, high = text.partition("-")
    try:
        bounds: dict[str, Any] = {f"max_{axis}": parse_count(high if dash else low)}
        if dash:
            bounds[f"min_{axis}"] = parse_count(low)
        return Limit(**bounds)
    except ValueError as error:
        raise ValueError(f"a window is written 5.5M-6.5M or 6M, got {text!r}: {error}") from None


def _choices(
    space: SearchSpace, reference: Subnet, relation: Relation
) -> dict[int, tuple[Sequence[Any], ...]]:
    """By depth: what the embedding dim, the heads of each block and then the MLP ratio of each may
    be. A block that the reference lacks is free."""

    def allowed(choices: Sequence[Any], bound: float) -> list[Any]:
        larger = relation == "larger"
        return [value for value in choices if (value >= bound if larger else value <= bound)]

    def blocks(axis: str, depth: int) -> list[Sequence[Any]]:
        choices, bounds = getattr(space, axis), getattr(reference, axis)
        bound = [allowed(choices, value) for value in bounds[:depth]]
        return bound + [choices] * (depth - len(bound))

    return {
        depth: (
            allowed(space.embed_dim, reference.embed_dim),
            *blocks("num_heads", depth),
            *blocks("mlp_ratio", depth),
        )
        for depth in allowed(space.depth, reference.depth)
    }
