"""adamw_static_ in CUDA C++ and in Triton against the reference on the CPU: eagerly, and on a CUDA
device from a graph too."""

from __future__ import annotations

import math
import random

import pytest
import torch
from kernels.adamw_static_cases import (
    COLUMNS,
    SIDES,
    Static,
    boxes_of,
    leading,
    random_extents,
    random_gradients,
)
from oracles import bits_equal

from growtas import kernels
from growtas.kernels import native_library
from growtas.kernels.adamw import gpu, native
from growtas.kernels.adamw.api import adamw_static_


@pytest.fixture(params=["cuda", "triton"])
def step(request, device):
    """An implementation's ``step_static_``."""
    if request.param == "triton":
        return gpu.step_static_
    if device != "cuda" or native_library.cuda_unavailable() is not None:
        pytest.skip("needs a CUDA device, and nvcc when growtas was installed")
    return native.step_static_


def assert_same(ours, theirs):
    for got, want in zip(ours.arrays(), theirs.arrays(), strict=True):
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a.cpu(), b, rtol=2e-5, atol=1e-6)
    torch.testing.assert_close(ours.table.steps.cpu(), theirs.table.steps)
    torch.testing.assert_close(ours.table.norm.cpu(), theirs.table.norm, rtol=1e-5, atol=0.0)


@pytest.mark.parametrize("subnets", [1, 3])
@pytest.mark.parametrize("inactive", ["dense", "skip", "masked"])
@pytest.mark.parametrize("graphed", [False, True])
def test_steps_are_those_of_the_reference(step, device, inactive, subnets, graphed):
    """Other subnets, frozen boxes, resets, rates and infinite gradients, from one capture."""
    if graphed and device != "cuda":
        pytest.skip("a CUDA graph needs a CUDA device")
    ours, theirs = Static(inactive, shadows=True, device=device), Static(inactive)
    rng, generator = random.Random(0), torch.Generator().manual_seed(0)
    extents = torch.zeros(subnets, 3, COLUMNS, dtype=torch.int32, device=device)
    scale = torch.tensor(64.0)
    scale_there = scale.to(device)
    if graphed:
        graph = torch.cuda.CUDAGraph()
        step(ours.table, extents, 2.0, scale_there)  # nothing is sampled
        with torch.cuda.graph(graph):
            step(ours.table, extents, 2.0, scale_there)
    for i in range(8):
        table = random_extents(rng, subnets)
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
            step(ours.table, extents, 2.0, scale_there)
        with kernels.use_backend("reference"):
            adamw_static_(theirs.table, table, largest=2.0, scale=scale)
        assert float(ours.table.found_inf) == (i == 3)
        if i != 3:
            assert_same(ours, theirs)
        for row in ours.rows:
            moved = row.exp_avg_sq != 0
            # Triton's interpreter cuts bfloat16 off where a device rounds.
            torch.testing.assert_close(
                row.shadow[moved].float(), row.parameter[moved], rtol=2**-7, atol=0.0
            )


@pytest.mark.parametrize("inactive", ["dense", "masked"])
def test_without_norm_and_averages_what_does_not_move_keeps_its_bits(step, device, inactive):
    """NaN in a frozen box and, masked, outside of what was sampled."""
    case = Static(inactive, averages=False, device=device)
    rng, generator = random.Random(2), torch.Generator().manual_seed(2)
    extents, frozen = random_extents(rng, 2), boxes_of(random_extents(rng, 1))[0]
    case.write([torch.randn(shape, generator=generator) for shape, _ in SIDES])
    case.table.write_frozen(frozen)
    before, moving = [], []
    for i, row in enumerate(case.rows):
        sampled = torch.zeros(row.parameter.shape, dtype=torch.bool)
        for boxes in boxes_of(extents):
            sampled[leading(boxes[i])] = True
        mask = sampled if inactive == "masked" else torch.full_like(sampled, bool(sampled.any()))
        mask[leading(frozen[i])] = False
        moving.append(mask)
        for array in (row.parameter, row.gradient, row.exp_avg, row.exp_avg_sq):
            array[~mask.to(device)] = math.nan
        before.append([array.cpu() for array in row.arrays[:4]])
    before = [[array.clone() for array in arrays] for arrays in before]
    step(case.table, extents.to(device), None, None)
    for row, mask, old in zip(case.rows, moving, before, strict=True):
        for array, was in zip(row.arrays[:4], old, strict=True):
            assert bits_equal(array.cpu()[~mask], was[~mask])
        assert row.parameter.cpu()[mask].isfinite().all()
        assert not mask.any() or not torch.equal(row.parameter.cpu()[mask], old[0][mask])
