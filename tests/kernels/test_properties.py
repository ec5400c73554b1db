"""Random slices of random buffers: forward, gradients and untouched bytes, on every backend."""

from __future__ import annotations

import oracles
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from oracles import assert_within_budget

from growtas import kernels

PROFILE = settings(
    max_examples=25,
    deadline=None,
    derandomize=True,  # the same examples on every run
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
dtypes = st.sampled_from(oracles.DTYPES)
seeds = st.integers(0, 2**31)


def compare(operator, oracle, inputs, cotangent, dtype, **arguments):
    stored = {name: value.to(dtype) for name, value in inputs.items()}
    golden = oracles.outputs_and_gradients(
        oracle, stored, cotangent.to(dtype), torch.float64, **arguments
    )
    plain = oracles.outputs_and_gradients(oracle, stored, cotangent, dtype, **arguments)
    actual = oracles.outputs_and_gradients(operator, stored, cotangent, dtype, **arguments)
    assert_within_budget(actual, golden, plain, dtype, epsilons=8)
    return actual


@PROFILE
@given(
    out_features=st.integers(1, 70), in_features=st.integers(1, 70), rows=st.integers(1, 40),
    spare=st.tuples(st.integers(0, 9), st.integers(0, 9)),
    activation=st.sampled_from([None, "gelu"]), dtype=dtypes, seed=seeds,
)  # fmt: skip
def test_linear(backend, out_features, in_features, rows, spare, activation, dtype, seed):
    g = torch.Generator().manual_seed(seed)
    weight = torch.full((out_features + spare[0], in_features + spare[1]), float("nan"))
    weight[:out_features, :in_features] = (
        torch.randn(out_features, in_features, generator=g) * in_features**-0.5
    )
    inputs = {
        "x": torch.randn(rows, in_features, generator=g),
        "weight": weight,
        "bias": torch.randn(out_features + spare[0], generator=g),
    }
    actual = compare(
        kernels.linear, oracles.linear, inputs,
        torch.randn(rows, out_features, generator=g), dtype,
        out_features=out_features, input_activation=activation,
    )  # fmt: skip
    outside = torch.ones(weight.shape, dtype=torch.bool)
    outside[:out_features, :in_features] = False
    assert torch.all(actual["weight"][outside] == 0)


@PROFILE
@given(width=st.integers(2, 300), rows=st.integers(1, 30), spare=st.integers(0, 9),
       dtype=dtypes, seed=seeds)  # fmt: skip
def test_layer_norm(backend, width, rows, spare, dtype, seed):
    g = torch.Generator().manual_seed(seed)
    inputs = {
        "x": torch.randn(rows, width, generator=g),
        "weight": torch.randn(width + spare, generator=g),
        "bias": torch.randn(width + spare, generator=g),
    }
    compare(
        kernels.layer_norm, oracles.layer_norm, inputs,
        torch.randn(rows, width, generator=g), dtype,
    )  # fmt: skip


@PROFILE
@given(
    grid=st.tuples(st.integers(1, 7), st.integers(1, 7)), class_token=st.booleans(),
    num_heads=st.integers(1, 4), head_dim=st.sampled_from([8, 16, 24, 32]),
    reach=st.integers(0, 8), batch=st.integers(1, 3), dtype=dtypes, seed=seeds,
)  # fmt: skip
def test_attention(backend, grid, class_token, num_heads, head_dim, reach, batch, dtype, seed):
    g = torch.Generator().manual_seed(seed)
    tokens = grid[0] * grid[1] + class_token
    features = num_heads * head_dim
    inputs = {
        "qkv": torch.randn(batch, tokens, 3 * features, generator=g),
        "tables": torch.randn(4, 2 * reach + 2, head_dim, generator=g) * 0.5,
    }
    compare(
        kernels.attention, oracles.attention, inputs,
        torch.randn(batch, tokens, features, generator=g), dtype,
        num_heads=num_heads, grid=grid,
    )  # fmt: skip
