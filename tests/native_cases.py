"""Inputs and comparisons that the tests of the compiled operators share."""

from __future__ import annotations

import torch
from oracles import assert_within_budget, outputs_and_gradients

from growtas import kernels

FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def attention_inputs(grid, class_token, num_heads, head_dim, *, reach=3, batch=2, relative=True):
    generator = torch.Generator().manual_seed(head_dim * 100 + grid[0] * 10 + grid[1])
    tokens = grid[0] * grid[1] + class_token
    shape = (batch, tokens, num_heads * head_dim)
    inputs = {"qkv": torch.randn(*shape[:2], 3 * shape[2], generator=generator).double()}
    inputs["tables"] = None
    if relative:
        tables = torch.randn(4, 2 * reach + 2, head_dim, generator=generator).double()
        inputs["tables"] = tables / head_dim**0.5
    return inputs, torch.randn(shape, generator=generator).double()


def run_attention(function, inputs, cotangent, dtype, **arguments):
    given = {name: value for name, value in inputs.items() if value is not None}
    if "tables" not in given:
        arguments["tables"] = None
    return outputs_and_gradients(function, given, cotangent, dtype, **arguments)


def linear_inputs(rows, in_features, out_features, *, parts=2, dtype=torch.float64):
    """A stacked weight inside NaN, a bias sliced like it, and a cotangent; all exact in dtype."""
    generator = torch.Generator().manual_seed(rows * 10007 + in_features * 101 + out_features)

    def randn(*shape):
        return torch.randn(*shape, generator=generator).to(dtype).double()

    weight = torch.full((parts, out_features + 3, in_features + 5), float("nan")).double()
    weight[:, :out_features, :in_features] = (
        randn(parts, out_features, in_features) * in_features**-0.5
    )
    bias = torch.full((parts, out_features + 3), float("nan")).double()
    bias[:, :out_features] = randn(parts, out_features)
    width = parts * out_features
    inputs = {
        "x": randn(rows, in_features),
        "weight": weight.to(dtype).double(),
        "bias": bias.to(dtype).double(),
        "residual": randn(rows, width),
    }
    return inputs, randn(rows, width)


def assert_native_is_exact(run, oracle, operator, inputs, cotangent, dtype, **arguments):
    """Within the error budget of plain PyTorch; float64 to 1e-11."""
    golden = run(oracle, inputs, cotangent, torch.float64, **arguments)
    plain = run(oracle, inputs, cotangent, dtype, **arguments)
    with kernels.use_backend("native"):
        actual = run(operator, inputs, cotangent, dtype, **arguments)
    if dtype == torch.float64:
        for name, want in golden.items():
            torch.testing.assert_close(actual[name], want, rtol=1e-11, atol=1e-11)
    else:
        assert_within_budget(actual, golden, plain, dtype)
