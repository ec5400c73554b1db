"""The data that strategies and the trainer exchange."""

from __future__ import annotations

import random

import pytest

from growtas.schedule import (
    Pass,
    Phase,
    Stateless,
    StepContext,
    StepPlan,
    Uniform,
    phase_at,
    total_epochs,
)
from growtas.space import SearchSpace

SPACE = SearchSpace.preset("digits")
SUBNET = SPACE.smallest()


@pytest.mark.parametrize(
    ("loss", "teacher", "uses_labels"),
    [
        ("ce", None, True),
        ("eval", None, True),
        ("kd:big", "big", False),
        ("ce+kd:big", "big", True),
    ],
)
def test_losses(loss, teacher, uses_labels):
    step = Pass(SUBNET, loss=loss)
    assert (step.teacher, step.uses_labels) == (teacher, uses_labels)


@pytest.mark.parametrize("loss", ["mse", "", "kd", "kd:", "ce+", "ce+kd:", "eval+kd:z", "kd:a b"])
def test_unknown_losses_are_refused(loss):
    with pytest.raises(ValueError, match=r"allowed: ce, kd:TAG, ce\+kd:TAG, eval") as caught:
        Pass(SUBNET, loss=loss)
    assert repr(loss) in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"split": "test"}, "split is 'test'; allowed: train, search"),
        ({"tag": "a b"}, "tag is 'a b'"),
        ({"scale": 0.0}, "scale must be positive and finite, got 0.0"),
        ({"scale": float("inf")}, "scale must be positive and finite, got inf"),
    ],
)
def test_passes_refuse_values_out_of_range(changes, message):
    with pytest.raises(ValueError, match=message):
        Pass(SUBNET, **changes)


def test_a_pass_needs_a_subnet():
    with pytest.raises(TypeError, match="a pass needs a Subnet"):
        Pass({"embed_dim": 32})


def test_teachers_come_before_their_students():
    teacher, student = Pass(SUBNET, tag="z"), Pass(SUBNET, loss="kd:z")
    assert StepPlan([teacher, student]).passes == (teacher, student)
    with pytest.raises(ValueError, match="pass 0 distils from 'z'; tags of earlier passes: none"):
        StepPlan((student, teacher))
    with pytest.raises(ValueError, match="pass 1 uses the tag 'z' a second time"):
        StepPlan((teacher, teacher))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"passes": ()}, "at least one pass"),
        ({"lr_scale": -1.0}, "lr_scale must be positive and finite, got -1.0"),
    ],
)
def test_plans_refuse_values_out_of_range(changes, message):
    with pytest.raises(ValueError, match=message):
        StepPlan(**{"passes": (Pass(SUBNET),), **changes})


def test_plans_are_hashable_data():
    assert len({StepPlan((Pass(SUBNET),)), StepPlan((Pass(SUBNET),))}) == 1


def test_phases_check_their_recipe_and_their_supernet():
    phase = Phase(0.5, SPACE, "warm", recipe={"lr": 1e-4})
    assert phase.recipe == {"lr": 1e-4}
    with pytest.raises(ValueError, match="phase 'x' overrides 'lrr'; allowed: epochs, lr, min_lr"):
        Phase(0, SPACE, "x", recipe={"lrr": 1.0})
    with pytest.raises(ValueError, match="starts at epoch -1"):
        Phase(-1, SPACE, "x")
    with pytest.raises(ValueError, match="freezes a space of"):
        Phase(0, SPACE, "x", freeze=SearchSpace.preset("autoformer-tiny"))


def test_phase_at_is_the_last_one_started():
    phases = [Phase(start, SPACE, str(start)) for start in (0, 2.5, 4)]
    epochs = (0, 2.49, 2.5, 3, 4, 100)
    assert [phase_at(phases, epoch).start for epoch in epochs] == [0, 0, 2.5, 2.5, 4, 4]
    with pytest.raises(ValueError, match="epoch must be 0 or more, got -1"):
        phase_at(phases, -1)
    with pytest.raises(ValueError, match="first phase must start at epoch 0"):
        phase_at(phases[1:], 3)
    with pytest.raises(ValueError, match="one after the other"):
        phase_at([phases[0], phases[2], phases[1]], 3)


def test_total_epochs():
    assert total_epochs(Uniform(), 7) == 7
    with pytest.raises(ValueError, match="epochs must be at least 1, got 0"):
        total_epochs(Uniform(), 0)


def test_stateless_strategies_refuse_foreign_state():
    strategy = Stateless()
    strategy.load_state_dict(strategy.state_dict())
    with pytest.raises(ValueError, match="Stateless has no state, got fields pool"):
        strategy.load_state_dict({"pool": []})


def test_uniform_samples_the_whole_space_with_one_pass():
    strategy = Uniform()
    (phase,) = strategy.phases(SPACE, 10)
    assert (phase.start, phase.space, phase.freeze, phase.recipe) == (0, SPACE, None, {})
    rng, same = random.Random(4), random.Random(4)
    for step in range(5):
        plan = strategy.plan(StepContext(rng, step, step / 10, phase, step))
        assert plan == StepPlan((Pass(SPACE.sample(same)),))
