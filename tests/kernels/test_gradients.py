"""GradientAccumulator: what it zeroes, what it refuses, and what may surround it."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from growtas import kernels


def parameter():
    return torch.nn.Parameter(torch.randn(8, 6, generator=torch.Generator().manual_seed(0)))


def test_zero_also_clears_what_autograd_wrote_elsewhere():
    """A regulariser on the whole weight, or a pass without the accumulator."""
    weight = parameter()
    accumulator = kernels.GradientAccumulator([weight])
    x = torch.randn(3, 6)
    for _ in range(3):
        accumulator.zero_()
        loss = kernels.linear(x, weight, out_features=5, gradients=accumulator).sum()
        (loss + 0.5 * weight.square().sum()).backward()
        torch.testing.assert_close(weight.grad[5:], weight.detach()[5:])
    kernels.linear(x, weight).sum().backward()
    accumulator.zero_()
    assert torch.all(weight.grad == 0)


def test_zero_visits_only_what_the_operators_wrote():
    weight, x = parameter(), torch.randn(3, 6)
    accumulator = kernels.GradientAccumulator([weight])
    weight.grad[7] = 5.0
    kernels.linear(x, weight, out_features=5, gradients=accumulator).sum().backward()
    accumulator.zero_()
    assert torch.all(weight.grad[7] == 5.0)
    assert torch.all(weight.grad[:7] == 0)


def test_activation_checkpointing():
    weight, x = parameter(), torch.randn(3, 6, requires_grad=True)
    accumulator = kernels.GradientAccumulator([weight])

    def layer(inputs):
        return kernels.linear(inputs, weight, out_features=5, gradients=accumulator)

    checkpoint(layer, x, use_reentrant=False).sum().backward()
    torch.testing.assert_close(weight.grad[:5], x.detach().sum(0).expand(5, 6))


def test_parameters_can_be_copied_and_outlive_it():
    weight = parameter()
    accumulator = kernels.GradientAccumulator([weight])
    twin = copy.deepcopy(weight)
    del accumulator
    for p in (weight, twin):
        p.square().sum().backward()
    torch.testing.assert_close(weight.grad, twin.grad)


def test_wrong_parameters_are_refused():
    with pytest.raises(TypeError, match=r"pass model.parameters\(\)"):
        kernels.GradientAccumulator(torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match="leaf tensors that require grad"):
        kernels.GradientAccumulator([torch.zeros(3)])
    accumulator, other = kernels.GradientAccumulator([parameter()]), parameter()
    y = kernels.linear(torch.randn(3, 6), other, gradients=accumulator).sum()
    with pytest.raises(ValueError, match="not among those"):
        y.backward()
