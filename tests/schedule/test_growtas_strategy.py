"""GrowTAS: nested stages, the GrowTAS+ phase, the paper's settings, strategies from recipes."""

from __future__ import annotations

import random
from dataclasses import asdict
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from growtas.schedule import (
    GrowTAS,
    PlusPhase,
    Stage,
    StepContext,
    Uniform,
    build_strategy,
    growtas_preset,
    phase_at,
    total_epochs,
)
from growtas.space import SearchSpace

TINY = SearchSpace.preset("autoformer-tiny")
PLUS = PlusPhase(epochs=3, lr=1e-4, min_lr=1e-5, freeze={"embed_dim": [192]})


def starts(strategy: GrowTAS, epochs: int = 500) -> list[float]:
    return [phase.start for phase in strategy.phases(TINY, epochs)]


@given(st.integers(1, 3), st.data())
def test_any_number_of_nested_stages(count, data):
    embed = [192, 216, 240][3 - count :]
    stages = [(10 * k, {"embed_dim": embed[: k + 1]}) for k in range(count - 1)]
    stages.append((10 * (count - 1), {}))
    space = TINY.restrict(embed_dim=embed)
    phases = GrowTAS(stages).phases(space, 100)
    assert [phase.start for phase in phases] == [10 * k for k in range(count)]
    assert all(a.space < b.space for a, b in pairwise(phases))
    assert phases[-1].space == space
    epoch = data.draw(st.floats(0, 100))
    allowed = embed[: min(int(epoch // 10), count - 1) + 1]
    assert phase_at(phases, epoch).space.embed_dim == tuple(allowed)


def test_steps_sample_the_space_of_their_phase():
    strategy = GrowTAS([(0, {"embed_dim": [192, 216]}), (0.5, {})], plus=PLUS)
    phases = strategy.phases(TINY, 10)
    rng = random.Random(0)

    def embeds(epoch: float) -> set[int]:
        context = StepContext(rng, 0, epoch, phase_at(phases, epoch), 0)
        plans = [strategy.plan(context) for _ in range(100)]
        assert all(len(plan.passes) == 1 and plan.passes[0].loss == "ce" for plan in plans)
        return {plan.passes[0].subnet.embed_dim for plan in plans}

    assert embeds(0) == embeds(4.99) == {192, 216}
    assert embeds(5) == embeds(9.99) == {192, 216, 240}
    assert embeds(10) == embeds(12.9) == {216, 240}


def test_plus_phase_comes_after_the_ordinary_epochs():
    strategy = GrowTAS([Stage(0)], plus=PLUS)
    assert total_epochs(strategy, 10) == 13
    *_, plus = strategy.phases(TINY, 10)
    frozen = TINY.restrict(embed_dim=192)
    assert (plus.start, plus.freeze, plus.name) == (10, frozen, "plus")
    assert plus.space == TINY - frozen
    assert plus.recipe == {"epochs": 3, "lr": 1e-4, "min_lr": 1e-5, "warmup_epochs": 0}
    assert total_epochs(GrowTAS([Stage(0)]), 10) == 10


def test_starts_below_one_are_fractions_of_the_run():
    strategy = GrowTAS([(0, {"depth": 12}), (0.5, {"depth": [12, 13]}), (300, {})])
    assert starts(strategy) == [0, 250, 300]
    assert starts(strategy, 400) == [0, 200, 300]
    assert Stage(0.7).start_epoch(10) == 7


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([(0, {"embed_dim": 192}), (9, {"embed_dim": [216, 240]}), (10, {})], "stage 2 does not"),
        ([(0, {"embed_dim": 192}), (9, {"depth": 12}), (10, {})], "stage 2 does not contain"),
        ([(0, {"embed_dim": 192})], "last stage restricts embed_dim; it must be the whole space"),
        ([(0, {"embed_dim": 200}), (9, {})], "stage 1: embed_dim = 200 .*allowed: 192, 216, 240"),
        ([(0, {"embed": 192}), (9, {})], "stage 1: unknown .*'embed' .did you mean 'embed_dim'"),
        ([(0, {"depth": 12}), (600, {})], "stage 2 starts at epoch 600, but the run has 500"),
        ([(0, {}), (0, {})], "stage 2 starts at epoch 0, not after stage 1 at 0"),
        ([(0, {}), (300, {}), (0.5, {})], "stage 3 starts at epoch 250, not after stage 2 at 300"),
    ],
)
def test_stages_that_do_not_grow_are_refused(stages, message):
    with pytest.raises(ValueError, match=message):
        GrowTAS(stages).phases(TINY, 500)


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([], "at least one stage"),
        ([(1, {})], "first stage must start at 0, got 1"),
        ([(0, {}), (-3, {})], "a stage starts at -3"),
    ],
)
def test_impossible_stages_are_refused_at_once(stages, message):
    with pytest.raises(ValueError, match=message):
        GrowTAS(stages)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"min_lr": 1e-3}, "min_lr must be in 0..lr, got min_lr 0.001, lr 0.0001"),
        ({"warmup_epochs": 4}, r"warmup_epochs must be in 0\.\.3, got 4"),
        ({"freeze": {}}, "plus freezes the whole space"),
        ({"freeze": {"embed_dim": 100}}, "plus freeze: embed_dim = 100 .*allowed: 192, 216, 240"),
    ],
)
def test_impossible_plus_phases_are_refused(changes, message):
    values = {"epochs": 3, "lr": 1e-4, "min_lr": 1e-5, "freeze": {"embed_dim": 192}}
    with pytest.raises(ValueError, match=message):
        GrowTAS([Stage(0)], plus=PlusPhase(**{**values, **changes})).phases(TINY, 500)


