"""The compiled operators, on every SIMD level this CPU has.

This file runs once per lower level in a process of its own (`test_lower_simd_levels`), because a
process keeps the level it started with. The operators' contracts are tested in test_layer_norm.py
and test_attention.py; here: the library itself, shapes at the edges of its tiles, threads.
"""

from __future__ import annotations

import os
import subprocess
import sys

import oracles
import pytest
import torch
from oracles import assert_within_budget, bits_equal, outputs_and_gradients

from growtas import build_info, kernels
from growtas.kernels import attention, layer_norm, native_library

pytestmark = pytest.mark.skipif(
    not build_info.build_info()["built"], reason="the native library is not built"
)
FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def levels() -> list[str]:
    if not build_info.build_info()["built"]:
        return []
    from growtas import _C

    return _C.simd_levels()


def test_build_record_agrees_with_the_binary():
    from growtas import _C

    info = build_info.build_info()
    assert native_library.status() == (True, "")
    assert info["simd_levels"][0] == "baseline"
    assert set(_C.simd_levels()) <= set(info["simd_levels"])
    assert _C.simd_level() == os.environ.get("GROWTAS_SIMD", _C.simd_levels()[-1])
    if "avx2" in _C.simd_levels():
        assert all(_C.cpu_features()[name] for name in ("avx2", "fma", "f16c"))


