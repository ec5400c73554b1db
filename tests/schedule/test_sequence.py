"""Other projects' subnet sequences, against a transcription that uses Python's global generator."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from growtas.schedule import (
    GrowTAS,
    PlusPhase,
    Stage,
    StepContext,
    Uniform,
    build_strategy,
    growtas_preset,
)
from growtas.space import SearchSpace, Subnet

TINY = SearchSpace.preset("autoformer-tiny")
STEPS = 7  # of an epoch
NAMES = ("autoformer", "prenas", "growtas")


def original(name: str, lists: dict[str, list]) -> dict:
    """One config dict as that code makes it: the draws, in its order, from the global generator."""
    config = {}
    if name == "prenas":
        embed = random.choice(lists["embed_dim"])
        depth = random.choice(lists["depth"])
    elif name == "growtas":
        depth = random.choice(lists["depth"])
        embed = random.choices(lists["embed_dim"], weights=[1.0] * len(lists["embed_dim"]))[0]
    else:
        depth = random.choice(lists["depth"])
    config["mlp_ratio"] = [random.choice(lists["mlp_ratio"]) for _ in range(depth)]
    config["num_heads"] = [random.choice(lists["num_heads"]) for _ in range(depth)]
    if name == "autoformer":
        embed = random.choice(lists["embed_dim"])
    return {**config, "embed_dim": [embed] * depth, "layer_num": depth}


def original_epoch(name: str, epoch: int, lists: dict[str, list]) -> list[Subnet]:
    state = random.getstate()
    random.seed(epoch)
    subnets = [Subnet.from_dict(original(name, lists)) for _ in range(STEPS)]
    random.setstate(state)
    return subnets


def lists_of(space: SearchSpace, **changes) -> dict[str, list]:
    axes = ("embed_dim", "depth", "num_heads", "mlp_ratio")
    return {axis: list(getattr(space, axis)) for axis in axes} | changes


def context(strategy, phases, step: int) -> StepContext:
    epoch = step / STEPS
    rng = random.Random(f"any seed {step}")
    return StepContext(rng, step, epoch, strategy.phase(phases, epoch), step % STEPS)


def drawn(strategy, phases, steps: range) -> list[Subnet]:
    return [strategy.plan(context(strategy, phases, s)).passes[0].subnet for s in steps]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("space", ["autoformer-tiny", "autoformer-small", "autoformer-base"])
def test_uniform_draws_are_the_originals(name, space):
    space = SearchSpace.preset(space)
    strategy = build_strategy({"name": "uniform", "sequence": name}, space)
    phases = strategy.phases(space, 20)
    expected = [s for e in range(12) for s in original_epoch(name, e, lists_of(space))]
    random.seed("something else")
    before = random.getstate()
    assert drawn(strategy, phases, range(12 * STEPS)) == expected
    assert random.getstate() == before  # a private generator


def test_the_sequences_differ():
    phases = Uniform().phases(TINY, 20)
    first = [tuple(drawn(Uniform(sequence=name), phases, range(3))) for name in (*NAMES, None)]
    assert len(set(first)) == 4


@pytest.mark.parametrize("name", NAMES)
def test_growtas_draws_from_the_lists_of_its_stages(name):
    strategy = growtas_preset("autoformer-tiny", plus=True)
    strategy = GrowTAS(
        [Stage(0, {"embed_dim": [192, 216]}), Stage(2)], strategy.plus, sequence=name
    )
    phases = strategy.phases(TINY, 4)
    embed = [[192, 216]] * 2 + [[192, 216, 240]] * 2 + [[216, 240]] * 2  # GrowTAS+ at the end
    expected = [
        subnet
        for epoch, choices in enumerate(embed)
        for subnet in original_epoch(name, epoch, lists_of(TINY, embed_dim=choices))
    ]
    assert drawn(strategy, phases, range(6 * STEPS)) == expected


def test_a_difference_in_several_axes_is_drawn_until_outside():
    plus = PlusPhase(2, 1e-4, 1e-5, freeze={"embed_dim": [192], "mlp_ratio": [3.5]})
    strategy = GrowTAS([Stage(0)], plus, sequence="autoformer")
    phases = strategy.phases(TINY, 1)
    subnets = drawn(strategy, phases, range(STEPS, 3 * STEPS))
    assert all(subnet in phases[-1].space for subnet in subnets)
    assert {subnet.embed_dim for subnet in subnets} == {192, 216, 240}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("start", [STEPS, STEPS + 3, 2 * STEPS - 1])
def test_a_resumed_run_continues_the_sequence(name, start):
    whole, resumed = Uniform(sequence=name), Uniform(sequence=name)
    phases = whole.phases(TINY, 4)
    expected = drawn(whole, phases, range(4 * STEPS))
    resumed.load_state_dict(whole.state_dict())
    assert drawn(resumed, phases, range(start, 4 * STEPS)) == expected[start:]
    # Asking again for a step gives the same answer.
    assert drawn(resumed, phases, range(start, start + 1)) == expected[start : start + 1]


def test_our_own_draws_follow_the_rng_of_the_step():
    strategy = Uniform()
    phases = strategy.phases(TINY, 4)
    here = context(strategy, phases, 5)
    other = replace(here, rng=random.Random("another seed"))
    assert strategy.plan(here) != strategy.plan(other)
    named = Uniform(sequence="autoformer")
    assert named.plan(replace(here, rng=None)) == named.plan(other)


def test_a_run_with_other_draws_is_not_continued():
    state = Uniform(sequence="prenas").state_dict()
    assert state == {"sequence": "prenas"}
    for other in (Uniform(), Uniform(sequence="growtas")):
        with pytest.raises(ValueError, match=r"drew with .'sequence': 'prenas'"):
            other.load_state_dict(state)
    with pytest.raises(ValueError, match=r"drew with \{\}, this one draws with"):
        Uniform(sequence="prenas").load_state_dict({})


def test_stages_within_an_epoch_are_refused():
    stages = [Stage(0, {"embed_dim": [192]}), Stage(0.45)]
    GrowTAS(stages).phases(TINY, 10)
    with pytest.raises(ValueError, match=r"stage 2 starts at epoch 4\.5; sequence 'growtas' needs"):
        GrowTAS(stages, sequence="growtas").phases(TINY, 10)
    GrowTAS(stages, sequence="growtas").phases(TINY, 500)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"name": "uniform", "sequence": "ofa"}, "sequence: expected one of 'autoformer'"),
        ({"name": "growtas", "sequence": "prenas", "stratify": {"bins": 2}}, "use one of them"),
    ],
)
def test_impossible_draws_are_refused(config, message):
    with pytest.raises(ValueError, match=message):
        build_strategy(config, TINY)
    with pytest.raises(ValueError, match="sequence is 'ofa'; known: autoformer, prenas, growtas"):
        Uniform(sequence="ofa")
