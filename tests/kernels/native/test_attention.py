"""The compiled attention: grids, head dims and the edges of its tiles. Its contract is tested for
every backend in `tests/kernels/test_attention.py`."""

from __future__ import annotations

import oracles
import pytest
import torch
from native_cases import FLOATS, assert_native_is_exact, attention_inputs, run_attention
from oracles import assert_within_budget, bits_equal

from growtas import kernels
from growtas.kernels import attention, native_library
from growtas.kernels.attention import native as attention_native
from growtas.kernels.attention import reference as attention_reference
from growtas.kernels.attention.api import AttentionCall


def check_attention(grid, class_token, num_heads, head_dim, dtype, **options):
    inputs, cotangent = attention_inputs(grid, class_token, num_heads, head_dim, **options)
    # Rounded once, so that only arithmetic is compared.
    inputs = {n: None if v is None else v.to(dtype).double() for n, v in inputs.items()}
    cotangent = cotangent.to(dtype).double()
    arguments = {"num_heads": num_heads, "grid": grid}
    assert_native_is_exact(
        run_attention, oracles.attention, attention, inputs, cotangent, dtype, **arguments
    )


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("class_token", [0, 1])
@pytest.mark.parametrize("grid", [(1, 1), (3, 5), (1, 7), (14, 14)])
def test_attention_grids(grid, class_token, dtype):
    check_attention(grid, class_token, 2, 16, dtype)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("head_dim", [5, 8, 24, 32, 64, 96, 128])
def test_attention_head_dims(head_dim, dtype):
    check_attention((4, 5), 1, 3, head_dim, dtype)


@pytest.mark.parametrize(
    ("grid", "class_token"),
    [
        ((16, 16), 1),  # grid rows of exactly one vector
        ((17, 3), 0),  # more grid rows than lanes
        ((2, 33), 1),  # grid rows of several vectors
        ((19, 35), 1),  # several tiles of queries, odd everything
        ((25, 25), 0),  # the smaller tile of long sequences
    ],
)
@pytest.mark.parametrize("relative", [True, False])
def test_attention_tile_edges(grid, class_token, relative):
    check_against_reference(grid, class_token, relative=relative)