@pytest.mark.skipif("GROWTAS_SIMD" in os.environ, reason="this process is one of the runs")
@pytest.mark.parametrize("level", levels()[:-1])
def test_lower_simd_levels(level):
    environment = {**os.environ, "GROWTAS_SIMD": level, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-x", __file__, "-k", "not refused and not declare"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-2000:]


def test_unknown_simd_level_is_refused():
    code = "from growtas.kernels import native_library; native_library.status()"
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "GROWTAS_SIMD": "avx1024"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode != 0
    assert "GROWTAS_SIMD=avx1024: this machine can run baseline" in result.stderr


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


def check_attention(grid, class_token, num_heads, head_dim, dtype, **options):
    inputs, cotangent = attention_inputs(grid, class_token, num_heads, head_dim, **options)
    # Rounded once, so that only arithmetic is compared.
    inputs = {n: None if v is None else v.to(dtype).double() for n, v in inputs.items()}
    cotangent = cotangent.to(dtype).double()
    arguments = {"num_heads": num_heads, "grid": grid}
    golden = run_attention(oracles.attention, inputs, cotangent, torch.float64, **arguments)
    plain = run_attention(oracles.attention, inputs, cotangent, dtype, **arguments)
    with kernels.use_backend("native"):
        actual = run_attention(attention, inputs, cotangent, dtype, **arguments)
    if dtype == torch.float64:
        for name, want in golden.items():
            torch.testing.assert_close(actual[name], want, rtol=1e-11, atol=1e-11)
    else:
        assert_within_budget(actual, golden, plain, dtype)


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


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("width", [1, 3, 8, 31, 64, 197, 216])
def test_layer_norm_widths(width, dtype):
    generator = torch.Generator().manual_seed(width)
    inputs = {
        "x": 3 + torch.randn(70, width, generator=generator).double(),
        "weight": torch.randn(256, generator=generator).double(),
        "bias": torch.randn(256, generator=generator).double(),
    }
    inputs = {name: value.to(dtype).double() for name, value in inputs.items()}
    cotangent = torch.randn(70, width, generator=generator).to(dtype).double()
    golden = outputs_and_gradients(oracles.layer_norm, inputs, cotangent, torch.float64)
    plain = outputs_and_gradients(oracles.layer_norm, inputs, cotangent, dtype)
    with kernels.use_backend("native"):
        actual = outputs_and_gradients(layer_norm, inputs, cotangent, dtype)
    if dtype == torch.float64:
        for name, want in golden.items():
            torch.testing.assert_close(actual[name], want, rtol=1e-11, atol=1e-11)
    else:
        assert_within_budget(actual, golden, plain, dtype)


def test_mixed_dtypes_of_autocast():
    """float32 rows in, bfloat16 out; the gradient arrives in bfloat16."""
    operators = native_library.operators()
    x, weight, bias = torch.randn(50, 24), torch.randn(64), torch.randn(64)
    y = torch.empty(50, 24, dtype=torch.bfloat16)
    mean, rstd = torch.empty(50), torch.empty(50)
    operators.layer_norm_forward(x, weight, bias, 1e-5, y, mean, rstd)
    expected = torch.nn.functional.layer_norm(x, (24,), weight[:24], bias[:24])
    assert bits_equal(y, expected.bfloat16()) or (y - expected).abs().max() < 0.04
    dy = torch.randn(50, 24).bfloat16()
    dx, dweight, dbias = torch.empty_like(x), torch.full((64,), 7.0), torch.full((64,), 7.0)
    operators.layer_norm_backward(dy, x, weight, mean, rstd, dx, dweight, dbias)
    torch.testing.assert_close(dbias[:24], 7 + dy.float().sum(0), rtol=1e-5, atol=1e-5)
    assert (dbias[24:] == 7).all()
    assert (dweight[24:] == 7).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_storage_conversions_round_like_torch(dtype):
    """x = 0 and weight = 0 leave y = bias, so every bit pattern passes through both ways."""
    patterns = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    finite = patterns[patterns.isfinite()].float()
    # Midpoints between neighbours and beyond, to see ties and overflow.
    spread = torch.cat([finite, finite * (1 + 2**-9), finite * (1 + 2**-12), finite * 1.0004])
    special = torch.tensor([float("nan"), float("inf"), -float("inf"), 65519.0, 65520.0, 1e-8])
    bias = torch.cat([spread, special])
    width = len(bias)
    y, mean, rstd = torch.empty(1, width, dtype=dtype), torch.empty(1), torch.empty(1)
    operators = native_library.operators()
    operators.layer_norm_forward(
        torch.zeros(1, width), torch.zeros(width), bias, 1e-5, y, mean, rstd
    )
    assert torch.equal(y[0].isnan(), bias.to(dtype).isnan())
    assert torch.equal(y[0].nan_to_num(0, 1, -1), bias.to(dtype).nan_to_num(0, 1, -1))
    back = torch.empty(1, len(finite))
    operators.layer_norm_forward(
        torch.zeros(1, len(finite)), torch.zeros(len(finite)), finite.to(dtype), 1e-5, back, mean,
        rstd,
    )  # fmt: skip
    assert torch.equal(back[0], finite)


def run_everything() -> list[torch.Tensor]:
    torch.manual_seed(0)
    results = []
    with kernels.use_backend("native"):
        for dtype in (torch.float32, torch.bfloat16):
            inputs, cotangent = attention_inputs((7, 9), 1, 3, 24, batch=5)
            results += run_attention(
                attention, inputs, cotangent, dtype, num_heads=3, grid=(7, 9)
            ).values()
            inputs = {"x": torch.randn(700, 40), "weight": torch.randn(64), "bias": torch.randn(64)}
            results += outputs_and_gradients(
                layer_norm, inputs, torch.randn(700, 40), dtype
            ).values()
    return results


def test_same_bits_for_any_number_of_threads():
    before = torch.get_num_threads()
    try:
        runs = []
        for threads in (1, 2, 3, 1):
            torch.set_num_threads(threads)
            runs.append(run_everything())
    finally:
        torch.set_num_threads(before)
    for run in runs[1:]:
        assert all(bits_equal(a, b) for a, b in zip(runs[0], run, strict=True))


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


def test_empty_batch():
    operators = native_library.operators()
    out, lse = torch.empty(0, 5, 8), torch.empty(0, 1, 5)
    operators.attention_forward(torch.empty(0, 5, 24), None, 1, 2, 2, 1.0, out, lse)
    y, mean, rstd = torch.empty(0, 8), torch.empty(0), torch.empty(0)
    operators.layer_norm_forward(y, torch.ones(8), torch.ones(8), 1e-5, y.clone(), mean, rstd)


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


@pytest.mark.parametrize("name", ["layer_norm_forward", "attention_forward"])
def test_operators_declare_what_they_write(name):
    """torch's own check of the schema and the fake kernel, as torch.compile relies on them."""
    if name == "layer_norm_forward":
        arguments = (torch.randn(6, 8), torch.randn(16), torch.randn(16), 1e-5)
        outputs = (torch.zeros(6, 8), torch.zeros(6), torch.zeros(6))
    else:
        arguments = (torch.randn(2, 5, 24), torch.randn(4, 6, 8), 1, 2, 2, 0.5)
        outputs = (torch.zeros(2, 5, 8), torch.zeros(2, 1, 5))
    operator = getattr(native_library.operators(), name).default
    torch.library.opcheck(
        operator, (*arguments, *outputs), test_utils=("test_schema", "test_faketensor")
    )
