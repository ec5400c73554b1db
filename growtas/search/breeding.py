"""How a generation is made: the paper's evolution, and random search as its baseline."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence

from growtas.search.config import SearchConfig
from growtas.search.operators import crossover, mutate
from growtas.search.window import Window
from growtas.space import SearchSpace, Subnet

PROPOSALS = 10  # per wanted child; AutoFormer's bound
FAILURES = 5  # moves into the window that may fail, before random subnets take the places left


def next_generation(
    config: SearchConfig,
    window: Window,
    parents: Sequence[Subnet],
    evaluated: Callable[[Subnet], bool],
    rng: random.Random,
) -> list[Subnet]:
    """`config.population` different subnets inside `window`, none of them evaluated yet.

    Evolution (GrowTAS section 3.3, AutoFormer section 3.4): mutants of the parents, then children
    of two of them, then random subnets for what is missing. Without parents, and in random search,
    all are random.

    Args:
        config: method, population and probabilities.
        window: where the subnets must be.
        parents: the best evaluated subnets inside the window.
        evaluated: whether a subnet was scored before.
        rng: the only source of randomness.

    Returns:
        Fewer subnets than the population only where the window has no new ones left
        (`Window.draw`).
    """
    taken: dict[Subnet, None] = {}

    def is_new(subnet: Subnet) -> bool:
        return subnet not in taken and not evaluated(subnet)

    if config.method == "evolution" and parents:
        tries = range(PROPOSALS * config.num_mutations)
        mutants = (mutant(config, window.space, parents, rng) for _ in tries)
        _accept(mutants, config.num_mutations, taken, window, is_new, rng)
        if len(parents) > 1:
            pairs = (rng.sample(parents, 2) for _ in range(PROPOSALS * config.num_crossovers))
            children = (crossover(first, second, rng) for first, second in pairs)
            _accept(children, config.num_crossovers, taken, window, is_new, rng)
    return [*taken, *window.draw_many(rng, config.population - len(taken), is_new)]


def mutant(
    config: SearchConfig, space: SearchSpace, parents: Sequence[Subnet], rng: random.Random
) -> Subnet:
    """A mutant of a random parent."""
    return mutate(
        rng.choice(parents),
        space,
        rng,
        mutation_prob=config.mutation_prob,
        depth_prob=config.depth_prob,
        embed_prob=config.embed_prob,
    )


def _accept(
    proposals: Iterable[Subnet],
    wanted: int,
    taken: dict[Subnet, None],
    window: Window,
    is_new: Callable[[Subnet], bool],
    rng: random.Random,
) -> None:
    """Takes `wanted` new proposals inside the window; if too few are, moves others into it.

    AutoFormer only rejects, which in a narrow window leaves a generation of random subnets.
    """
    goal = len(taken) + wanted
    outside: list[Subnet] = []
    for subnet in proposals:
        if len(taken) == goal:
            return
        if window.excess(subnet) > 0:
            outside.append(subnet)
        elif is_new(subnet):
            taken[subnet] = None
    failures = 0
    for subnet in outside:
        if len(taken) == goal or failures == FAILURES:
            return
        moved = window.repair(subnet, rng, is_new)
        if moved is None:
            failures += 1
        else:
            taken[moved] = None
