"""GraphedStep and GraphedForward: the numbers of the ordinary loop; when they capture and when not.

Here they run without a CUDA device, so the capture itself is tested on a stand-in.
"""

from __future__ import annotations

import contextlib
import math
import random
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from growtas.base.distributed import Process
from growtas.schedule import Pass, StepPlan
from growtas.space import Subnet
from growtas.supernet.graph import Graph, GraphedForward
from growtas.training import graph, static_update
from growtas.training.graph import GraphedStep
from growtas.training.optimizer import AdamW, update
from growtas.training.step import TrainStep

from .training_setup import FREEZE, RATE, SPACE, digits, supernet, train_config

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

    def __init__(self, model, optimizer, clip_grad=None, scaler=None, dtype=None, average=None):
        self.model, self.optimizer = model, optimizer
        self.scaler = scaler if scaler is not None else torch.amp.GradScaler("cpu", enabled=False)
        optim = replace(RATE, clip_grad=clip_grad)
        settings = train_config(graph="off")
        self.step = TrainStep(model, optimizer, digits(), settings, optim, Process(0, 1, CPU))
        self.step.scaler, self.step.dtype, self.step.average = self.scaler, dtype, average
        self.steps = 0

    def __call__(self, images, labels, subnet, lr_scale=1.0):
        plan = StepPlan((Pass(subnet),), lr_scale=lr_scale)
        self.steps += 1
        return self.step(plan, images, labels, self.steps - 1).objective


def subnets(count):
    """Some steps of depth 1 only, so that the second block begins late."""
    rng = random.Random(3)
    shallow = SPACE.restrict(depth=1)
    return [(shallow if i < 4 else SPACE).sample(rng) for i in range(count)]


def pair(inactive="dense", clip_grad=None, **options):
    """The graphed and the ordinary step, on models of their own; the first batch."""
    return [
        kind(inactive, clip_grad=clip_grad, **options) for kind in (graphed_step, ordinary_step)
    ]


def assert_same_weights(one, other, rtol=2e-5, atol=1e-6):
    for (name, a), b in zip(one.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=rtol, atol=atol, msg=lambda m, n=name: f"{n}: {m}")


def poison(step, subnet):
    """NaN in all gradients, and in the weights and moments outside of the subnet; how to undo the
    latter two."""
    saved = []
    boxes = boxes_of(step.model, subnet)
    with torch.no_grad():
        for p in step.model.parameters():
            p.grad.fill_(math.nan)
            outside = torch.ones_like(p, dtype=torch.bool)
            if p in boxes:
                outside[tuple(slice(0, side) for side in boxes[p])] = False
            for array in (p.data, *(step.optimizer.begin(p)[k] for k in ("exp_avg", "exp_avg_sq"))):
                saved.append((array, outside, array[outside].clone()))
                array[outside] = math.nan
    return saved


@pytest.mark.parametrize("clip_grad", [None, 0.5])
@pytest.mark.parametrize("inactive", ["dense", "skip", "masked"])
def test_two_hundred_subnets_in_a_row_are_the_trainers(inactive, clip_grad):
    """Weights, losses, moments and step counts; every step has another subnet and rate, some
    another frozen box, others begin with forgotten moments. Gradients hold NaN before each step."""
    graphed, ordinary = pair(inactive, clip_grad)
    start = graphed.model.blocks[1].mlp.fc1.weight.detach().clone()
    assert graphed.update_reason is None
    for i, ((images, labels), subnet) in enumerate(zip(batches(200), subnets(200), strict=True)):
        for step in (graphed, ordinary):
            largest, small = (
                boxes_of(step.model, space.largest()) for space in (SPACE, SPACE.restrict(**FREEZE))
            )
            if i in (40, 120):
                step.optimizer.freeze(small)
            if i in (60, 140):
                step.optimizer.freeze({})
            if i == 80:
                step.optimizer.reset(small, largest)
            if i == 160:
                step.optimizer.restart()
        for p in graphed.model.parameters():
            p.grad.fill_(math.nan)
        scale = 1.0 - 0.003 * i
        loss = graphed(images, labels, subnet, scale).loss.clone()
        want = ordinary(images, labels, subnet, scale).detach()
        torch.testing.assert_close(loss, want, rtol=1e-3, atol=1e-3)
        if i == 3:  # not sampled yet: not decayed either
            assert torch.equal(graphed.model.blocks[1].mlp.fc1.weight, start)
        if i == 20:  # before rounding has grown
            assert_same_weights(graphed.model, ordinary.model)
    assert_same_weights(graphed.model, ordinary.model, rtol=1e-2, atol=1e-4)
    assert not torch.equal(graphed.model.blocks[1].mlp.fc1.weight, start)
    states = [s.optimizer.state_dict()["state"] for s in (graphed, ordinary)]
    assert states[0].keys() == states[1].keys()
    for key, state in states[0].items():
        assert state.get("shells") == states[1][key].get("shells")
        if "count" in state:
            assert torch.equal(state["count"], states[1][key]["count"])