# The paper's settings


# T_1 of 500 epochs; epochs, start and end of the plus phase's rate at the published batch of 1024.
PUBLISHED = {
    ("autoformer-tiny", "paper"): (250, 20, 5e-5, 1e-5),
    ("autoformer-small", "paper"): (225, 20, 5e-5, 1e-5),
    ("autoformer-base", "paper"): (200, 10, 2e-7, 1e-7),
    ("autoformer-tiny", "committed"): (400, 20, 5e-5, 1e-5),
    ("autoformer-small", "committed"): (400, 20, 2e-5, 1e-5),
    ("autoformer-base", "committed"): (200, 10, 2e-7, 1e-7),
}
PUBLISHED |= {(n, "code"): row for (n, variant), row in PUBLISHED.items() if variant == "paper"}
# What stage 1 samples, and what the plus phase freezes.
SUBSPACES = {
    ("autoformer-tiny", "code"): ({"embed_dim": [192, 216]}, {"embed_dim": [192]}),
    ("autoformer-small", "code"): ({"embed_dim": [320, 384]}, {"embed_dim": [320]}),
    ("autoformer-base", "code"): ({"embed_dim": [528, 576]}, {"embed_dim": [528]}),
    ("autoformer-tiny", "paper"): ({"embed_dim": [192], "mlp_ratio": [3.5]},) * 2,
    ("autoformer-small", "paper"): ({"embed_dim": [320], "mlp_ratio": [3.0]},) * 2,
    ("autoformer-base", "paper"): ({"embed_dim": [528], "mlp_ratio": [3.0]},) * 2,
}
SUBSPACES |= {(n, "committed"): row for (n, variant), row in SUBSPACES.items() if variant == "code"}


@pytest.mark.parametrize(("name", "variant"), sorted(PUBLISHED))
def test_presets_are_the_published_settings(name, variant):
    space = SearchSpace.preset(name)
    transition, epochs, lr, min_lr = PUBLISHED[name, variant]
    small, frozen = (space.restrict(**choices) for choices in SUBSPACES[name, variant])
    first, second, plus = growtas_preset(name, variant=variant, plus=True).phases(space, 500)
    assert (first.start, second.start, plus.start) == (0, transition, 500)
    assert (first.space, second.space) == (small, space)
    assert (plus.freeze, plus.space) == (frozen, space - frozen)
    # learning rates hold for 512 images like the run's own
    assert plus.recipe["lr"] * 1024 / 512 == pytest.approx(lr)
    assert (plus.recipe["min_lr"], plus.recipe["epochs"]) == (min_lr, epochs)
    assert plus.recipe["warmup_epochs"] == 0
    assert len(growtas_preset(name, variant=variant).phases(space, 500)) == 2


