"""GraphedStep and GraphedForward: the numbers of the ordinary loop; when they capture and when not.

Here they run without a CUDA device, so the capture itself is tested on a stand-in.
"""

from __future__ import annotations

import contextlib
import random

import pytest
import torch
from torch import nn

from growtas.kernels import GradientAccumulator
from growtas.schedule import Pass, StepPlan
from growtas.space import Subnet
from growtas.supernet.graph import Graph, GraphedForward
from growtas.training import graph
from growtas.training.distributed import Process
from growtas.training.graph import GraphedStep
from growtas.training.optimizer import AdamW
from growtas.training.passes import PassRunner

from .training_setup import FREEZE, SPACE, supernet

CPU = torch.device("cpu")


def batches(count, size=8):
    g = torch.Generator().manual_seed(0)
    for _ in range(count):
        yield torch.randn(size, 1, 8, 8, generator=g), torch.randint(10, (size,), generator=g)


def optimizer_of(model, inactive="dense"):
    groups = [
        {"params": [p for p in model.parameters() if p.dim() > 1], "weight_decay": 0.2},
        {"params": [p for p in model.parameters() if p.dim() == 1], "weight_decay": 0.0},
    ]
    # A bias of keys has no influence: with a small eps its steps would be those of rounding errors.
    return AdamW(groups, lr=3e-3, eps=1e-4, inactive=inactive)


def boxes_of(model, subnet):
    parameters = dict(model.named_parameters())
    return {parameters[name]: box for name, box in model.extents(subnet).items()}


class Ordinary:
    """A step as `Trainer` makes it, from the trainer's own parts."""

    def __init__(self, model, optimizer, clip_grad=None):
        self.model, self.optimizer, self.clip_grad = model, optimizer, clip_grad
        self.gradients = GradientAccumulator(model.parameters())
        process = Process(0, 1, CPU)
        self.runner = PassRunner(model, model, process, gradients=self.gradients)

    def __call__(self, images, labels, subnet, lr_scale=1.0):
        self.gradients.zero_()
        result = self.runner.run(StepPlan((Pass(subnet),)), images, labels, 0)
        self.optimizer.zero_frozen_grad()
        if self.clip_grad is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_grad)
        self.optimizer.step(active=[boxes_of(self.model, subnet)], lr_scale=lr_scale)
        return result.objective


def subnets(count):
    """Some steps of depth 1 only, so that the second block begins late."""
    rng = random.Random(3)
    shallow = SPACE.restrict(depth=1)
    return [(shallow if i < 4 else SPACE).sample(rng) for i in range(count)]


def pair(inactive="dense", clip_grad=None, frozen=False):
    """The graphed and the ordinary step, on models of their own; the first batch."""
    steps = []
    for kind in (GraphedStep, Ordinary):
        model = supernet()
        optimizer = optimizer_of(model, inactive)
        if frozen:
            optimizer.freeze(boxes_of(model, SPACE.restrict(**FREEZE).largest()))
        first = next(batches(1)) if kind is GraphedStep else ()
        steps.append(kind(model, optimizer, *first, clip_grad=clip_grad))
    return steps


