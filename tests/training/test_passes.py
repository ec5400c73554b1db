"""The passes of plans against gradients written out by hand."""

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cross_entropy
from training.training_setup import RATE, SPACE, digits, supernet, train_config

from growtas.base.distributed import Process
from growtas.schedule import Pass, StepPlan
from growtas.training import AugmentConfig
from growtas.training.optimizer import AdamW
from growtas.training.step import StepLosses, TrainStep

PROCESS = Process(0, 1, torch.device("cpu"))
SMALL, LARGE = SPACE.smallest(), SPACE.largest()


def step_of(model, smoothing=0.0, mix=None, **settings):
    """A step on one process; its passes are what is tested here."""
    data = digits(augment=replace(AugmentConfig.off(), smoothing=smoothing))
    optimizer = AdamW(model.parameters())
    step = TrainStep(model, optimizer, data, train_config(graph="off", **settings), RATE, PROCESS)
    step.mix = mix
    return step


def batch(count=12):
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(count, 1, 8, 8, generator=generator)
    return images, torch.randint(0, 10, (count,), generator=generator)


def gradients(model):
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def assert_same_gradients(model, expected):
    found = gradients(model)
    assert found.keys() == expected.keys()
    for name in found:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-6)


def test_losses_tags_and_scales():
    images, labels = batch()
    model = supernet()
    teacher = model(images, LARGE)
    student = model(images, SMALL)
    soft = teacher.detach().softmax(1)
    first = cross_entropy(teacher, labels, label_smoothing=0.1)
    second = cross_entropy(student, labels, label_smoothing=0.1) + cross_entropy(student, soft)
    third = cross_entropy(student, soft)
    (first + second + 0.25 * third).backward()
    expected = gradients(model)

    model.zero_grad()
    plan = StepPlan(
        (
            Pass(LARGE, tag="big"),
            Pass(SMALL, loss="ce+kd:big"),
            Pass(SMALL, loss="kd:big", scale=0.25),
        )
    )
    result = step_of(model, smoothing=0.1).run_passes(plan, images, labels, 0)
    assert_same_gradients(model, expected)
    torch.testing.assert_close(result.losses, torch.stack([first, second, third]).detach())
    torch.testing.assert_close(result.objective, (first + second + 0.25 * third).detach())
    assert result.correct == (teacher.argmax(1) == labels).sum()
    assert list(StepLosses(result.losses, PROCESS)) == pytest.approx(result.losses.tolist())


@pytest.mark.parametrize("pieces", [2, 5])
def test_accumulation_gives_the_gradients_of_the_whole_batch(pieces):
    images, labels = batch()
    plan = StepPlan((Pass(LARGE, tag="big"), Pass(SMALL, loss="kd:big")))
    model = supernet()
    whole = step_of(model).run_passes(plan, images, labels, 0)
    expected = gradients(model)
    model.zero_grad()
    cut = step_of(model, accumulate=pieces).run_passes(plan, images, labels, 0)
    assert_same_gradients(model, expected)
    torch.testing.assert_close(cut.losses, whole.losses)
    assert cut.correct == whole.correct


class Recorder(torch.nn.Module):
    """Remembers what it is called with."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(10))
        self.calls = []

    def forward(self, images, subnet, gradients=None):
        self.calls.append((images.clone(), self.training))
        return images.flatten(1)[:, :10] + self.weight


def mix(images, labels):
    return images.add_(100.0), torch.full((len(labels), 10), 0.1)


def test_regularise_switches_drop_path_and_mixing():
    images, labels = batch()
    model = Recorder()
    plan = StepPlan((Pass(LARGE), Pass(SMALL, regularise=False)))
    result = step_of(model, mix=mix).run_passes(plan, images, labels, 0)
    (mixed, first_training), (plain, second_training) = model.calls
    assert torch.equal(mixed, plain + 100)
    assert torch.equal(plain, batch()[0])
    assert (first_training, second_training) == (True, False)
    assert model.training
    torch.testing.assert_close(result.losses[1], cross_entropy(plain.flatten(1)[:, :10], labels))


def test_a_student_sees_the_images_of_its_teacher():
    model = Recorder()
    plan = StepPlan((Pass(LARGE, tag="big"), Pass(SMALL, loss="kd:big", regularise=False)))
    step_of(model, mix=mix).run_passes(plan, *batch(), 0)
    (teacher, _), (student, training) = model.calls
    assert torch.equal(teacher, student)
    assert not training


def test_eval_passes_train_nothing_and_may_use_search_images():
    model = supernet()
    search = batch(6)
    step = step_of(model)
    step.data.search_batch = lambda *_: search
    plan = StepPlan((Pass(SMALL, loss="eval", split="search"), Pass(LARGE)))
    result = step.run_passes(plan, *batch(), 0)
    found = gradients(model)
    with torch.no_grad():
        loss = cross_entropy(model(search[0], SMALL), search[1])
    torch.testing.assert_close(result.losses[0], loss)
    torch.testing.assert_close(result.objective, result.losses[1])
    model.zero_grad()
    cross_entropy(model(batch()[0], LARGE), batch()[1]).backward()
    assert_same_gradients(model, found)


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (StepPlan((Pass(SMALL, split="search"),)), "split is 'search' with loss 'ce'"),
        (StepPlan((Pass(SMALL, loss="eval"),)), "nothing would be trained"),
        (
            StepPlan((Pass(LARGE, loss="eval", split="search", tag="t"), Pass(SMALL, loss="kd:t"))),
            "tagged 't' ran on 'search'",
        ),
    ],
)
def test_what_the_trainer_lacks_is_named(plan, message):
    model = Recorder()
    with pytest.raises(ValueError, match=message):
        step_of(model)(plan, *batch(), 0)
    assert not model.calls
