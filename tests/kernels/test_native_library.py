"""The compiled operators, on every SIMD level this CPU has.

This file runs once per lower level in a process of its own (`test_lower_simd_levels`), because a
process keeps the level it started with. The operators' contracts are tested in files of their own;
here: the library itself, shapes at the edges of its tiles, threads.
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
from growtas.kernels import attention, layer_norm, linear, native_library
from growtas.kernels.attention import native as attention_native
from growtas.kernels.attention import reference as attention_reference
from growtas.kernels.linear import native as native_linear

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
    arguments = (3, (14, 14), 0.125)
    want = attention_reference.forward(qkv.double(), tables.double(), *arguments)[1]
    plain = attention_reference.forward(qkv.float(), tables.float(), *arguments)[1]
    actual = attention_native.forward(qkv, tables, *arguments)[1]
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


def linear_inputs(rows, in_features, out_features, *, groups=2, dtype=torch.float64):
    """A stacked weight inside NaN, a bias sliced like it, and a cotangent; all exact in dtype."""
    generator = torch.Generator().manual_seed(rows * 10007 + in_features * 101 + out_features)

    def randn(*shape):
        return torch.randn(*shape, generator=generator).to(dtype).double()

    weight = torch.full((groups, out_features + 3, in_features + 5), float("nan")).double()
    weight[:, :out_features, :in_features] = (
        randn(groups, out_features, in_features) * in_features**-0.5
    )
    bias = torch.full((groups, out_features + 3), float("nan")).double()
    bias[:, :out_features] = randn(groups, out_features)
    width = groups * out_features
    inputs = {
        "x": randn(rows, in_features),
        "weight": weight.to(dtype).double(),
        "bias": bias.to(dtype).double(),
        "residual": randn(rows, width),
    }
    return inputs, randn(rows, width)


# Register tiles have 14, 8, 6, 4, 2 or 1 rows and 32, 16, 8 or 4 columns; 256 values are summed
# before a partial sum is added; the second operand of bfloat16 comes in pairs.
LINEAR_SHAPES = [(1, 1, 1), (13, 31, 33), (14, 32, 16), (15, 33, 48), (113, 17, 50), (27, 257, 30),
                 (225, 512, 9), (257, 24, 70), (513, 15, 17)]  # fmt: skip


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("activation", [None, "gelu"])
@pytest.mark.parametrize(("rows", "in_features", "out_features"), LINEAR_SHAPES)
def test_linear_tile_edges(monkeypatch, rows, in_features, out_features, activation, dtype):
    monkeypatch.setattr(native_linear, "MIN_ROWS", 0)
    inputs, cotangent = linear_inputs(rows, in_features, out_features, dtype=dtype)
    arguments = {"out_features": out_features, "activation": activation}
    assert_native_is_exact(
        outputs_and_gradients, oracles.linear, linear, inputs, cotangent, dtype, **arguments
    )


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_linear_reads_and_writes_strided_rows(dtype):
    """Views with a row stride, offset by one element, and sentinels around every output."""
    operators = native_library.operators()
    inputs, cotangent = linear_inputs(30, 18, 20, groups=1, dtype=dtype)
    weight = inputs["weight"][0, :20, :18].to(dtype)

    def view(values):
        whole = torch.full((values.shape[0], values.shape[1] + 4), 7.0, dtype=dtype)
        whole[:, 1:-3] = values
        return whole, whole[:, 1:-3]

    (_, x), (_, dy) = view(inputs["x"]), view(cotangent)
    (whole_y, y), (whole_dx, dx) = view(torch.zeros(30, 20)), view(torch.zeros(30, 18))
    whole_dw, dw = view(torch.zeros(20, 18))
    operators.linear_forward(x, weight, None, 20, False, False, None, None, y, None)
    operators.linear_backward(dy, x, weight, 20, False, None, dx, dw, None)
    tolerance = {"rtol": 0, "atol": 40 * torch.finfo(dtype).eps}
    torch.testing.assert_close(y, (x.double() @ weight.double().T).to(dtype), **tolerance)
    torch.testing.assert_close(dx, (dy.double() @ weight.double()).to(dtype), **tolerance)
    torch.testing.assert_close(dw, (dy.double().T @ x.double()).to(dtype), **tolerance)
    for whole in (whole_y, whole_dx, whole_dw):
        assert (whole[:, 0] == 7).all()
        assert (whole[:, -3:] == 7).all()


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_linear_fuses_the_activation_of_its_input_and_a_factor_per_sample(dtype):
    """y = scale (gelu(x) W^T + b) + residual and its three gradients, each in one operator."""
    operators = native_library.operators()
    inputs, cotangent = linear_inputs(3 * 11, 34, 20, groups=1, dtype=dtype)
    weight, bias = inputs["weight"][0, :20, :34], inputs["bias"][0, :20]
    scale = torch.tensor([0.0, 1.25, 2.0]).double()

    def branch(x, weight, bias):
        y = torch.nn.functional.gelu(x) @ weight.T + bias
        return (y.view(3, 11, 20) * scale.view(3, 1, 1)).view(33, 20)

    leaves = [t.detach().clone().requires_grad_() for t in (inputs["x"], weight, bias)]
    golden = branch(*leaves)
    gradients = torch.autograd.grad(golden, leaves, cotangent)

    x, dy, residual = (t.to(dtype) for t in (inputs["x"], cotangent, inputs["residual"]))
    stored = scale if dtype == torch.float64 else scale.float()
    y, dx = torch.empty(33, 20, dtype=dtype), torch.empty(33, 34, dtype=dtype)
    dw, db = torch.zeros(20, 34, dtype=stored.dtype), torch.zeros(20, dtype=stored.dtype)
    operators.linear_forward(x, weight.to(dtype), bias, 20, True, False, stored, residual, y, None)
    operators.linear_backward(dy, x, weight.to(dtype), 20, True, stored, dx, dw, db)
    wanted = (golden.detach() + inputs["residual"], *gradients)
    for found, want in zip((y, dx, dw, db), wanted, strict=True):
        error = (found.double() - want).abs().max() / want.abs().max()
        assert error < 6 * torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("gelu", [False, True])
def test_linear_gradients_have_the_same_bits_alone_and_together_on_any_threads(dtype, gelu):
    """Rows in several parts and chunks, the last ones ragged; two groups of the weight."""
    generator = torch.Generator().manual_seed(3)

    def random(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    x, dy, weight = random(3331, 37), random(3331, 30), random(2, 19, 41)
    own = torch.float64 if dtype == torch.float64 else torch.float32

    def backward(*wanted):
        dx = torch.full_like(x, torch.nan) if "dx" in wanted else None
        dw = torch.ones(2, 19, 41, dtype=own) if "dw" in wanted else None
        db = torch.ones(30, dtype=own) if "db" in wanted else None
        native_library.operators().linear_backward(dy, x, weight, 15, gelu, None, dx, dw, db)
        return {"dx": dx, "dw": dw, "db": db}

    together = backward("dx", "dw", "db")
    for name, value in together.items():
        assert torch.equal(backward(name)[name], value)
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            for name, value in backward("dx", "dw", "db").items():
                assert torch.equal(together[name], value)
    finally:
        torch.set_num_threads(threads)
    leaf = x.double().requires_grad_()
    inputs = torch.nn.functional.gelu(leaf) if gelu else leaf
    rows = weight[:, :15, :37].double().reshape(30, 37)
    (wanted,) = torch.autograd.grad(inputs @ rows.T, leaf, dy.double())
    scale = wanted.abs().max()
    assert (together["dx"].double() - wanted).abs().max() < 4 * torch.finfo(dtype).eps * scale
    wanted = dy.double().T @ inputs.detach()
    found = (together["dw"].double() - 1)[:, :15, :37].reshape(30, 37)
    assert (found - wanted).abs().max() < 40 * torch.finfo(dtype).eps * wanted.abs().max()
    assert (together["dw"][:, 15:] == 1).all()
    assert (together["dw"][:, :, 37:] == 1).all()
    found = together["db"].double() - 1
    assert (found - dy.double().sum(0)).abs().max() < 200 * torch.finfo(own).eps * 60


def test_gelu_of_every_size():
    """Also the tails: relative accuracy for z down to -5, zero and identity beyond."""
    z = torch.cat([torch.linspace(-5, 5, 4001), torch.tensor([-40.0, -1e30, 40.0, 1e30, 0.0])])
    rows = z.view(-1, 1)
    one, y = torch.ones(1, 1), torch.empty_like(rows)
    native_library.operators().linear_forward(rows, one, None, 1, False, True, None, None, y, None)
    want = torch.nn.functional.gelu(rows.double())
    torch.testing.assert_close(y.double(), want, rtol=1e-4, atol=1e-30)
    dx = torch.empty_like(rows)
    native_library.operators().linear_backward(
        torch.ones_like(rows), rows, one, 1, True, None, dx, None, None
    )
    leaf = rows.double().requires_grad_()
    (want,) = torch.autograd.grad(torch.nn.functional.gelu(leaf).sum(), leaf)
    torch.testing.assert_close(dx.double(), want, rtol=0, atol=4e-7)


def test_few_rows_go_to_blas_and_agree(monkeypatch):
    inputs, cotangent = linear_inputs(5, 24, 40)
    results = []
    for rows in (0, 6):
        monkeypatch.setattr(native_linear, "MIN_ROWS", rows)
        with kernels.use_backend("native"):
            results.append(
                outputs_and_gradients(linear, inputs, cotangent, torch.float64, out_features=40)
            )
    for name, value in results[0].items():
        torch.testing.assert_close(value, results[1][name])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": torch.zeros(8, 5)}, "weight: has no slice of 4 x 6"),
        ({"out_features": 9}, "weight: has no slice of 9 x 6"),
        ({"bias": torch.zeros(3)}, "bias: has no slice of 1 x 4"),
        ({"y": torch.zeros(2, 5)}, "y: unexpected shape"),
        ({"x": torch.zeros(6, 2).t()}, "x: last dimension must be contiguous"),
        ({"scale": torch.ones(3)}, "scale: must hold one factor per sample"),
        ({"scale": torch.ones(2).double()}, "scale: dtype must be float32"),
    ],
)
def test_bad_linear_arguments_are_named(change, message):
    arguments = {
        "x": torch.zeros(2, 6), "weight": torch.zeros(8, 7), "bias": None, "out_features": 4,
        "gelu_of_x": False, "gelu_of_sum": False, "scale": None, "residual": None,
        "y": torch.zeros(2, 4), "preactivation": None,
    }  # fmt: skip
    with pytest.raises(RuntimeError, match=message):
        native_library.operators().linear_forward(**{**arguments, **change})


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
            inputs, cotangent = linear_inputs(700, 40, 90, dtype=dtype)
            results += outputs_and_gradients(
                linear, inputs, cotangent, dtype, out_features=90, activation="gelu"
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
