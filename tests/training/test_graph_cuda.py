"""The captured graphs themselves, on a CUDA device: their replays against ordinary steps."""

from __future__ import annotations

import random

import pytest
import torch

from growtas import kernels
from growtas.kernels import GradientAccumulator
from growtas.schedule import Pass, StepPlan
from growtas.supernet.graph import WARM_UP, GraphedForward
from growtas.training.distributed import Process
from growtas.training.graph import GraphedStep
from growtas.training.optimizer import AdamW
from growtas.training.passes import PassRunner
from growtas.training.update import update

from .test_graph import batches, subnets
from .training_setup import FREEZE, SPACE, supernet

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="a CUDA graph needs a CUDA device"
)


def boxes_of(model, space):
    extents = model.extents(space.largest())
    return {p: extents[name] for name, p in model.named_parameters()}


@pytest.mark.parametrize("inactive", ["dense", "skip", "masked"])
@pytest.mark.parametrize("dtype", [None, torch.float16])
def test_one_capture_for_all_subnets_and_stages(inactive, dtype):
    models = [supernet().cuda() for _ in range(2)]
    optimizers = [AdamW(m.parameters(), lr=3e-3, eps=1e-4, inactive=inactive) for m in models]
    scalers = [
        torch.amp.GradScaler("cuda", init_scale=2.0**10, growth_interval=5, enabled=bool(dtype))
        for _ in models
    ]
    generator = torch.Generator().manual_seed(0)

    def batch():
        images = torch.randn(8, 1, 8, 8, generator=generator)
        return images.cuda(), torch.randint(10, (8,), generator=generator).cuda()

    step = GraphedStep(
        models[0], optimizers[0], *batch(), clip_grad=0.5, dtype=dtype, scaler=scalers[0]
    )
    gradients = GradientAccumulator(models[1].parameters())
    runner = PassRunner(
        models[1], models[1], Process(0, 1, torch.device("cuda")),
        dtype=dtype, scale_loss=scalers[1].scale, gradients=gradients,
    )  # fmt: skip
    rng, captured = random.Random(0), None
    for i in range(16):
        for model, optimizer in zip(models, optimizers, strict=True):
            if i == 8:
                optimizer.restart()
                optimizer.freeze(boxes_of(model, SPACE.restrict(**FREEZE)))
            if i == 12:
                optimizer.freeze({})
        images, labels = batch()
        subnet = SPACE.sample(rng)
        loss = step(images, labels, subnet, 1.0 - 0.05 * i).loss.clone()
        gradients.zero_()
        want = runner.run(StepPlan((Pass(subnet),)), images, labels, i).objective
        update(
            models[1], optimizers[1], scalers[1], [subnet],
            lr_scale=1.0 - 0.05 * i, clip_grad=0.5,
        )  # fmt: skip
        torch.testing.assert_close(loss, want.detach(), rtol=1e-2, atol=1e-2)
        if i == 4:
            captured = step._graph
    assert step.reason is None
    assert step._graph is captured
    assert step.update_reason is None
    assert scalers[0].get_scale() == scalers[1].get_scale()
    for (name, a), b in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-2, atol=2e-3, msg=lambda m, n=name: f"{n}: {m}")


def test_replays_score_every_subnet():
    model, plain = supernet().cuda(), supernet().eval()
    forward = GraphedForward(model, next(batches(1))[0].cuda())
    count = WARM_UP + 12
    for (images, _), subnet in zip(batches(count), subnets(count), strict=True):
        logits = forward(images.cuda(), subnet).cpu()
        with kernels.use_backend("reference"), torch.no_grad():
            torch.testing.assert_close(logits, plain(images, subnet), rtol=1e-3, atol=1e-3)
    assert forward.reason is None
