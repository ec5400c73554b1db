"""The cosine of AutoFormer's recipe, and phases with a rate of their own."""

import math

import pytest
import torch
from training.training_setup import FREEZE, SPACE

from growtas.schedule import GrowTAS, PlusPhase
from growtas.training import OptimConfig
from growtas.training.learning_rate import LearningRate, segment_of


def optimizer():
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)


def rates(run, phases, index, total, optim, batch_size, steps_per_epoch, steps):
    schedule = LearningRate(
        run, segment_of(phases, index, total, optim), batch_size, steps_per_epoch
    )
    found = []
    for step in steps:
        schedule.set(step)
        found.append(run.param_groups[0]["lr"])
    return found


def test_autoformer_recipe():
    phases = GrowTAS([(0, {})]).phases(SPACE, 500)
    epochs = [0, 1, 19, 20, 250, 498]
    steps = [epoch * 10 + 9 for epoch in epochs]  # constant within an epoch
    found = rates(optimizer(), phases, 0, 500, OptimConfig(), 1024, 10, steps)

    def expected(t):
        if t < 20:
            return 1e-6 + t * (1e-3 - 1e-6) / 20
        return 1e-5 + 0.5 * (1e-3 - 1e-5) * (1 + math.cos(math.pi * t / 500))

    assert found == pytest.approx([expected(t) for t in epochs], rel=1e-9)
    assert found[3] == pytest.approx(0.9961e-3, rel=1e-4)


def test_stages_continue_the_cosine_and_plus_starts_its_own():
    plus = PlusPhase(epochs=4, lr=1e-4, min_lr=2e-5, freeze=FREEZE)
    phases = GrowTAS([(0, FREEZE), (5, {})], plus=plus).phases(SPACE, 10)
    optim = OptimConfig(lr=1e-3, lr_base_batch=64, warmup_epochs=1, sched_on_updates=True)
    assert segment_of(phases, 0, 14, optim) == segment_of(phases, 1, 14, optim)
    run = optimizer()
    first = rates(run, phases, 1, 14, optim, 128, 8, [40, 79])
    t = 40 / 80
    assert first[0] == pytest.approx(1e-5 + 0.5 * (2e-3 - 1e-5) * (1 + math.cos(math.pi * t)))
    second = rates(run, phases, 2, 14, optim, 128, 8, [80, 96, 111])
    assert second[0] == pytest.approx(2e-4)  # no warm-up; scaled by the batch like the run's rate
    assert second[1] == pytest.approx((2e-4 + 2e-5) / 2)
    assert 2e-5 < second[2] < 2.1e-5


def test_impossible_rates_are_named():
    phases = GrowTAS([(0, {})]).phases(SPACE, 3)
    with pytest.raises(ValueError, match=r"warmup_epochs is 20; allowed: at most 3"):
        rates(optimizer(), phases, 0, 3, OptimConfig(), 1024, 10, [])
    low = OptimConfig(lr=1e-5, warmup_epochs=0)
    with pytest.raises(ValueError, match=r"min_lr is 1e-05; allowed: at most 5e-06"):
        rates(optimizer(), phases, 0, 3, low, 256, 10, [])
