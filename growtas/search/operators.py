"""Mutation and crossover of subnets, as AutoFormer does them (Chen et al., 2021, section 3.4)."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

from growtas.space import SearchSpace, Subnet


def mutate(
    subnet: Subnet,
    space: SearchSpace,
    rng: random.Random,
    *,
    mutation_prob: float = 0.2,
    depth_prob: float = 0.4,
    embed_prob: float = 0.4,
) -> Subnet:
    """A mutant of `subnet` inside `space`.

    With `depth_prob` the depth is redrawn: new blocks get random choices, the last ones go. Then
    the MLP ratio and the heads of every block are redrawn with `mutation_prob` each, and the
    embedding dim with `embed_prob`. A redraw may give the old value again.
    """
    embed_dim = subnet.embed_dim
    ratios: list[Any] = list(subnet.mlp_ratio)
    heads: list[Any] = list(subnet.num_heads)
    if rng.random() < depth_prob:
        depth = rng.choice(space.depth)
        new = range(depth - len(heads))
        ratios = ratios[:depth] + [rng.choice(space.mlp_ratio) for _ in new]
        heads = heads[:depth] + [rng.choice(space.num_heads) for _ in new]
    for values, choices in ((ratios, space.mlp_ratio), (heads, space.num_heads)):
        for i in range(len(values)):
            if rng.random() < mutation_prob:
                values[i] = rng.choice(choices)
    if rng.random() < embed_prob:
        embed_dim = rng.choice(space.embed_dim)
    return Subnet(embed_dim, tuple(heads), tuple(ratios))


def crossover(first: Subnet, second: Subnet, rng: random.Random) -> Subnet:
    """A child with each choice from either parent, with equal odds.

    The depth is one parent's. Where only the deeper parent has a block, the child takes that one;
    with parents of equal depth this is AutoFormer's operator, which is undefined for unequal
    depths.
    """
    depth = rng.choice((first.depth, second.depth))

    def mix(a: tuple, b: tuple) -> tuple:
        return tuple(
            rng.choice((a[i], b[i]))
            if i < min(len(a), len(b))
            else (a if len(a) > len(b) else b)[i]
            for i in range(depth)
        )

    ratios = mix(first.mlp_ratio, second.mlp_ratio)
    heads = mix(first.num_heads, second.num_heads)
    return Subnet(rng.choice((first.embed_dim, second.embed_dim)), heads, ratios)


def step(subnet: Subnet, space: SearchSpace, rng: random.Random) -> Subnet:
    """A neighbour of `subnet` in `space`: one choice, drawn at random, moved to the next one up or
    down.

    A depth that grows repeats random choices, one that shrinks drops the last blocks. At the end of
    an axis the subnet is returned unchanged.
    """
    up = rng.choice((1, -1))
    axis = rng.choice(("embed_dim", "depth", "num_heads", "mlp_ratio"))

    def moved(choices: tuple, value: Any) -> Any:
        index = choices.index(value) + up
        return choices[index] if 0 <= index < len(choices) else value

    if axis == "embed_dim":
        return replace(subnet, embed_dim=moved(space.embed_dim, subnet.embed_dim))
    if axis == "depth":
        depth = moved(space.depth, subnet.depth)
        new = range(depth - subnet.depth)
        return Subnet(
            subnet.embed_dim,
            subnet.num_heads[:depth] + tuple(rng.choice(space.num_heads) for _ in new),
            subnet.mlp_ratio[:depth] + tuple(rng.choice(space.mlp_ratio) for _ in new),
        )
    values: dict[str, list[Any]] = {
        "num_heads": list(subnet.num_heads),
        "mlp_ratio": list(subnet.mlp_ratio),
    }
    block = rng.randrange(subnet.depth)
    values[axis][block] = moved(getattr(space, axis), values[axis][block])
    return Subnet(subnet.embed_dim, tuple(values["num_heads"]), tuple(values["mlp_ratio"]))
