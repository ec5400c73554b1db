"""Mutation and crossover of subnets, as AutoFormer does them (Chen et al., 2021, section 3.4).

They go by the axes that the subnets' class declares. AutoFormer draws its axes of the blocks from
the last to the first.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeVar

from growtas.space.family import AnySpace, AnySubnet

S = TypeVar("S", bound=AnySubnet)


def mutate(
    subnet: S,
    space: AnySpace,
    rng: random.Random,
    *,
    mutation_prob: float = 0.2,
    depth_prob: float = 0.4,
    embed_prob: float = 0.4,
) -> S:
    """A mutant of `subnet` inside `space`.

    With `depth_prob` the depth is redrawn: new blocks get random choices, the last ones go. Then
    the MLP ratio and the heads of every block are redrawn with `mutation_prob` each, and the
    embedding dim with `embed_prob`. A redraw may give the old value again.
    """
    axes = subnet.axes
    blocks = {axis: list(getattr(subnet, axis)) for axis in reversed(axes.block)}
    changes: dict[str, Any] = {}
    if rng.random() < depth_prob:
        depth = rng.choice(space.depth)
        blocks = {
            axis: _of_depth(values, depth, getattr(space, axis), rng)
            for axis, values in blocks.items()
        }
    for axis, values in blocks.items():
        choices = getattr(space, axis)
        for i in range(len(values)):
            if rng.random() < mutation_prob:
                values[i] = rng.choice(choices)
        changes[axis] = tuple(values)
    for axis in axes.subnet:
        if rng.random() < embed_prob:
            changes[axis] = rng.choice(getattr(space, axis))
    return replace(subnet, **changes)


def crossover(first: S, second: S, rng: random.Random) -> S:
    """A child with each choice from either parent, with equal odds.

    The depth is one parent's. Where only the deeper parent has a block, the child takes that one;
    with parents of equal depth this is AutoFormer's operator, which is undefined for unequal
    depths.
    """
    depth = rng.choice((first.depth, second.depth))
    common = min(first.depth, second.depth)
    deeper = first if first.depth > second.depth else second
    changes: dict[str, Any] = {}
    for axis in reversed(first.axes.block):
        pairs = zip(getattr(first, axis), getattr(second, axis), strict=False)
        mixed = [rng.choice(pair) for pair in list(pairs)[:depth]]
        changes[axis] = (*mixed, *getattr(deeper, axis)[common:depth])
    for axis in first.axes.subnet:
        changes[axis] = rng.choice((getattr(first, axis), getattr(second, axis)))
    return replace(first, **changes)


def step(subnet: S, space: AnySpace, rng: random.Random) -> S:
    """A neighbour of `subnet` in `space`: one choice, drawn at random, moved to the next one up or
    down.

    A depth that grows repeats random choices, one that shrinks drops the last blocks. At the end of
    an axis the subnet is returned unchanged.
    """
    axes = subnet.axes
    up = rng.choice((1, -1))
    axis = rng.choice((*axes.subnet, "depth", *axes.block))
    choices = getattr(space, axis)

    def moved(value: Any) -> Any:
        index = choices.index(value) + up
        return choices[index] if 0 <= index < len(choices) else value

    changes: dict[str, Any] = {}
    if axis == "depth":
        depth = moved(subnet.depth)
        for name in axes.block:
            values = _of_depth(getattr(subnet, name), depth, getattr(space, name), rng)
            changes[name] = tuple(values)
    elif axis in axes.subnet:
        changes[axis] = moved(getattr(subnet, axis))
    else:
        values = list(getattr(subnet, axis))
        block = rng.randrange(subnet.depth)
        values[block] = moved(values[block])
        changes[axis] = tuple(values)
    return replace(subnet, **changes)


def _of_depth(
    values: Sequence[Any], depth: int, choices: Sequence[Any], rng: random.Random
) -> list[Any]:
    """The first values, and drawn ones for new blocks."""
    return [*values[:depth], *(rng.choice(choices) for _ in range(depth - len(values)))]