def test_four_stages():
    """K = 4, growing in all axes, through a run of 40 epochs and a plus phase."""
    restrictions = [
        {"embed_dim": [192], "depth": [12], "num_heads": [3], "mlp_ratio": [3.5]},
        {"embed_dim": [192], "depth": [12, 13]},
        {"embed_dim": [192, 216]},
        {},
    ]
    stages = [{"start": k / 4, "restrict": r} for k, r in enumerate(restrictions)]
    config = {"name": "growtas", "stages": stages, "plus": {**asdict(PLUS)}}
    strategy = build_strategy(config, TINY)
    phases = strategy.phases(TINY, 40)
    assert [(p.name, p.start) for p in phases] == [
        ("stage 1/4", 0),
        ("stage 2/4", 10),
        ("stage 3/4", 20),
        ("stage 4/4", 30),
        ("plus", 40),
    ]
    for epoch in range(43):
        phase = strategy.phase(phases, epoch)
        assert phase == phases[epoch // 10]
        subnets = [
            strategy.plan(StepContext(random.Random(i), i, epoch, phase, i)).passes[0].subnet
            for i in range(60)
        ]
        if epoch < 40:
            allowed = TINY.restrict(**restrictions[epoch // 10])
            assert all(subnet in allowed for subnet in subnets)
            assert {s.embed_dim for s in subnets} == set(allowed.embed_dim)
            assert {s.depth for s in subnets} == set(allowed.depth)
        else:
            assert all(subnet not in phase.freeze for subnet in subnets)


def test_unknown_presets_are_refused():
    with pytest.raises(ValueError, match="did you mean 'autoformer-tiny'"):
        growtas_preset("autoformer-tiney")
    with pytest.raises(ValueError, match="variant is 'papers'; known: code, paper, committed"):
        growtas_preset("autoformer-tiny", variant="papers")


# From recipes


def phases_of(config: dict, space: SearchSpace = TINY, epochs: int = 500):
    return build_strategy(config, space).phases(space, epochs)


def test_strategies_from_recipe_values():
    assert isinstance(build_strategy({"name": "uniform"}, TINY), Uniform)
    explicit = {
        "name": "growtas",
        "stages": [{"start": 0, "restrict": {"embed_dim": [192, 216]}}, {"start": 250}],
        "plus": {"epochs": 20, "lr": 2.5e-5, "min_lr": 1e-5, "freeze": {"embed_dim": [192]}},
    }
    preset = {"name": "growtas", "plus": True}
    assert (
        phases_of(explicit)
        == phases_of(preset)
        == growtas_preset("autoformer-tiny", plus=True).phases(TINY, 500)
    )
    assert phases_of({**explicit, "plus": False}) == phases_of({"name": "growtas"})
    assert phases_of({**explicit, "plus": True}) == phases_of(preset)
    assert phases_of({"name": "growtas", "plus": explicit["plus"]}) == phases_of(preset)


def test_paper_variant_is_one_line_of_a_recipe():
    config = {"name": "growtas", "plus": True, "variant": "paper"}
    expected = growtas_preset("autoformer-tiny", variant="paper", plus=True)
    assert phases_of(config) == expected.phases(TINY, 500)


def test_preset_can_be_named_for_a_space_of_another_name():
    renamed = SearchSpace.from_dict({**TINY.to_dict(), "name": "mine"})
    with pytest.raises(ValueError, match="no GrowTAS preset for space 'mine'"):
        phases_of({"name": "growtas"}, renamed)
    phases = phases_of({"name": "growtas", "preset": "autoformer-tiny"}, renamed)
    assert phases[0].space == TINY.restrict(embed_dim=(192, 216))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "needs a name"),
        ({"name": "growtass"}, "unknown strategy 'growtass' .did you mean 'growtas'"),
        ({"name": "uniform", "stages": []}, "unknown field stages"),
        ({"name": "growtas", "stage": []}, "unknown field stage .did you mean 'stages'"),
        ({"name": "growtas", "stages": [{"start": 1}]}, "first stage must start at 0, got 1"),
        ({"name": "growtas", "stages": [{"restrict": {}}]}, r"stages\[0\].start is missing"),
        ({"name": "growtas", "stages": [{"begin": 0}]}, r"unknown field stages\[0\].begin"),
        ({"name": "growtas", "stages": [{"start": "0"}]}, r"stages\[0\].start: expected"),
        (
            {"name": "growtas", "variant": "codes"},
            "variant: expected one of 'code', 'paper', 'committed'",
        ),
        ({"name": "growtas", "plus": {"epochs": 3}}, "plus.lr is missing"),
        ({"name": "growtas", "plus": 3}, "plus: expected"),
    ],
)
def test_wrong_recipe_values_are_refused(config, message):
    with pytest.raises(ValueError, match=message):
        build_strategy(config, TINY)
