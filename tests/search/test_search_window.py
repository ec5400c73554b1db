from __future__ import annotations

import random
from collections import Counter
from itertools import pairwise

import pytest
from search.synthetic import cost_of

from growtas import SearchSpace, Subnet
from growtas.search import Cost, Limit
from growtas.search.window import Window
from growtas.space.size_table import SizeTable


def everything(space: SearchSpace) -> list[Subnet]:
    table = SizeTable.build(space, cost_of(space))
    assert table is not None
    return list(table.inside(Limit()))


def anything(_: Subnet) -> bool:
    return True


def test_draws_are_those_of_the_space_given_the_window(small_space: SearchSpace) -> None:
    cost, rng = cost_of(small_space), random.Random(0)
    sizes = sorted(cost(s).params for s in everything(small_space))
    limit = Limit(min_params=sizes[10], max_params=sizes[29])
    window = Window(small_space, limit, cost, SizeTable.build(small_space, cost))
    drawn = Counter(window.draw(rng, anything) for _ in range(8000))
    accepted = (small_space.sample(rng) for _ in range(40000))
    wanted = Counter(s for s in accepted if limit.admits(*cost(s)))
    assert set(drawn) == set(wanted)
    for subnet, count in wanted.items():
        assert drawn[subnet] / 8000 == pytest.approx(count / wanted.total(), abs=0.02)


def test_the_window_ends_are_inside(tiny: SearchSpace) -> None:
    cost = cost_of(tiny)
    table = SizeTable.build(tiny, cost)
    smallest, largest = cost(tiny.smallest()), cost(tiny.largest())
    low = Window(tiny, Limit(max_params=smallest.params), cost, table)
    high = Window(tiny, Limit(min_macs=largest.macs), cost, table)
    assert low.draw(random.Random(0), anything) == tiny.smallest()
    assert high.draw(random.Random(0), anything) == tiny.largest()


@pytest.mark.parametrize("tabled", [True, False])
def test_a_window_beyond_the_space_states_the_reachable_range(
    tiny: SearchSpace, tabled: bool
) -> None:
    cost = cost_of(tiny)
    table = SizeTable.build(tiny, cost) if tabled else None
    for limit in (Limit(max_params=5_366_055), Limit(min_params=10_517_273)):
        with pytest.raises(ValueError, match=r"5\.366056M parameters.* to 10\.517272M parameters"):
            Window(tiny, limit, cost, table)


def test_an_empty_window_between_two_sizes_states_the_closest(tiny: SearchSpace) -> None:
    cost = cost_of(tiny)
    table = SizeTable.build(tiny, cost)
    assert table is not None
    sizes = sorted({size.params for size in table.sizes()})
    gap, low, high = max((b - a, a, b) for a, b in pairwise(sizes) if 6e6 < a < 9e6)
    assert gap > 2
    with pytest.raises(ValueError, match="closest are") as error:
        Window(tiny, Limit(min_params=low + 1, max_params=high - 1), cost, table)
    assert f"{low / 1e6:.6f}".rstrip("0") in str(error.value)
    assert f"{high / 1e6:.6f}".rstrip("0") in str(error.value)


def test_limits_that_exclude_each_other_are_an_error(tiny: SearchSpace) -> None:
    cost = cost_of(tiny)
    limit = Limit(max_params="5.5M", min_macs=cost(tiny.largest()).macs - 1000)
    with pytest.raises(ValueError, match="found no subnet"):
        Window(tiny, limit, cost, SizeTable.build(tiny, cost))


def test_a_single_size_of_a_huge_space_is_found() -> None:
    space = SearchSpace.preset("autoformer-small")
    cost = cost_of(space)
    window = Window(
        space,
        Limit(min_params=22_999_912, max_params=22_999_912),
        cost,
        SizeTable.build(space, cost),
    )
    subnets = [window.draw(random.Random(seed), anything) for seed in range(5)]
    assert {cost(s).params for s in subnets if s} == {22_999_912}
    assert len(set(subnets)) == 5


def test_a_used_up_window_gives_none_after_its_last_subnet(small_space: SearchSpace) -> None:
    cost, seen = cost_of(small_space), set()
    sizes = sorted(cost(s).params for s in everything(small_space))
    inside = sum(size <= sizes[7] for size in sizes)
    window = Window(
        small_space, Limit(max_params=sizes[7]), cost, SizeTable.build(small_space, cost)
    )
    rng = random.Random(0)
    while (subnet := window.draw(rng, lambda s: s not in seen)) is not None:
        seen.add(subnet)
    assert len(seen) == inside


def position_dependent(space: SearchSpace):
    """A size for which the order of the blocks matters, so no table can hold it."""
    exact = cost_of(space)

    def cost(subnet: Subnet) -> Cost:
        extra = sum(i * heads for i, heads in enumerate(subnet.num_heads))
        return Cost(exact(subnet).params + 1000 * extra, exact(subnet).macs)

    return cost


def test_a_cost_that_is_no_sum_has_no_table_and_is_walked(tiny: SearchSpace) -> None:
    cost = position_dependent(tiny)
    assert SizeTable.build(tiny, cost) is None
    # 0.4 % of uniform draws are this small: drawing alone would fail, and does not have to.
    limit = Limit(max_params=cost(tiny.smallest()).params + 30_000)
    window = Window(tiny, limit, cost, None)
    drawn = [window.draw(random.Random(seed), anything) for seed in range(5)]
    assert all(s is not None and limit.admits(*cost(s)) for s in drawn)


def test_without_a_table_an_empty_window_ends_too(tiny: SearchSpace) -> None:
    cost = cost_of(tiny)
    table = SizeTable.build(tiny, cost)
    assert table is not None
    sizes = sorted({size.params for size in table.sizes()})
    _, low, high = max((b - a, a, b) for a, b in pairwise(sizes) if 6e6 < a < 9e6)
    window = Window(tiny, Limit(min_params=low + 1, max_params=high - 1), cost, None)
    assert window.draw(random.Random(0), anything) is None
    assert "closest are" in str(window.empty_error())


def test_a_repaired_subnet_is_inside_and_near(tiny: SearchSpace) -> None:
    cost, rng = cost_of(tiny), random.Random(0)
    window = Window(tiny, Limit(min_params="6.9M", max_params="7M"), cost, None)
    start = tiny.restrict(embed_dim=192, depth=14).largest()
    moved = window.repair(start, rng, anything)
    assert moved is not None
    assert window.excess(moved) == 0
    assert window.repair(moved, rng, anything) == moved