def assert_same_weights(one, other, rtol=2e-5):
    for (name, a), b in zip(one.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=rtol, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("clip_grad", [None, 0.5])
@pytest.mark.parametrize(
    ("inactive", "frozen", "why"),
    [
        ("dense", False, None),
        ("skip", False, "inactive='skip'"),
        ("masked", False, "inactive='masked'"),
        ("dense", True, "frozen boxes"),
    ],
)
def test_twenty_steps_are_the_trainers(inactive, frozen, why, clip_grad):
    """Weights, losses, moments and step counts; every step has another subnet and rate."""
    graphed, ordinary = pair(inactive, clip_grad, frozen)
    start = graphed.model.blocks[1].mlp.fc1.weight.detach().clone()
    reason = graphed.update_reason
    assert reason is None if why is None else why in reason
    for i, ((images, labels), subnet) in enumerate(zip(batches(20), subnets(20), strict=True)):
        scale = 1.0 - 0.03 * i
        loss = graphed(images, labels, subnet, scale).loss.clone()
        torch.testing.assert_close(loss, ordinary(images, labels, subnet, scale).detach())
        if i == 3:  # not sampled yet: not decayed either
            assert torch.equal(graphed.model.blocks[1].mlp.fc1.weight, start)
    assert_same_weights(graphed.model, ordinary.model)
    assert not torch.equal(graphed.model.blocks[1].mlp.fc1.weight, start)
    states = [s.optimizer.state_dict()["state"] for s in (graphed, ordinary)]
    assert states[0].keys() == states[1].keys()
    for key, state in states[0].items():
        assert state.get("shells") == states[1][key].get("shells")
        torch.testing.assert_close(
            state["exp_avg"], states[1][key]["exp_avg"], rtol=1e-4, atol=1e-7
        )


def test_steps_alternate_with_the_optimizers_own():
    """All kinds of step leave weights and state that the others go on from."""
    graphed, ordinary = pair()
    eager = Ordinary(graphed.model, graphed.optimizer)
    other = GraphedStep(graphed.model, graphed.optimizer, *next(batches(1)))
    for i, ((images, labels), subnet) in enumerate(zip(batches(12), subnets(12), strict=True)):
        for parameter in graphed.model.parameters():
            parameter.grad.zero_()
        (graphed, graphed, eager, other)[i % 4](images, labels, subnet)
        ordinary(images, labels, subnet)
        if i == 5:  # as a trainer resumes
            for step in (graphed, ordinary):
                step.optimizer.load_state_dict(step.optimizer.state_dict())
    assert_same_weights(graphed.model, ordinary.model)


def test_freezing_moves_the_update_out_and_back():
    graphed, ordinary = pair()
    for i, ((images, labels), subnet) in enumerate(zip(batches(9), subnets(9), strict=True)):
        if i in (3, 6):
            for step in (graphed, ordinary):
                box = boxes_of(step.model, SPACE.restrict(**FREEZE).largest()) if i == 3 else {}
                step.optimizer.freeze(box)
        graphed(images, labels, subnet)
        ordinary(images, labels, subnet)
        assert (graphed.update_reason is not None) == (3 <= i < 6)
    assert_same_weights(graphed.model, ordinary.model)


def test_gradients_that_somebody_dropped_come_back():
    graphed, ordinary = pair()
    for (images, labels), subnet in zip(batches(4), subnets(4), strict=True):
        graphed.model.zero_grad(set_to_none=True)
        graphed(images, labels, subnet)
        ordinary(images, labels, subnet)
    assert_same_weights(graphed.model, ordinary.model)


def test_an_ordinary_step_in_between_costs_a_new_capture():
    """The tables of the update kernels on the device are then those of the other step."""
    step, _ = pair()
    images, labels = next(batches(1))
    step(images, labels, SPACE.largest())
    before = step._graph
    step(images, labels, SPACE.smallest())
    assert step._graph is before
    step.optimizer.step(active=[boxes_of(step.model, SPACE.smallest())])
    step(images, labels, SPACE.smallest())
    assert step._graph is not before


def test_soft_targets_and_mixed_precision():
    model = supernet(drop_path=0.5)
    images, labels = next(batches(1))
    targets = nn.functional.one_hot(labels, 10).float()
    step = GraphedStep(
        model, optimizer_of(model), images, targets, dtype=torch.bfloat16,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    losses = [float(step(images, targets, SPACE.largest()).loss) for _ in range(30)]
    assert sum(losses[-5:]) / 5 < 0.8 * losses[0]
    assert step.update_reason is None


def test_a_forward_pass_of_any_subnet():
    model = supernet(drop_path=0.5)
    forward = GraphedForward(model, next(batches(1))[0])
    assert "cpu" in forward.reason
    for (images, _), subnet in zip(batches(12), subnets(12), strict=True):
        actual = forward(images, subnet)
        assert model.training
        assert not actual.requires_grad
        model.eval()
        torch.testing.assert_close(actual, model(images, subnet))
        model.train()


def test_what_it_cannot_do_is_said():
    model = supernet()
    images, labels = next(batches(1))
    step = GraphedStep(model, optimizer_of(model), images, labels)
    assert step.reason == "the model is on cpu; a CUDA graph needs a CUDA device"
    subnet = SPACE.smallest()
    with pytest.raises(ValueError, match=r"images are torch.float32 \(4, 1, 8, 8\)"):
        step(images[:4], labels, subnet)
    with pytest.raises(ValueError, match=r"targets are torch.float32"):
        step(images, labels.float(), subnet)
    with pytest.raises(ValueError, match="multiples of 8"):
        step(images, labels, Subnet(12, (1,), (1.0,)))
    with pytest.raises(ValueError, match=r"dtype is torch.float16"):
        GraphedStep(model, optimizer_of(model), images, labels, dtype=torch.float16)
    model.space = SPACE.restrict(depth=2)
    with pytest.raises(ValueError, match="depth is 1; the model's space has 2"):
        step(images, labels, subnet)


@pytest.fixture
def stand_in(monkeypatch):
    """In place of torch.cuda: what is captured does not run, a replay runs it."""
    log = []

    class Stream:
        def __init__(self, device=None):
            pass

        def wait_stream(self, other):
            log.append("wait")

    class CUDAGraph:
        def replay(self):
            log.append("replay")
            self.work()

        def register_generator_state(self, generator):
            log.append(generator)

    @contextlib.contextmanager
    def capture(graph, stream):
        log.append("capture")
        yield

    for name, value in {
        "Stream": Stream, "CUDAGraph": CUDAGraph, "graph": capture,
        "stream": lambda stream: contextlib.nullcontext(),
        "current_stream": lambda device: Stream(),
    }.items():  # fmt: skip
        monkeypatch.setattr(graph.torch.cuda, name, value)
    return log


def test_three_real_calls_then_one_capture_then_replays(stand_in, monkeypatch):
    calls = []
    generator = torch.Generator()
    run = Graph(lambda: calls.append("run"), torch.device("cuda"), (generator,))
    monkeypatch.setattr(graph.torch.cuda.CUDAGraph, "work", lambda self: None, raising=False)
    for _ in range(6):
        run()
    assert run.reason is None
    assert stand_in == [*["wait"] * 6, generator, "capture", *["replay"] * 3]
    assert len(calls) == 4  # three real ones and the one that was captured


def test_a_capture_that_fails_is_told_and_the_function_runs(stand_in):
    calls = []

    def function():
        calls.append("run")
        if len(calls) == 4:
            raise RuntimeError("operation not permitted when stream is capturing")

    run = Graph(function, torch.device("cuda"))
    for _ in range(3):
        run()
    with pytest.warns(UserWarning, match="without a CUDA graph.*not permitted"):
        run()
    run()
    assert run.reason.startswith("the capture failed: operation not permitted")
    assert len(calls) == 6
