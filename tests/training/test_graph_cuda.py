"""The captured graphs themselves, on a CUDA device: their replays against ordinary steps."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch

from growtas import kernels
from growtas.base.distributed import Process
from growtas.schedule import Pass, StepPlan
from growtas.supernet.graph import WARM_UP, GraphedForward
from growtas.training.graph import GraphedStep
from growtas.training.optimizer import AdamW
from growtas.training.step import TrainStep

from .test_graph import batches, subnets
from .training_setup import FREEZE, RATE, SPACE, digits, supernet, train_config

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="a CUDA graph needs a CUDA device"
)
DEVICE, STEPS, LR, SCALE = "cuda", 16, 3e-3, 2.0**10


def boxes_of(model, space):
    extents = model.extents(space.largest())
    return {p: extents[name] for name, p in model.named_parameters()}


class Eager:
    """Ordinary steps of a copy of the model, in a dtype and on a device."""

    def __init__(self, device, dtype, autocast, scaler, inactive):
        self.device, self.dtype = torch.device(device), dtype
        self.model = supernet().to(device, dtype)
        self.optimizer = AdamW(self.model.parameters(), lr=LR, eps=1e-4, inactive=inactive)
        optim, process = replace(RATE, clip_grad=0.5), Process(0, 1, self.device)
        settings = train_config(graph="off")
        self.step = TrainStep(self.model, self.optimizer, digits(), settings, optim, process)
        self.step.scaler, self.step.dtype = scaler, autocast

    def __call__(self, images, labels, subnet, lr_scale, step):
        images, labels = images.to(self.device, self.dtype), labels.to(self.device)
        plan = StepPlan((Pass(subnet),), lr_scale=lr_scale)
        return float(self.step(plan, images, labels, step).objective)


def errors(model, golden):
    """Of all parameters together, and of each: root mean square differences to the golden ones."""
    wanted = dict(golden.named_parameters())
    squares = {
        name: (p.detach().double().cpu() - wanted[name].detach()).square()
        for name, p in model.named_parameters()
    }
    every = torch.cat([square.flatten() for square in squares.values()])
    return every.mean().sqrt(), {name: square.mean().sqrt() for name, square in squares.items()}


@pytest.mark.parametrize("inactive", ["dense", "skip", "masked"])
@pytest.mark.parametrize("dtype", [None, torch.float16])
def test_one_capture_for_all_subnets_and_stages(inactive, dtype):
    """At most twice as far from steps in float64 as ordinary steps are. AdamW's updates do not
    shrink with the gradient, so what a sum in another order changes may grow over 16 of them, and
    no fixed tolerance says whether replays are right."""

    def scaler(device, enabled):
        return torch.amp.GradScaler(device, init_scale=SCALE, growth_interval=5, enabled=enabled)

    scalers = [scaler(DEVICE, dtype is not None) for _ in range(2)]
    eager = Eager(DEVICE, torch.float32, dtype, scalers[1], inactive)
    golden = Eager("cpu", torch.float64, None, scaler("cpu", False), inactive)
    model = supernet().to(DEVICE)
    optimizer = AdamW(model.parameters(), lr=LR, eps=1e-4, inactive=inactive)
    generator = torch.Generator().manual_seed(0)

    def batch():
        images = torch.randn(8, 1, 8, 8, generator=generator)
        return images.to(DEVICE), torch.randint(10, (8,), generator=generator).to(DEVICE)

    step = GraphedStep(model, optimizer, *batch(), clip_grad=0.5, dtype=dtype, scaler=scalers[0])
    rng, captured = random.Random(0), None
    losses = []
    for i in range(STEPS):
        for m, o in ((model, optimizer), *((e.model, e.optimizer) for e in (eager, golden))):
            if i == 8:
                o.restart()
                o.freeze(boxes_of(m, SPACE.restrict(**FREEZE)))
            if i == 12:
                o.freeze({})
        images, labels = batch()
        subnet, lr_scale = SPACE.sample(rng), 1.0 - 0.05 * i
        replayed = float(step(images, labels, subnet, lr_scale).loss)
        losses.append(
            [replayed, *(run(images, labels, subnet, lr_scale, i) for run in (eager, golden))]
        )
        if i == 4:
            captured = step._graph
    assert step.reason is None
    assert step._graph is captured
    assert step.update_reason is None
    if dtype is not None:  # no step was left out
        assert [s.get_scale() for s in scalers] == [SCALE * 2 ** (STEPS // 5)] * 2
    ours, plain, exact = torch.tensor(losses, dtype=torch.float64).unbind(1)
    rounding = torch.finfo(torch.float32).eps
    floor = rounding * exact.norm()
    assert (ours - exact).norm() <= 2 * max((plain - exact).norm(), floor)
    of_graph, of_each = errors(model, golden.model)
    of_eager, allowed = errors(eager.model, golden.model)
    weights = torch.cat([p.detach().flatten() for p in golden.model.parameters()])
    assert of_graph <= 2 * max(of_eager, rounding * weights.square().mean().sqrt())
    # The error of a few weights is more of a draw; one a step behind is far beyond.
    for name, error in of_each.items():
        assert error <= 10 * max(allowed[name], of_eager), name


def test_replays_score_every_subnet():
    model, plain = supernet().cuda(), supernet().eval()
    forward = GraphedForward(model, next(batches(1))[0].cuda())
    count = WARM_UP + 12
    for (images, _), subnet in zip(batches(count), subnets(count), strict=True):
        logits = forward(images.cuda(), subnet).cpu()
        with kernels.use_backend("reference"), torch.no_grad():
            torch.testing.assert_close(logits, plain(images, subnet), rtol=1e-3, atol=1e-3)
    assert forward.reason is None
