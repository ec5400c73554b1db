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


WHOLE = GrowTAS([(0, {})]).phases(SPACE, 500)


def published(t):
    """AutoFormer's rate after t epochs: 8 x 128 images, 20 epochs of warm-up, 500 in all."""
    if t < 20:
        return 1e-6 + t * (1e-3 - 1e-6) / 20
    return 1e-5 + 0.5 * (1e-3 - 1e-5) * (1 + math.cos(math.pi * t / 500))


def test_the_cosine_of_autoformers_recipe():
    epochs = [0, 1, 19, 20, 250, 498]
    steps = [epoch * 10 + 9 for epoch in epochs]  # constant within an epoch
    found = rates(optimizer(), WHOLE, 0, 500, OptimConfig(), 1024, 10, steps)
    assert found == pytest.approx([published(t) for t in epochs], rel=1e-9)
    assert found[3] == pytest.approx(0.9961e-3, rel=1e-4)


def test_autoformers_loop_is_one_epoch_late():
    """Epoch e has f(e - 1), epochs 0 and 1 the warm-up's first rate; constant within an epoch."""
    optim = OptimConfig(schedule="autoformer")
    found = rates(optimizer(), WHOLE, 0, 500, optim, 1024, 10, range(5000))
    assert all(len(set(found[10 * e : 10 * e + 10])) == 1 for e in range(500))
    rate = found[::10]
    assert rate == pytest.approx([published(max(0, e - 1)) for e in range(500)], rel=1e-9)
    assert rate[0] == rate[1] == 1e-6
    assert rate[21] == pytest.approx(0.9961e-3, rel=1e-4)  # no shift by the warm-up: f(20)
    assert rate[499] == pytest.approx(1.004e-5, rel=1e-4)
    # Another batch scales the peak, neither end.
    half = rates(optimizer(), WHOLE, 0, 500, optim, 512, 10, [0, 219, 4990])
    assert half[0] == 1e-6
    assert half[1] == pytest.approx(1e-5 + (published(20) - 1e-5) * (5e-4 - 1e-5) / (1e-3 - 1e-5))
    assert half[2] == pytest.approx(1e-5, rel=1e-2)


def test_the_schedule_of_autoformer_is_the_loop_of_timm():
    """The same numbers as timm's scheduler, stepped after each epoch with its index."""
    timm = pytest.importorskip("timm.scheduler")
    optim = OptimConfig(schedule="autoformer", warmup_epochs=3, lr=2e-3, min_lr=1e-4)
    run = optimizer()
    run.param_groups[0]["lr"] = 2e-3
    schedule = timm.CosineLRScheduler(
        run, t_initial=12, lr_min=1e-4, warmup_t=3, warmup_lr_init=1e-6
    )
    expected = []
    for epoch in range(12):
        expected.append(run.param_groups[0]["lr"])
        schedule.step(epoch)
    phases = GrowTAS([(0, {})]).phases(SPACE, 12)
    found = rates(optimizer(), phases, 0, 12, optim, 512, 5, range(0, 60, 5))
    assert found == pytest.approx(expected, rel=1e-12)


def test_plus_has_the_late_schedule_from_its_own_start():
    plus = PlusPhase(epochs=4, lr=1e-4, min_lr=2e-5, freeze=FREEZE)
    phases = GrowTAS([(0, {})], plus=plus).phases(SPACE, 10)
    optim = OptimConfig(lr_base_batch=0, warmup_epochs=1, schedule="autoformer")
    found = rates(optimizer(), phases, 1, 14, optim, 64, 3, range(30, 42, 3))
    cosine = [2e-5 + 0.5 * 8e-5 * (1 + math.cos(math.pi * t / 4)) for t in (0, 0, 1, 2)]
    assert found == pytest.approx(cosine)


def test_wrong_schedules_are_refused():
    with pytest.raises(
        ValueError, match=r"optim\.schedule is 'step'; allowed: 'cosine', 'autoform"
    ):
        OptimConfig(schedule="step")
    with pytest.raises(ValueError, match=r"sched_on_updates is True; allowed: False, as schedule"):
        OptimConfig(schedule="autoformer", sched_on_updates=True)


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
