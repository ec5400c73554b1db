"""The captured graph itself, on a CUDA device: its replays against ordinary steps on the CPU."""

from __future__ import annotations

import pytest
import torch

from growtas import kernels
from growtas.supernet.graph import WARM_UP, GraphedForward
from growtas.training.graph import GraphedStep

from .test_graph import Ordinary, assert_same_weights, batches, optimizer_of, subnets
from .training_setup import supernet

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
STEPS = 20


@pytest.mark.parametrize("inactive", ["dense", "masked"])
def test_replays_train_every_subnet(inactive):
    model, plain = supernet().cuda(), supernet()
    images, labels = next(batches(1))
    graphed = GraphedStep(
        model, optimizer_of(model, inactive), images.cuda(), labels.cuda(), clip_grad=0.5
    )
    ordinary = Ordinary(plain, optimizer_of(plain, inactive), clip_grad=0.5)
    for (images, labels), subnet in zip(batches(STEPS), subnets(STEPS), strict=True):
        loss = graphed(images.cuda(), labels.cuda(), subnet).loss.cpu()
        with kernels.use_backend("reference"):
            want = ordinary(images, labels, subnet).detach()
        torch.testing.assert_close(loss, want, rtol=1e-3, atol=1e-3)
    assert graphed.reason is None
    assert graphed.update_reason is None
    assert_same_weights(model.cpu(), plain, rtol=1e-3, atol=1e-4)


def test_replays_score_every_subnet():
    model, plain = supernet().cuda(), supernet().eval()
    forward = GraphedForward(model, next(batches(1))[0].cuda())
    count = WARM_UP + 12
    for (images, _), subnet in zip(batches(count), subnets(count), strict=True):
        logits = forward(images.cuda(), subnet).cpu()
        with kernels.use_backend("reference"), torch.no_grad():
            torch.testing.assert_close(logits, plain(images, subnet), rtol=1e-3, atol=1e-3)
    assert forward.reason is None