def test_what_a_masked_step_does_not_sample_may_be_nan():
    """And keeps its bits: in weights, moments and gradients."""
    graphed, ordinary = pair("masked", 0.5)
    for (images, labels), subnet in zip(batches(12), subnets(12), strict=True):
        saved = poison(graphed, subnet)
        graphed(images, labels, subnet)
        for array, outside, values in saved:
            assert array[outside].isnan().all()
            array[outside] = values
        ordinary(images, labels, subnet)
    assert_same_weights(graphed.model, ordinary.model)


def test_steps_alternate_with_the_optimizers_own():
    """All kinds of step leave weights and state that the others go on from."""
    graphed, ordinary = pair()
    other = GraphedStep(graphed.model, graphed.optimizer, *next(batches(1)))
    eager = Ordinary(graphed.model, graphed.optimizer)
    for i, ((images, labels), subnet) in enumerate(zip(batches(12), subnets(12), strict=True)):
        for parameter in graphed.model.parameters():
            parameter.grad.zero_()
        (graphed, graphed, eager, other)[i % 4](images, labels, subnet)
        ordinary(images, labels, subnet)
        if i == 5:  # as a trainer resumes
            for step in (graphed, ordinary):
                step.optimizer.load_state_dict(step.optimizer.state_dict())
    assert_same_weights(graphed.model, ordinary.model)


def test_gradients_that_somebody_dropped_come_back():
    graphed, ordinary = pair()
    for (images, labels), subnet in zip(batches(4), subnets(4), strict=True):
        graphed.model.zero_grad(set_to_none=True)
        graphed(images, labels, subnet)
        ordinary(images, labels, subnet)
    assert_same_weights(graphed.model, ordinary.model)


@pytest.mark.parametrize("inactive", ["dense", "skip", "masked"])
def test_several_subnets_in_one_step(inactive):
    """As two passes, each on half of the images, whose gradients are summed."""
    graphed = graphed_step(groups=2, clip_grad=0.5, inactive=inactive)
    ordinary = ordinary_step(clip_grad=0.5, inactive=inactive)
    other = subnets(22)
    for i, ((images, labels), one) in enumerate(zip(batches(20), subnets(20), strict=True)):
        both = (one, other[i + 2])
        loss = graphed(images, labels, both).loss.clone()
        ordinary.step._zero_grad()
        parts = zip(images.chunk(2), labels.chunk(2), both, strict=True)
        want = sum(
            ordinary.step.run_passes(StepPlan((Pass(subnet, scale=0.5),)), *part, 0).objective
            for *part, subnet in parts
        )
        update(ordinary.model, ordinary.optimizer, ordinary.scaler, both, clip_grad=0.5)
        torch.testing.assert_close(loss, want.detach(), rtol=1e-4, atol=1e-5)
    assert_same_weights(graphed.model, ordinary.model, rtol=1e-4, atol=1e-5)
    images, labels = next(batches(1))
    with pytest.raises(ValueError, match="1 subnets for 2 groups"):
        graphed(images, labels, one)
    with pytest.raises(ValueError, match="a batch of 8 cannot be divided in 3 equal groups"):
        graphed_step(groups=3)


def test_averages_follow_as_timms_do():
    timm = pytest.importorskip("timm.utils")
    model = supernet()
    average = timm.ModelEmaV3(model, decay=0.9, use_warmup=True)
    graphed = GraphedStep(model, optimizer_of(model), *next(batches(1)), average=average.module)
    other = supernet()
    ordinary = Ordinary(
        other, optimizer_of(other), average=timm.ModelEmaV3(other, decay=0.9, use_warmup=True)
    )
    for i, ((images, labels), subnet) in enumerate(zip(batches(12), subnets(12), strict=True)):
        graphed(images, labels, subnet, decay=average.get_decay(i + 1))
        ordinary(images, labels, subnet)
        assert_same_weights(average.module, ordinary.step.average.module)
    moved = average.module.head.weight - model.head.weight
    assert moved.abs().max() > 1e-4


