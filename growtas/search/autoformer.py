"""AutoFormer's own evolution, draw for draw: `SearchConfig(compat="autoformer")`.

For the same seed and the same scores the candidates are those of AutoFormer's ``evolution.py``
(microsoft/Cream), in the same order: one generator seeded with the number itself, proposals drawn
ten at a time, at most ten per wanted child, everything outside the window rejected, parents by a
stable sort of the accuracy. What it proposes after its last selection, and then throws away, is not
evaluated. `growtas.search.breeding` is the evolution without its weaknesses.

Two of its cases have no defined outcome and end differently here:

- Parents of unequal depth, where no draw found a pair of equal depth, have children whose positions
  mean different things: AutoFormer stops with an error or leaves the space. Such a child is
  rejected unless it happens to be a subnet of the space. A space of three depths has such a child
  once in 10^9 pairs.
- It looks for random subnets forever where a window has none left. `FAILURES` draws in a row
  without a new one end the search.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice

from growtas.search.breeding import PROPOSALS, mutant
from growtas.search.candidate import Candidate
from growtas.search.config import SearchConfig
from growtas.search.window import Window
from growtas.space import SearchSpace, Subnet

BATCH = 10  # proposals are drawn together; those left over at the end of a step are lost
PAIRS = 51  # draws of two parents, to find two of equal depth
FAILURES = 100_000


def ranked(candidates: Iterable[Candidate]) -> list[Candidate]:
    """Best accuracy first; of equals the one that was evaluated first.

    AutoFormer merges each generation into a list of its best with a stable sort, which is the
    beginning of this.
    """
    return sorted(candidates, key=lambda candidate: -candidate.score.accuracy)


def next_generation(
    config: SearchConfig,
    window: Window,
    parents: Sequence[Subnet],
    evaluated: Callable[[Subnet], bool],
    rng: random.Random,
) -> list[Subnet]:
    """The next `config.population` subnets: mutants, children of two parents, random ones.

    Arguments and result are those of `growtas.search.breeding.next_generation`; `parents` must be
    in `ranked` order.
    """
    space = window.space
    taken: dict[Subnet, None] = {}

    def take(proposals: Iterator[Subnet | None], wanted: int, tries: int) -> bool:
        """Takes `wanted` legal proposals of the next `tries`; whether there were as many."""
        goal = len(taken) + wanted
        for subnet in islice(proposals, tries):
            if subnet is None or subnet in taken or evaluated(subnet) or window.excess(subnet):
                continue
            taken[subnet] = None
            if len(taken) == goal:
                return True
        return False

    if parents:
        wanted = config.num_mutations
        take(_in_batches(lambda: mutant(config, space, parents, rng)), wanted, PROPOSALS * wanted)
        wanted = config.num_crossovers
        take(_in_batches(lambda: _child(parents, space, rng)), wanted, PROPOSALS * wanted)
    at_random = _in_batches(lambda: space.sample(rng))
    while len(taken) < config.population and take(at_random, 1, FAILURES):
        pass
    return list(taken)


def _in_batches(draw: Callable[[], Subnet | None]) -> Iterator[Subnet | None]:
    while True:
        yield from [draw() for _ in range(BATCH)]


def _child(parents: Sequence[Subnet], space: SearchSpace, rng: random.Random) -> Subnet | None:
    """Position by position from either of two parents, which may be the same one."""
    for _ in range(PAIRS):
        first, second = rng.choice(parents), rng.choice(parents)
        if first.depth == second.depth:
            break
    pairs = zip(_positions(first), _positions(second), strict=False)
    return _subnet([rng.choice(pair) for pair in pairs], space)


def _positions(subnet: Subnet) -> tuple[float, ...]:
    """AutoFormer's form of a candidate: depth, ratio of every block, heads of every block, dim."""
    return (subnet.depth, *subnet.mlp_ratio, *subnet.num_heads, subnet.embed_dim)


def _subnet(values: list[float], space: SearchSpace) -> Subnet | None:
    """What `_positions` came from, None if that is not in `space`."""
    depth, embed_dim = int(values[0]), values[-1]
    ratios, heads = values[1 : depth + 1], values[depth + 1 : -1]
    if (
        len(heads) != depth
        or embed_dim not in space.embed_dim
        or not set(heads) <= set(space.num_heads)
        or not set(ratios) <= set(space.mlp_ratio)
    ):
        return None
    return Subnet(int(embed_dim), tuple(int(value) for value in heads), tuple(ratios))
