"""Bins of equal width on parameters or MACs, drawn equally often."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from growtas.cost import Cost, macs, num_params
from growtas.schedule import GrowTAS, PlusPhase, Stage, StepContext, Stratify, build_strategy
from growtas.space import SearchSpace, Subnet

TINY = SearchSpace.preset("autoformer-tiny")
SMALL = SearchSpace(
    embed_dim=(32, 48), depth=(1, 2), num_heads=(2, 3), mlp_ratio=(2.0, 4.0), head_dim=16
)


def cost_of(space: SearchSpace):
    return lambda subnet: Cost(num_params(space, subnet), macs(space, subnet))


def everything(space: SearchSpace) -> list[Subnet]:
    found = [
        Subnet(embed, heads, ratios)
        for embed in space.embed_dim
        for depth in space.depth
        for heads in _tuples(space.num_heads, depth)
        for ratios in _tuples(space.mlp_ratio, depth)
    ]
    assert len(found) == space.size
    return found


def _tuples(choices, depth):
    return [(*t, c) for t in _tuples(choices, depth - 1) for c in choices] if depth else [()]


def build(stratify: dict, space: SearchSpace = SMALL, **config):
    config = {"name": "uniform", **config, "stratify": stratify}
    return build_strategy(config, space, cost_of(space))


def drawn(strategy, phase, count: int) -> list[Subnet]:
    contexts = (StepContext(random.Random(i), i, 0.0, phase, i) for i in range(count))
    return [strategy.plan(context).passes[0].subnet for context in contexts]


@pytest.mark.parametrize("axis", ["params", "macs"])
def test_bins_are_equally_likely_and_so_are_the_subnets_of_a_bin(axis):
    size = {s: getattr(cost_of(SMALL)(s), axis) for s in everything(SMALL)}
    low, high = min(size.values()), max(size.values())
    bins: dict[int, list[Subnet]] = {}
    for subnet, value in size.items():  # by the definition of a bin, in floating point
        bins.setdefault(min(int((value - low) / (high - low) * 3), 2), []).append(subnet)
    assert sorted(bins) == [0, 1, 2]
    assert len({len(part) for part in bins.values()}) > 1
    strategy = build({"axis": axis, "bins": 3})
    (phase,) = strategy.phases(SMALL, 5)
    counts = Counter(drawn(strategy, phase, 12000))
    for part in bins.values():
        assert sum(counts[s] for s in part) / 12000 == pytest.approx(1 / 3, abs=0.02)
        for subnet in part:
            assert counts[subnet] / 12000 == pytest.approx(1 / 3 / len(part), abs=0.01)


def test_a_window_of_a_real_space_is_covered_evenly():
    strategy = build({"min": "5.4M", "max": "10.4M", "bins": 10}, TINY)
    (phase,) = strategy.phases(TINY, 5)
    sizes = [num_params(TINY, subnet) for subnet in drawn(strategy, phase, 3000)]
    assert all(5_400_000 <= size <= 10_400_000 for size in sizes)
    shares = Counter((size - 5_400_000) // 500_000 for size in sizes)
    assert sorted(shares) == list(range(10))
    assert all(count / 3000 == pytest.approx(0.1, abs=0.025) for count in shares.values())
    assert strategy.notes() == []


def test_each_stage_has_bins_of_its_own():
    plus = PlusPhase(1, 1e-4, 1e-5, freeze={"embed_dim": [32], "depth": [1]})
    stages = [Stage(0, {"embed_dim": [32]}), Stage(1)]
    strategy = GrowTAS(stages, plus, stratify=Stratify(bins=4), cost=cost_of(SMALL))
    for phase in strategy.phases(SMALL, 4):
        subnets = set(drawn(strategy, phase, 1500))
        assert subnets == {s for s in everything(SMALL) if s in phase.space}


def test_empty_bins_are_left_out_and_said_once():
    strategy = build({"bins": 500})
    (phase,) = strategy.phases(SMALL, 5)
    strategy.phases(SMALL, 5)
    (note,) = strategy.notes()
    sizes = {cost_of(SMALL)(s).params for s in everything(SMALL)}
    low, high = min(sizes), max(sizes)
    filled = {min((size - low) * 500 // (high - low), 499) for size in sizes}
    assert note.startswith(f"uniform: {500 - len(filled)} of 500 bins from")
    assert strategy.notes() == []
    assert {cost_of(SMALL)(s).params for s in drawn(strategy, phase, 2000)} == sizes


def test_an_empty_window_states_what_is_reachable():
    strategy = build_strategy({"name": "uniform", "stratify": {"min": "11M"}}, TINY)  # no cost
    with pytest.raises(ValueError, match="give the strategy a cost function"):
        drawn(strategy, strategy.phases(TINY, 5)[0], 1)
    with pytest.raises(
        ValueError, match=r"uniform: .*at least 11M parameters; reachable are 5\.36"
    ):
        build({"min": "11M"}, TINY).phases(TINY, 5)
    stages = [{"start": 0, "restrict": {"embed_dim": [192]}}, {"start": 1}]
    with pytest.raises(ValueError, match=r"stage 1/2: .*9M and at most 10M.*to 7\.405"):
        build({"min": "9M", "max": "10M"}, TINY, name="growtas", stages=stages).phases(TINY, 5)


def test_one_size_only():
    only = SMALL.restrict(embed_dim=32, depth=1, num_heads=2, mlp_ratio=2.0)
    strategy = build({"bins": 2}, only)
    (phase,) = strategy.phases(only, 5)
    assert set(drawn(strategy, phase, 3)) == {only.smallest()}
    assert "1 of 2 bins" in strategy.notes()[0]


def test_a_space_too_large_for_the_table_is_refused():
    large = SearchSpace(
        embed_dim=(64,),
        depth=(24,),
        num_heads=tuple(range(1, 7)),
        mlp_ratio=(1.0, 2.0, 3.0, 4.0),
        head_dim=16,
    )
    with pytest.raises(ValueError, match="table of all sizes, which holds at most 500,000"):
        build({}, large).phases(large, 5)


def test_other_bins_are_another_run():
    state = build({"bins": 3}).state_dict()
    assert state == {"stratify": {"axis": "params", "min": None, "max": None, "bins": 3}}
    build({"bins": 3}).load_state_dict(state)
    with pytest.raises(ValueError, match="drew with"):
        build({"bins": 4}).load_state_dict(state)


@pytest.mark.parametrize(
    ("stratify", "message"),
    [
        ({"axis": "flops"}, "stratify.axis: expected one of 'params', 'macs'"),
        ({"min": "x"}, "stratify min must be a number"),
        ({"min": "6M", "max": "5M"}, "ends before it begins, got min 6M, max 5M"),
        ({"bins": 0}, "bins must be at least 1, got 0"),
        ({"bin": 3}, "unknown field stratify.bin .did you mean 'bins'"),
    ],
)
def test_wrong_windows_are_refused(stratify, message):
    with pytest.raises(ValueError, match=message):
        build(stratify)
