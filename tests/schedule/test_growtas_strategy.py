"""GrowTAS: nested stages, the GrowTAS+ phase, the paper's settings, strategies from recipes."""

from __future__ import annotations

import random
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
        context = StepContext(rng, 0, epoch, phase_at(phases, epoch))
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


@pytest.mark.parametrize(
    ("name", "transition", "epochs", "lr", "min_lr"),
    [
        ("autoformer-tiny", 250, 20, 5e-5, 1e-5),
        ("autoformer-small", 225, 20, 5e-5, 1e-5),
        ("autoformer-base", 200, 10, 2e-7, 1e-7),
    ],
)
def test_presets_are_the_papers(name, transition, epochs, lr, min_lr):
    space = SearchSpace.preset(name)
    first, second, plus = growtas_preset(name, plus=True).phases(space, 500)
    assert (first.start, second.start, plus.start) == (0, transition, 500)
    assert first.space == space.restrict(embed_dim=space.embed_dim[:2])
    assert second.space == space
    assert plus.freeze == space.restrict(embed_dim=space.embed_dim[0])
    assert plus.space == space - plus.freeze
    # learning rates hold for 512 images like the run's own; the paper's batch is 1024
    assert plus.recipe["lr"] * 1024 / 512 == lr
    assert (plus.recipe["min_lr"], plus.recipe["epochs"]) == (min_lr, epochs)
    assert len(growtas_preset(name).phases(space, 500)) == 2


def test_paper_variant_has_one_small_space():
    first, second, plus = growtas_preset("autoformer-small", variant="paper", plus=True).phases(
        SearchSpace.preset("autoformer-small"), 500
    )
    assert (first.space.embed_dim, first.space.mlp_ratio) == ((320,), (3.0,))
    assert first.space.num_heads == (5, 6, 7)
    assert plus.freeze == first.space
    assert plus.space == second.space - first.space


def test_unknown_presets_are_refused():
    with pytest.raises(ValueError, match="did you mean 'autoformer-tiny'"):
        growtas_preset("autoformer-tiney")
    with pytest.raises(ValueError, match="variant is 'papers'; known: code, paper"):
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
        ({"name": "growtas", "variant": "codes"}, "variant: expected one of 'code', 'paper'"),
        ({"name": "growtas", "plus": {"epochs": 3}}, "plus.lr is missing"),
        ({"name": "growtas", "plus": 3}, "plus: expected"),
    ],
)
def test_wrong_recipe_values_are_refused(config, message):
    with pytest.raises(ValueError, match=message):
        build_strategy(config, TINY)