def test_attention_many_tokens():
    check_against_reference((46, 46), 1, reach=14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("factor", [1e-3, 1.0, 30.0])
def test_attention_log_sum_exp(factor, dtype):
    """From 197 nearly equal scores to one that outweighs the others."""
    inputs, _ = attention_inputs((14, 14), 1, 3, 64)
    qkv, tables = (inputs["qkv"] * factor).to(dtype), inputs["tables"].to(dtype)

    def log_sum_exp(backend, qkv, tables):
        return backend.forward(AttentionCall(qkv, tables, 3, 14, 14, 0.125, None))[1]

    want = log_sum_exp(attention_reference, qkv.double(), tables.double())
    plain = log_sum_exp(attention_reference, qkv.float(), tables.float())
    actual = log_sum_exp(attention_native, qkv, tables)
    budget = 2 * (plain - want).abs().max() + torch.finfo(torch.float32).eps * want.abs().max()
    assert (actual - want).abs().max() <= budget


def test_attention_of_more_heads_than_chunks():
    """141 heads: some chunks of the tables' gradient hold one of them, others two."""
    check_attention((2, 3), 1, 3, 8, torch.float32, batch=47)


@pytest.mark.parametrize("grid", [(5, 7), (14, 14)])
def test_float32_tables_with_bfloat16_products(grid):
    """No worse than under autocast, which rounds the tables first."""
    inputs, cotangent = attention_inputs(grid, 1, 2, 64)
    stored = {"qkv": inputs["qkv"].bfloat16(), "tables": inputs["tables"].float()}
    cotangent, arguments = cotangent.bfloat16(), {"num_heads": 2, "grid": grid}
    golden = run_attention(oracles.attention, stored, cotangent, torch.float64, **arguments)
    plain = run_attention(oracles.attention, stored, cotangent, torch.bfloat16, **arguments)
    with kernels.use_backend("native"):
        actual = run_attention(attention, stored, cotangent, None, **arguments)
    assert actual["tables"].dtype == torch.float32
    assert_within_budget(actual, golden, plain, torch.bfloat16)


def check_against_reference(grid, class_token, **options):
    """For sequences too long for the oracle's loops: the reference backend in float64."""
    inputs, cotangent = attention_inputs(grid, class_token, 1, 8, batch=1, **options)
    arguments = {"num_heads": 1, "grid": grid}
    results = {}
    for backend in ("reference", "native"):
        with kernels.use_backend(backend):
            results[backend] = run_attention(
                attention, inputs, cotangent, torch.float64, **arguments
            )
    for name, want in results["reference"].items():
        torch.testing.assert_close(results["native"][name], want, rtol=1e-10, atol=1e-10)
    with kernels.use_backend("native"):
        single = run_attention(attention, inputs, cotangent, torch.float32, **arguments)
    for name, want in results["reference"].items():
        error = (single[name] - want).abs().max() / want.abs().max()
        assert error < 1e-5, name


@pytest.mark.parametrize("where", ["q", "k", "v", "tables"])
def test_nan_reaches_the_output(where):
    inputs, _ = attention_inputs((3, 3), 1, 1, 8)
    qkv, tables = inputs["qkv"].float(), inputs["tables"].float()
    if where == "tables":
        tables[3, 0, 2] = float("nan")  # value side, column, class token: met by every query
    else:
        qkv[1, 4, 8 * "qkv".index(where)] = float("nan")
    with kernels.use_backend("native"):
        out = attention(qkv, tables, num_heads=1, grid=(3, 3))
    assert out[1].isnan().any(-1)[4].item()
    if where in ("k", "v"):
        assert out[1].isnan().any(-1).all()
    if where != "tables":
        assert out[0].isfinite().all()


def test_inputs_are_not_modified():
    inputs, cotangent = attention_inputs((4, 4), 1, 2, 16)
    qkv, tables, dout = inputs["qkv"].float(), inputs["tables"].float(), cotangent.float()
    given = [tensor.clone() for tensor in (qkv, tables, dout)]
    operators = native_library.operators()
    out, lse = torch.empty(2, 17, 32), torch.empty(2, 2, 17)
    operators.attention_forward(qkv, tables, 2, 4, 4, 0.25, out, lse)
    dqkv, dtables = torch.empty_like(qkv), torch.zeros_like(tables)
    operators.attention_backward(dout, qkv, tables, lse, 2, 4, 4, 0.25, dqkv, dtables)
    assert all(bits_equal(a, b) for a, b in zip(given, (qkv, tables, dout), strict=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"grid_h": 3}, "grid: 3 x 2"),
        ({"num_heads": 5}, "not 3 [*] num_heads"),
        ({"tables": torch.zeros(4, 5, 8)}, "2 [*] max_relative_position"),
        ({"tables": torch.zeros(4, 6, 16)}, "tables: must be"),
        ({"lse": torch.zeros(1, 1, 5, dtype=torch.float64)}, "lse: dtype"),
        ({"out": torch.zeros(1, 5, 16)}, "out: unexpected shape"),
        ({"qkv": torch.zeros(1, 5, 24, dtype=torch.int32)}, "qkv: dtype must be"),
    ],
)
def test_bad_arguments_are_named(change, message):
    arguments = {
        "qkv": torch.zeros(1, 5, 24),
        "tables": torch.zeros(4, 6, 8),
        "num_heads": 1,
        "grid_h": 2,
        "grid_w": 2,
        "scale": 1.0,
        "out": torch.zeros(1, 5, 8),
        "lse": torch.zeros(1, 1, 5),
    }
    with pytest.raises(RuntimeError, match=message):
        native_library.operators().attention_forward(**{**arguments, **change})
