"""Which subnets an analysis draws, against all subnets of a small space, listed one by one."""

from __future__ import annotations

import itertools

import pytest

from growtas import SearchSpace, Subnet
from growtas.analysis import derived_subnets, random_subnets
from growtas.analysis.sampling import parse_window
from growtas.search import Cost, Limit

SPACE = SearchSpace(
    embed_dim=(8, 16), depth=(1, 2), num_heads=(1, 2), mlp_ratio=(1.0, 2.0), head_dim=8
)
ALL = [
    Subnet(embed, heads, ratios)
    for embed in SPACE.embed_dim
    for depth in SPACE.depth
    for heads in itertools.product(SPACE.num_heads, repeat=depth)
    for ratios in itertools.product(SPACE.mlp_ratio, repeat=depth)
]


def cost(subnet: Subnet) -> Cost:
    blocks = sum(subnet.num_heads) * 32 + sum(subnet.hidden_dims) * 2
    return Cost(100 + subnet.embed_dim * blocks, 10 * subnet.embed_dim * blocks)


def contains(large: Subnet, small: Subnet) -> bool:
    return (
        large.embed_dim >= small.embed_dim
        and large.depth >= small.depth
        and all(a >= b for a, b in zip(large.num_heads, small.num_heads, strict=False))
        and all(a >= b for a, b in zip(large.mlp_ratio, small.mlp_ratio, strict=False))
    )


class TestRandom:
    @pytest.mark.parametrize(
        "limit",
        [
            Limit(),
            Limit(max_params=900),
            Limit(min_params=1200, max_params=1500),
            Limit(min_macs=9000, max_macs=12000),
        ],
    )
    def test_all_of_a_window_and_nothing_else(self, limit):
        inside = {subnet for subnet in ALL if limit.admits(*cost(subnet))}
        assert 0 < len(inside) <= len(ALL)
        drawn = random_subnets(SPACE, limit, cost, count=1000)
        assert len(drawn) == len(inside)
        assert set(drawn) == inside

    def test_as_many_as_asked_all_different_and_by_the_seed(self):
        drawn = random_subnets(SPACE, Limit(), cost, count=15, seed=3)
        assert len(set(drawn)) == 15
        assert drawn == random_subnets(SPACE, Limit(), cost, count=15, seed=3)
        assert drawn != random_subnets(SPACE, Limit(), cost, count=15, seed=4)

    def test_an_empty_window_states_what_is_reachable(self):
        with pytest.raises(ValueError, match="reachable are"):
            random_subnets(SPACE, Limit(max_params=10), cost, count=5)

    def test_a_window_without_a_table_is_refused(self):
        def odd(subnet):  # no sum over blocks
            return Cost(cost(subnet).params * subnet.num_heads[0], 1)

        with pytest.raises(ValueError, match="too many sizes"):
            random_subnets(SPACE, Limit(max_params=900), odd, count=5)

    def test_count(self):
        with pytest.raises(ValueError, match="at least 1, got 0"):
            random_subnets(SPACE, Limit(), cost, count=0)


class TestDerived:
    @pytest.mark.parametrize(
        "reference",
        [SPACE.smallest(), SPACE.largest(), Subnet(8, (2, 1), (1, 2)), Subnet(16, (1,), (2,))],
    )
    @pytest.mark.parametrize("relation", ["larger", "smaller"])
    def test_all_relatives_and_nothing_else(self, reference, relation):
        expected = {
            subnet
            for subnet in ALL
            if subnet != reference
            and (
                contains(subnet, reference) if relation == "larger" else contains(reference, subnet)
            )
        }
        if not expected:
            with pytest.raises(ValueError, match=f"no subnet {relation} than"):
                derived_subnets(SPACE, reference, relation, count=1)
            return
        drawn = derived_subnets(SPACE, reference, relation, count=1000)
        assert len(drawn) == len(expected)
        assert set(drawn) == expected

    def test_as_many_as_asked(self):
        drawn = derived_subnets(SPACE, SPACE.smallest(), "larger", count=9, seed=1)
        assert len(set(drawn)) == 9

    def test_a_reference_of_another_space(self):
        with pytest.raises(ValueError, match="embed_dim = 12 is not in space"):
            derived_subnets(SPACE, Subnet(12, (1,), (1,)), "larger", count=1)


class TestWindow:
    @pytest.mark.parametrize(
        ("text", "axis", "limit"),
        [
            ("6M", "params", Limit(max_params="6M")),
            ("5.5M-6.5M", "params", Limit(min_params=5_500_000, max_params=6_500_000)),
            ("1.2G-1.4G", "macs", Limit(min_macs="1.2G", max_macs="1.4G")),
        ],
    )
    def test_forms(self, text, axis, limit):
        assert parse_window(text, axis) == limit

    @pytest.mark.parametrize("text", ["", "small", "6M-", "-6M", "7M-6M", "1M-2M-3M"])
    def test_others(self, text):
        with pytest.raises(ValueError, match="a window is written"):
            parse_window(text)
