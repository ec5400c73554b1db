"""forward_static on the Triton kernels: any subnet from the same launches. On a CUDA device, else
on CPU tensors in Triton's interpreter."""

from __future__ import annotations

import pytest
import torch
from poison import poison_uninitialised_memory

from growtas import Subnet, kernels
from growtas.kernels import dispatch

from .test_several import assert_gradients, one_by_one, poison, read
from .test_static import Steps, close, described

SUBNETS = (
    Subnet(24, (2,), (3.5,)),
    Subnet(56, (4, 4, 4, 4), (4.0, 4.0, 4.0, 4.0)),
    Subnet(32, (1, 3, 2), (2.0, 1.5, 4.0)),
)


@pytest.fixture
def steps(monkeypatch):
    pytest.importorskip("triton")
    poison_uninitialised_memory(monkeypatch)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(dispatch, "_cache", {})
    steps = Steps(torch.float32, batch=1)
    for model in (steps.model, steps.plain):
        model.to(device)
    steps.clean = {name: value.to(device) for name, value in steps.clean.items()}
    steps.images, steps.cotangent = steps.images.to(device), steps.cotangent.to(device)
    steps.extents = steps.model.new_extents()
    steps.accumulator = kernels.GradientAccumulator(steps.model.parameters())
    for parameter in steps.model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    return steps


@pytest.fixture
def launches(monkeypatch):
    """Kernels, grids and arguments of all launches, in order; of tensors not the numbers."""
    from triton.runtime.interpreter import GridExecutor
    from triton.runtime.jit import JITFunction

    calls = []

    def record(function, arguments, options):
        constants = {name: described(value) for name, value in options.items()}
        calls.append((function.__name__, described(arguments), constants))

    interpreted, compiled = GridExecutor.__call__, JITFunction.run

    def interpret(executor, *arguments, **options):
        record(executor.fn, arguments, {**options, "grid": executor.grid})
        return interpreted(executor, *arguments, **options)

    def run(function, *arguments, **options):
        record(function, arguments, options)
        return compiled(function, *arguments, **options)

    monkeypatch.setattr(GridExecutor, "__call__", interpret)
    monkeypatch.setattr(JITFunction, "run", run)
    return calls


def test_any_subnet_from_the_same_launches(steps, launches):
    """NaN in everything the subnet lacks; logits and gradients of the ordinary path on the
    reference backend; and the same launches every time."""
    traces = []
    for subnet in SUBNETS:
        launches.clear()
        with kernels.use_backend("triton"):
            logits = steps.static(subnet)
        traces.append(list(launches))
        with kernels.use_backend("reference"):
            close(logits, steps.ordinary(subnet), 1e-5)
        plain = dict(steps.plain.named_parameters())
        for name, parameter in steps.model.named_parameters():
            box, grad = steps.inner[name], parameter.grad
            if box is not None:
                close(grad[box], plain[name].grad[box], 1e-4)
                grad[box] = 7.0
            assert torch.all(grad == 7.0), f"{name}: a gradient outside of {subnet}"
    assert len(traces[0]) > 60
    for trace in traces[1:]:
        assert trace == traces[0]


def test_two_subnets_from_the_launches_of_one(steps, launches):
    """Logits and gradients of one by one, in as many launches as one subnet takes; and the same
    launches for every pair. `Supernet.forward` on a list runs this way."""
    counts = []
    traces = []
    steps.images = torch.cat((steps.images, steps.images.flip(-1)))
    steps.cotangent = torch.cat((steps.cotangent, steps.cotangent.flip(-1)))
    for subnets in (SUBNETS[1:2], SUBNETS[:2], (SUBNETS[2], SUBNETS[0])):
        masks = read(steps.model, subnets)
        poison(steps.model, steps.clean, masks)
        launches.clear()
        with kernels.use_backend("triton"):
            logits = steps.model(steps.images, subnets, gradients=steps.accumulator)
            logits.backward(steps.cotangent)
        counts.append(len(launches))
        traces.append(list(launches))
        with kernels.use_backend("reference"):
            close(logits.detach(), one_by_one(steps, subnets), 1e-5)
        assert_gradients(steps, masks, 1e-4)
    assert traces[1] == traces[2]
    assert counts[0] == counts[1]
