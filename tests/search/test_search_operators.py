from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from growtas import SearchSpace, Subnet
from growtas.search import crossover, mutate
from growtas.search.operators import step

SPACE = SearchSpace.preset("autoformer-small")


@given(st.integers(0, 2**32))
def test_children_stay_in_the_space(seed: int) -> None:
    rng = random.Random(seed)
    first, second = SPACE.sample(rng), SPACE.sample(rng)
    for child in (
        mutate(first, SPACE, rng),
        crossover(first, second, rng),
        step(first, SPACE, rng),
    ):
        SPACE.validate(child)


@given(st.integers(0, 2**32))
def test_a_child_has_every_choice_from_a_parent(seed: int) -> None:
    rng = random.Random(seed)
    first, second = SPACE.sample(rng), SPACE.sample(rng)
    child = crossover(first, second, rng)
    assert child.embed_dim in (first.embed_dim, second.embed_dim)
    assert child.depth in (first.depth, second.depth)
    for axis in ("num_heads", "mlp_ratio"):
        parents = (getattr(first, axis), getattr(second, axis))
        for i, value in enumerate(getattr(child, axis)):
            assert value in [parent[i] for parent in parents if i < len(parent)]


def test_crossover_mixes_position_by_position() -> None:
    low, high = SPACE.smallest(), SPACE.largest()
    rng = random.Random(0)
    children = [crossover(low, high, rng) for _ in range(400)]
    assert {c.depth for c in children} == {12, 14}
    for axis, (a, b) in (("num_heads", (5, 7)), ("mlp_ratio", (3.0, 4.0))):
        for i in range(12):
            share = sum(getattr(c, axis)[i] == a for c in children) / len(children)
            assert 0.4 < share < 0.6
        deep = [c for c in children if c.depth == 14]
        assert all(getattr(c, axis)[12:] == (b, b) for c in deep)


def test_mutation_draws_with_the_given_probabilities() -> None:
    rng = random.Random(0)
    start = Subnet(320, (5,) * 12, (3.0,) * 12)
    mutants = [mutate(start, SPACE, rng, mutation_prob=0.2) for _ in range(4000)]
    # A redraw gives the old value in one of three cases.
    assert sum(m.embed_dim != 320 for m in mutants) / 4000 == pytest.approx(0.4 * 2 / 3, abs=0.03)
    assert sum(m.depth != 12 for m in mutants) / 4000 == pytest.approx(0.4 * 2 / 3, abs=0.03)
    for axis, value in (("num_heads", 5), ("mlp_ratio", 3.0)):
        changed = sum(getattr(m, axis)[4] != value for m in mutants)
        assert changed / 4000 == pytest.approx(0.2 * 2 / 3, abs=0.03)


def test_a_mutation_without_probability_changes_nothing() -> None:
    rng = random.Random(0)
    subnet = SPACE.sample(rng)
    none = {"mutation_prob": 0.0, "depth_prob": 0.0, "embed_prob": 0.0}
    assert all(mutate(subnet, SPACE, rng, **none) == subnet for _ in range(20))


def test_a_changed_depth_keeps_the_first_blocks() -> None:
    rng = random.Random(1)
    subnet = SPACE.sample(rng)
    for _ in range(50):
        mutant = mutate(subnet, SPACE, rng, mutation_prob=0, depth_prob=1, embed_prob=0)
        kept = min(mutant.depth, subnet.depth)
        assert mutant.num_heads[:kept] == subnet.num_heads[:kept]
        assert mutant.mlp_ratio[:kept] == subnet.mlp_ratio[:kept]


def test_a_step_moves_one_choice_to_a_neighbour() -> None:
    rng = random.Random(2)
    for _ in range(300):
        subnet = SPACE.sample(rng)
        moved = step(subnet, SPACE, rng)
        if moved.depth != subnet.depth:
            assert abs(moved.depth - subnet.depth) == 1
            assert moved.embed_dim == subnet.embed_dim
            continue
        heads = sum(abs(a - b) for a, b in zip(moved.num_heads, subnet.num_heads, strict=True))
        ratios = sum(
            abs(a - b) / 0.5 for a, b in zip(moved.mlp_ratio, subnet.mlp_ratio, strict=True)
        )
        embed = abs(moved.embed_dim - subnet.embed_dim) / 64
        assert heads + ratios + embed in (0, 1)
