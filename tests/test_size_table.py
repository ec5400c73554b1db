"""All sizes of a space: counted, drawn from, and of differences too."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from growtas.cost import Cost, CostFunction, macs, num_params
from growtas.search import Limit
from growtas.space import SearchSpace
from growtas.space.size_table import Selection, SizeTable

TINY = SearchSpace.preset("autoformer-tiny")
SMALL = SearchSpace(
    embed_dim=(32, 48), depth=(1, 2), num_heads=(2, 3), mlp_ratio=(2.0, 4.0), head_dim=16
)


def cost_of(space: SearchSpace) -> CostFunction:
    return lambda subnet: Cost(num_params(space, subnet), macs(space, subnet))


def table_of(space) -> SizeTable:
    table = SizeTable.build(space, cost_of(space))
    assert table is not None
    return table


def test_the_table_holds_every_subnet_once() -> None:
    table = table_of(SMALL)
    subnets = list(table.inside(Limit()))
    assert len(set(subnets)) == len(subnets) == SMALL.size == 40
    assert set(table.sizes()) == {cost_of(SMALL)(subnet) for subnet in subnets}
    assert sum(family.members for family in table.families()) == 40


@pytest.mark.parametrize("name", ["autoformer-tiny", "autoformer-small"])
def test_the_table_counts_the_papers_spaces(name: str) -> None:
    space = SearchSpace.preset(name)
    assert table_of(space).inside(Limit()).count == space.size


def test_the_table_gives_the_papers_shares_of_legal_subnets() -> None:
    # Shares of sampled subnets inside the windows that GrowTAS searches in the tiny space.
    table = table_of(TINY)
    for low, high, share in (("5M", "6M", 0.093), ("7M", "8M", 0.211), ("9M", "10M", 0.175)):
        selection = table.inside(Limit(min_params=low, max_params=high))
        assert selection._weights[-1] / 9 == pytest.approx(share, abs=0.005)


@pytest.mark.parametrize(
    "removed",
    [{"embed_dim": [32]}, {"embed_dim": [32], "mlp_ratio": [2.0]}, {"depth": [1], "num_heads": 2}],
)
def test_a_difference_holds_what_was_not_removed(removed: dict) -> None:
    difference = SMALL - SMALL.restrict(**removed)
    table = table_of(difference)
    expected = {s for s in table_of(SMALL).inside(Limit()) if s in difference}
    assert set(table.inside(Limit())) == expected
    assert sum(family.members for family in table.families()) == difference.size
    assert set(table.sizes()) == {cost_of(SMALL)(s) for s in expected}


@pytest.mark.parametrize("equal", [True, False])
def test_draws_are_equal_or_as_the_space_draws(equal: bool) -> None:
    selection = Selection(table_of(SMALL).families(), equal)
    rng = random.Random(0)
    depths = Counter(selection.sample(rng).depth for _ in range(4000))
    assert depths[2] / 4000 == pytest.approx(16 / 20 if equal else 1 / 2, abs=0.03)