def test_half_precision_with_a_loss_scale_on_the_device():
    """Scale, growth and steps left out are GradScaler's; one batch is too large for float16."""
    settings = {"init_scale": 2.0**10, "growth_interval": 4}
    scalers = [torch.amp.GradScaler("cpu", **settings) for _ in range(2)]
    graphed, ordinary = (
        step(dtype=torch.float16, scaler=scaler, clip_grad=0.5)
        for step, scaler in zip((graphed_step, ordinary_step), scalers, strict=True)
    )
    scales = []
    for i, ((images, labels), subnet) in enumerate(zip(batches(12), subnets(12), strict=True)):
        batch = images * (1e6 if i == 6 else 1.0)
        graphed(batch, labels, subnet)
        ordinary(batch, labels, subnet)
        scales.append(scalers[0].get_scale())
        assert scales[-1] == scalers[1].get_scale()
    assert scales[3] == 2.0**11  # four good steps
    assert scales[6] == 2.0**10  # one left out
    assert_same_weights(graphed.model, ordinary.model, rtol=5e-3, atol=5e-4)
    states = [step.optimizer.state_dict()["state"] for step in (graphed, ordinary)]
    counts = [[state["shells"] for _, state in sorted(own.items())] for own in states]
    assert counts[0] == counts[1]
    assert max(n for shells in counts[0] for _, n in shells) == 11


def graphed_step(inactive="dense", **options):
    model = supernet()
    return GraphedStep(model, optimizer_of(model, inactive), *next(batches(1)), **options)


def ordinary_step(inactive="dense", **options):
    model = supernet()
    return Ordinary(model, optimizer_of(model, inactive), **options)


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


def test_where_adamw_cannot_step_on_the_device_it_follows(monkeypatch):
    """Nine parts of a parameter are one too many; the reason goes away with them."""
    graphed, ordinary = pair()
    for i, ((images, labels), subnet) in enumerate(zip(batches(8), subnets(8), strict=True)):
        for step in (graphed, ordinary):
            if i == 3:
                for side in range(1, 9):
                    step.optimizer.reset({}, {step.model.head.weight: (side, side)})
            if i == 6:
                step.optimizer.restart()
        graphed(images, labels, subnet)
        ordinary(images, labels, subnet)
        assert (graphed.update_reason is not None) == (3 <= i < 6)
    assert_same_weights(graphed.model, ordinary.model)
    model = supernet()
    monkeypatch.setattr(static_update, "static_unavailable", lambda parameter: "nothing here")
    step = GraphedStep(model, optimizer_of(model), *next(batches(1)), average=supernet())
    step(*next(batches(1)), SPACE.largest(), decay=0.0)
    assert step.update_reason == "nothing here"
    assert_same_weights(model, step_average(step))


def step_average(step):
    """The averaged model, from the step's tensors."""
    model = supernet()
    for p, q in zip(model.parameters(), step.model.parameters(), strict=True):
        p.data = step._averages[q]
    return model


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
    with pytest.raises(ValueError, match=r"dtype is torch.float16, which needs a loss scale"):
        GraphedStep(model, optimizer_of(model), images, labels, dtype=torch.float16)
    with pytest.raises(TypeError, match="no option clip"):
        GraphedStep(model, optimizer_of(model), images, labels, clip=1.0)


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
    def capture(graph, stream, capture_error_mode):
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


class Counting(Graph):
    """On the stand-in: a capture is counted, a replay runs the function."""

    captures = 0

    def __init__(self, function, device, generators=()):
        super().__init__(function, torch.device("cuda"), generators)

    def _capture(self):
        Counting.captures += 1
        self._graph = SimpleNamespace(replay=self.function)


@pytest.mark.parametrize("inactive", ["dense", "skip", "masked"])
def test_one_capture_serves_stages_freezing_and_forgotten_state(stand_in, monkeypatch, inactive):
    monkeypatch.setattr(graph, "Graph", Counting)
    monkeypatch.setattr(Counting, "captures", 0)
    graphed, ordinary = pair(inactive, 0.5)
    everything = SPACE.restrict(**FREEZE)
    for i, ((images, labels), subnet) in enumerate(zip(batches(24), subnets(24), strict=True)):
        for step in (graphed, ordinary):
            small = boxes_of(step.model, everything.largest())
            if i == 8:  # a stage that asks for fresh moments of what it adds
                step.optimizer.reset(small, boxes_of(step.model, SPACE.largest()))
            if i == 12:  # GrowTAS+
                step.optimizer.restart()
                step.optimizer.freeze(small)
            if i == 16:
                step.optimizer.load_state_dict(step.optimizer.state_dict())
            if i == 20:
                step.optimizer.freeze({})
                step.optimizer.param_groups[0]["lr"] *= 0.5
        graphed(images, labels, subnet, 1.0 - 0.02 * i)
        ordinary(images, labels, subnet, 1.0 - 0.02 * i)
    assert Counting.captures == 1
    assert_same_weights(graphed.model, ordinary.model, rtol=1e-4)
