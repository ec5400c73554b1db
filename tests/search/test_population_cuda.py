"""A population scored from one captured graph, on a CUDA device: the scores of the CPU."""

from __future__ import annotations

import pytest
import torch

from growtas import kernels
from growtas.search import Evaluator

from .test_population import data, population, supernet  # noqa: F401

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")


def test_replays_score_a_population(supernet, data):  # noqa: F811
    subnets = population(16)
    with kernels.use_backend("reference"):
        want = Evaluator(supernet, *data).score_many(subnets)
    images, labels = data
    evaluator = Evaluator(supernet.cuda(), images, labels, batch_size=12, groups=3)
    for score, expected in zip(evaluator.score_many(subnets), want, strict=True):
        assert score.count == expected.count
        assert score.loss == pytest.approx(expected.loss, rel=1e-2)
    assert evaluator._graph.forward.reason is None
