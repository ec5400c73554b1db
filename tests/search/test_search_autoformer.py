"""`compat: autoformer` against AutoFormer's search written down in its own form.

`Original` keeps AutoFormer's tuples, its endless loops and Python's global generator, and shares no
code with the package but the spaces and the exact parameter counts.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from search.synthetic import cost_of

from growtas import SearchSpace, Subnet
from growtas.search import Limit, Score, SearchConfig, SearchResult, autoformer, search

SHORT = SearchConfig(generations=4, compat="autoformer")


class Original:
    """AutoFormer's evolution: `found` has every candidate in the order of its evaluation."""

    def __init__(self, space: SearchSpace, config: SearchConfig) -> None:
        self.space = space
        self.config = config
        self.cost = cost_of(space)
        self.accuracy: dict[tuple, float] = {}
        self.found: list[Subnet] = []
        self.best: list[tuple] = []
        self.mixed = {"legal": 0, "illegal": 0}  # children of parents of unequal depth

    def run(self) -> None:
        state = random.getstate()
        random.seed(self.config.seed)
        config = self.config
        population = self.at_random([])
        for _ in range(config.generations):
            merged = self.best + population
            merged.sort(key=self.accuracy.__getitem__, reverse=True)
            self.best = merged[: config.parents]
            population = self.pick(self.mutant, config.num_mutations)
            population += self.pick(self.child, config.num_crossovers)
            population = self.at_random(population)  # the last time for nothing
        random.setstate(state)

    def tens(self, draw: Callable[[], tuple]) -> Iterator[tuple]:
        while True:
            yield from [draw() for _ in range(10)]

    def legal(self, candidate: tuple) -> bool:
        if candidate in self.accuracy:
            return False
        depth = candidate[0]
        parts = candidate[1 : 1 + depth], candidate[1 + depth : 1 + 2 * depth], candidate[-1]
        ratios, heads, embed = parts
        try:
            subnet = Subnet(embed, tuple(int(h) if h == int(h) else h for h in heads), ratios)
        except (TypeError, ValueError):
            return False
        if subnet not in self.space:
            return False
        low, high = self.config.windows[0].window("params")
        if not low / 1e6 <= self.cost(subnet).params / 1e6 <= high / 1e6:
            return False
        self.accuracy[candidate] = made_up(subnet).accuracy
        self.found.append(subnet)
        return True

    def at_random(self, population: list[tuple]) -> list[tuple]:
        proposals = self.tens(self.random_one)
        while len(population) < self.config.population:
            candidate = next(proposals)
            if self.legal(candidate):
                population.append(candidate)
        return population

    def pick(self, draw: Callable[[], tuple], wanted: int) -> list[tuple]:
        proposals, picked, left = self.tens(draw), [], 10 * wanted
        while len(picked) < wanted and left > 0:
            left -= 1
            candidate = next(proposals)
            if self.legal(candidate):
                picked.append(candidate)
        return picked

    def random_one(self) -> tuple:
        depth = random.choice(self.space.depth)
        blocks = [self.space.mlp_ratio] * depth + [self.space.num_heads] * depth
        values = [random.choice(choices) for choices in blocks]
        return (depth, *values, random.choice(self.space.embed_dim))

    def mutant(self) -> tuple:
        space, config = self.space, self.config
        parent = random.choice(self.best)
        depth, embed = parent[0], parent[-1]
        ratios, heads = list(parent[1 : 1 + depth]), list(parent[1 + depth : -1])
        if random.random() < config.depth_prob:
            before, depth = depth, random.choice(space.depth)
            ratios = ratios[:depth]
            heads = heads[:depth]
            ratios += [random.choice(space.mlp_ratio) for _ in range(before, depth)]
            heads += [random.choice(space.num_heads) for _ in range(before, depth)]
        for i in range(depth):
            if random.random() < config.mutation_prob:
                ratios[i] = random.choice(space.mlp_ratio)
        for i in range(depth):
            if random.random() < config.mutation_prob:
                heads[i] = random.choice(space.num_heads)
        if random.random() < config.embed_prob:
            embed = random.choice(space.embed_dim)
        return (depth, *ratios, *heads, embed)

    def child(self) -> tuple:
        one, two, left = random.choice(self.best), random.choice(self.best), 50
        while len(one) != len(two) and left > 0:
            left -= 1
            one, two = random.choice(self.best), random.choice(self.best)
        made = tuple(random.choice([a, b]) for a, b in zip(one, two, strict=False))
        if len(one) != len(two):
            # A longer depth leaves too few heads: there AutoFormer stops with an IndexError.
            self.mixed["legal" if len(made) == 2 * made[0] + 2 else "illegal"] += 1
        return made


