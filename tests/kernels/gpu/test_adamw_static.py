"""adamw_static_ in CUDA C++, eagerly and from a CUDA graph, against the reference on the CPU."""

from __future__ import annotations

import math
import random

import pytest
import torch
from kernels.adamw_static_cases import SIDES, Static, boxes_of, random_extents, random_gradients

from growtas import kernels
from growtas.kernels import native_library
from growtas.kernels.adamw.static import adamw_static_

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available() or native_library.cuda_unavailable() is not None,
    reason="the library for CUDA devices needs a CUDA device and nvcc when growtas is installed",
)


def assert_same(ours, theirs):
    for got, want in zip(ours.arrays(), theirs.arrays(), strict=True):
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a.cpu(), b, rtol=2e-5, atol=1e-6)
    torch.testing.assert_close(ours.table.steps.cpu(), theirs.table.steps)
    torch.testing.assert_close(ours.table.norm.cpu(), theirs.table.norm, rtol=1e-5, atol=0.0)


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("inactive", ["dense", "skip", "masked"])
@pytest.mark.parametrize("graphed", [False, True])
def test_steps_are_those_of_the_reference(inactive, groups, graphed):
    """Other subnets, frozen boxes, resets, rates and infinite gradients, from one capture."""
    ours, theirs = Static(inactive, device="cuda"), Static(inactive)
    rng, generator = random.Random(0), torch.Generator().manual_seed(0)
    extents = torch.zeros(groups, 3, 5, dtype=torch.int32, device="cuda")
    scale = torch.tensor(64.0)
    scale_there = scale.cuda()
    graph = torch.cuda.CUDAGraph()
    if graphed:
        adamw_static_(ours.table, extents, largest=2.0, scale=scale_there)  # nothing is sampled
        with torch.cuda.graph(graph):
            adamw_static_(ours.table, extents, largest=2.0, scale=scale_there)
    for i in range(8):
        table = random_extents(rng, groups)
        gradients = [64.0 * g for g in random_gradients(table, generator)]
        if i == 3:
            gradients[2][0] = math.inf
        boxes = boxes_of(random_extents(rng, 1))[0] if i >= 4 else [None] * len(SIDES)
        for case in (ours, theirs):
            case.table.write_frozen(boxes)
            if i == 5:
                shells = [[((1,) * len(s), 4), (s, 2)] for s, _ in SIDES]
                case.table.write_shells(shells)
            case.write(gradients, blend=0.3, lr_scale=1.0 - 0.1 * i)
        extents.copy_(table)
        if graphed:
            graph.replay()
        else:
            adamw_static_(ours.table, extents, largest=2.0, scale=scale_there)
        with kernels.use_backend("reference"):
            adamw_static_(theirs.table, table, largest=2.0, scale=scale)
        assert float(ours.table.found_inf) == (i == 3)
        if i != 3:
            assert_same(ours, theirs)
