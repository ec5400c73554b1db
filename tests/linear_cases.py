"""Operands of linear, and what must hold of its results on every backend."""

from __future__ import annotations

import oracles
import torch
from oracles import assert_within_budget, bits_equal

from growtas import kernels


def case(in_features, out_features, *, rows=(3, 7), in_max=None, shape=None, flat_bias=False,
         residual=False, seed=0, device="cpu"):  # fmt: skip
    """Random operands; parameters are NaN outside the slice, so reading there shows. `shape` is the
    weight's but for its columns."""
    g = torch.Generator().manual_seed(seed)
    shape = (*(shape or (out_features + 3,)), in_max or in_features + 5)
    weight = torch.full(shape, float("nan"))
    parts = 1 if len(shape) == 2 else shape[0]
    values = torch.randn(parts, out_features, in_features, generator=g) * in_features**-0.5
    weight.view(parts, -1, shape[-1])[:, :out_features, :in_features] = values
    bias = torch.full(shape[:-1], float("nan"))
    if flat_bias:
        bias = bias.flatten()
        bias[: parts * out_features] = torch.randn(parts * out_features, generator=g)
    else:
        bias.view(parts, -1)[:, :out_features] = torch.randn(parts, out_features, generator=g)
    y = (*rows, parts * out_features)
    inputs = {
        "x": torch.randn(*rows, in_features, generator=g),
        "weight": weight,
        "bias": bias,
        "residual": torch.randn(y, generator=g) if residual else None,
    }
    on_device = {k: None if v is None else v.to(device) for k, v in inputs.items()}
    return on_device, torch.randn(y, generator=g).to(device)


def check(inputs, cotangent, dtype, *, epsilons=2, **arguments):
    """Outputs and all gradients against float64, within plain PyTorch's budget."""
    stored = {k: None if v is None else v.to(dtype) for k, v in inputs.items()}
    golden, plain, actual = (
        oracles.outputs_and_gradients(function, stored, cotangent.to(dtype), to, **arguments)
        for function, to in (
            (oracles.linear, torch.float64), (oracles.linear, dtype), (kernels.linear, dtype)
        )
    )  # fmt: skip
    assert_within_budget(actual, golden, plain, dtype, epsilons=epsilons)
    return actual


def check_accumulation(shape, *, device="cpu", rows=(2, 7)):
    """Gradients are added inside the slice of 6 rows and 9 columns, and every bit outside stays."""
    inputs, cotangent = case(9, 6, rows=rows, shape=shape, device=device)
    weight, bias = (torch.nn.Parameter(inputs[name]) for name in ("weight", "bias"))
    accumulator = kernels.GradientAccumulator([weight, bias])
    sentinels = {}
    for parameter in (weight, bias):
        parameter.grad.copy_(torch.randn(parameter.shape))
        sentinels[parameter] = parameter.grad.clone()
    before = weight.detach().clone()
    x = inputs["x"].requires_grad_()
    kernels.linear(x, weight, bias, out_features=6, gradients=accumulator).backward(cotangent)
    dense = oracles.outputs_and_gradients(kernels.linear, inputs, cotangent, out_features=6)
    for parameter, name in ((weight, "weight"), (bias, "bias")):
        outside = dense[name] == 0
        assert outside.any()
        assert bits_equal(parameter.grad[outside], sentinels[parameter][outside])
        torch.testing.assert_close(parameter.grad, sentinels[parameter] + dense[name])
    torch.testing.assert_close(x.grad, dense["x"])
    assert bits_equal(weight.detach(), before)
    assert accumulator.dirty(weight) == ((6, 9) if len(shape) == 1 else (*shape, 9))

    accumulator.zero_()
    assert torch.all(weight.grad.view(-1, 10, weight.shape[-1])[:, :6, :9] == 0)
    assert accumulator.dirty(weight) is None