def made_up(subnet: Subnet) -> Score:
    """An accuracy with many ties, and a loss that would break them another way."""
    rng = random.Random(repr(subnet))
    return Score(rng.randrange(12) / 12, rng.random(), 12)


class MadeUp:
    def __init__(self, fail_after: int | None = None) -> None:
        self.asked: list[Subnet] = []
        self.fail_after = fail_after

    def score(self, subnet: Subnet) -> Score:
        if len(self.asked) == self.fail_after:
            raise KeyboardInterrupt
        self.asked.append(subnet)
        return made_up(subnet)


def searched(space: SearchSpace, config: SearchConfig, **options) -> SearchResult:
    return search(space, MadeUp(), config, cost_of(space), progress=False, **options)


def subnets(result: SearchResult) -> list[Subnet]:
    return [candidate.subnet for candidate in result.candidates]


def decoded(candidate: tuple) -> Subnet:
    depth = candidate[0]
    return Subnet(candidate[-1], candidate[1 + depth : -1], candidate[1 : 1 + depth])


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("window", [("5M", "6M"), ("7M", "8M"), (None, None)])
def test_the_candidates_are_the_originals(tiny: SearchSpace, seed: int, window: tuple) -> None:
    limit = Limit(min_params=window[0], max_params=window[1])
    config = replace(SHORT, seed=seed, limits=(limit,))
    original = Original(tiny, config)
    original.run()
    result = searched(tiny, config)
    assert len(original.found) == 250  # the last fifty are proposed after the last selection
    assert subnets(result) == original.found[:200]
    assert result.limits[0].subnet == decoded(original.best[0])
    # They are what one more generation evaluates.
    assert subnets(searched(tiny, replace(config, generations=5))) == original.found


@pytest.mark.parametrize(
    "change",
    [
        {"population": 12, "parents": 5, "mutation_size": 7, "crossover_size": 3},
        {"population": 30, "parents": 3, "mutation_size": 0, "crossover_size": 30},
        {"population": 11, "parents": 60, "mutation_size": 11, "crossover_size": 0},
        {"mutation_prob": 0.7, "depth_prob": 0.1, "embed_prob": 0.9, "generations": 8},
        {"population": 8, "parents": 1, "mutation_prob": 0.01, "depth_prob": 0, "embed_prob": 0},
    ],
)
def test_with_other_settings_too(tiny: SearchSpace, change: dict) -> None:
    config = replace(SHORT, limits=(Limit(min_params="7M", max_params="8M"),), **change)
    original = Original(tiny, config)
    original.run()
    result = searched(tiny, config)
    assert subnets(result) == original.found[: config.population * config.generations]
    assert result.limits[0].subnet == decoded(original.best[0])


def test_children_of_unequal_depth_take_the_same_draws() -> None:
    # Heads and ratios share values, so that a child can be a subnet by accident.
    space = SearchSpace(
        embed_dim=(32, 48),
        depth=tuple(range(1, 81)),
        num_heads=(1, 2),
        mlp_ratio=(1.0, 2.0, 3.0),
        head_dim=16,
    )
    sizes = {"population": 80, "parents": 80, "mutation_size": 0, "crossover_size": 70}
    config = replace(SHORT, generations=3, **sizes)
    original = Original(space, config)
    original.run()
    assert min(original.mixed.values()) > 10
    assert subnets(searched(space, config)) == original.found[:240]


def test_an_interrupted_search_goes_on_with_the_same_draws(
    tiny: SearchSpace, tmp_path: Path
) -> None:
    config = replace(SHORT, limits=(Limit(max_params="8M"),))
    first, second = MadeUp(fail_after=117), MadeUp()
    options = {"run_dir": tmp_path, "resume": True, "progress": False}
    with pytest.raises(KeyboardInterrupt):
        search(tiny, first, config, cost_of(tiny), **options)
    result = search(tiny, second, config, cost_of(tiny), **options)
    assert first.asked + second.asked == subnets(searched(tiny, config)) == subnets(result)
    assert SearchResult.load(tmp_path / "search.json") == result


def test_the_global_generator_is_left_alone(tiny: SearchSpace) -> None:
    state = random.getstate()
    searched(tiny, replace(SHORT, generations=2))
    assert random.getstate() == state


def test_a_window_without_new_subnets_ends_the_search(
    small_space: SearchSpace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(autoformer, "FAILURES", 3000)
    result = searched(small_space, replace(SHORT, population=12, generations=9))
    assert len(set(subnets(result))) == len(result.candidates) == small_space.size == 40
    assert [entry["evaluated"] for entry in result.limits[0].history] == [12, 12, 12, 4]
