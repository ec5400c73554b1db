"""The compiled linear: the edges of its register tiles, strides, and the bits of its gradients. Its
contract is tested for every backend in `tests/kernels/test_linear.py`."""

from __future__ import annotations

import os

import oracles
import pytest
import torch
from native_cases import FLOATS, assert_native_is_exact, linear_inputs
from oracles import outputs_and_gradients

from growtas import kernels
from growtas.kernels import linear, native_library
from growtas.kernels.linear import native as native_linear
from growtas.kernels.linear import reference as reference_linear

# Register tiles have 14, 8, 6, 4, 2 or 1 rows and 32, 16, 8 or 4 columns; 256 values are summed
# before a partial sum is added; the second operand of bfloat16 comes in pairs. Tile registers have
# 16 rows and 16 columns, four of them 32 x 32; 32 values are summed.
LINEAR_SHAPES = [(1, 1, 1), (13, 31, 33), (14, 32, 16), (15, 33, 48), (113, 17, 50), (27, 257, 30),
                 (225, 512, 9), (257, 24, 70), (513, 15, 17), (47, 64, 35)]  # fmt: skip


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("activation", [None, "gelu"])
@pytest.mark.parametrize(("rows", "in_features", "out_features"), LINEAR_SHAPES)
def test_linear_tile_edges(rows, in_features, out_features, activation, dtype):
    inputs, cotangent = linear_inputs(rows, in_features, out_features, dtype=dtype)
    arguments = {"out_features": out_features, "input_activation": activation}
    assert_native_is_exact(
        outputs_and_gradients, oracles.linear, linear, inputs, cotangent, dtype, **arguments
    )


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_linear_reads_and_writes_strided_rows(dtype):
    """Views with a row stride, offset by one element, and sentinels around every output."""
    operators = native_library.operators()
    inputs, cotangent = linear_inputs(30, 18, 20, parts=1, dtype=dtype)
    weight = inputs["weight"][0, :20, :18].to(dtype)

    def view(values):
        whole = torch.full((values.shape[0], values.shape[1] + 4), 7.0, dtype=dtype)
        whole[:, 1:-3] = values
        return whole, whole[:, 1:-3]

    (_, x), (_, dy) = view(inputs["x"]), view(cotangent)
    (whole_y, y), (whole_dx, dx) = view(torch.zeros(30, 20)), view(torch.zeros(30, 18))
    whole_dw, dw = view(torch.zeros(20, 18))
    operators.linear_forward(x, weight, None, 20, False, None, None, y)
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
    inputs, cotangent = linear_inputs(3 * 11, 34, 20, parts=1, dtype=dtype)
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
    operators.linear_forward(x, weight.to(dtype), bias, 20, True, stored, residual, y)
    operators.linear_backward(dy, x, weight.to(dtype), 20, True, stored, dx, dw, db)
    wanted = (golden.detach() + inputs["residual"], *gradients)
    for found, want in zip((y, dx, dw, db), wanted, strict=True):
        error = (found.double() - want).abs().max() / want.abs().max()
        assert error < 6 * torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("gelu", [False, True])
def test_linear_gradients_have_the_same_bits_alone_and_together_on_any_threads(dtype, gelu):
    """Rows in several parts and chunks, the last ones ragged; two parts of the weight."""
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


def fused_multiply_add(a, b, c):
    """a b + c rounded once to float32, for bfloat16 a and b and float32 c; subnormals are zero."""
    tiny = torch.finfo(torch.float32).tiny
    a, b, c = (torch.where(v.abs() < tiny, 0, v).double() for v in (a, b, c))
    product = a * b  # exact
    total = product + c
    part = total - product
    lost = (product - (total - part)) + (c - part)
    # Rounding to odd first makes the second rounding the only one.
    bits = total.view(torch.int64)
    toward = torch.where((lost > 0) == (total > 0), 1, -1)
    bits = torch.where((lost != 0) & (bits % 2 == 0), bits + toward, bits)
    rounded = bits.view(torch.float64).float()
    return torch.where(rounded.abs() < tiny, 0, rounded)


@pytest.mark.skipif(
    not os.environ.get("GROWTAS_SIMD", "").startswith("amx"), reason="no tile registers in use"
)
def test_tile_registers_sum_as_documented():
    """TDPBF16PS by its description: 16 pairs at a time, the earlier and the later values of pairs
    apart; every bit, also where products, sums and values are subnormal."""
    rows, depth, columns = 35, 64, 20
    generator = torch.Generator().manual_seed(7)

    x, weight = (
        torch.randn(n, depth, generator=generator).bfloat16().float() for n in (rows, columns)
    )
    x[3], weight[7] = 1e-39, 2.0**100  # a value of bfloat16 that is subnormal
    x[5:9] *= 2.0**-110
    weight[:4] *= 2.0**-16  # there, products and sums on both sides of the smallest normal number
    want = torch.zeros(rows, columns)
    for first in range(0, depth, 32):
        sums = [torch.zeros(rows, columns), torch.zeros(rows, columns)]
        for k in range(first, first + 32):
            sums[k % 2] = fused_multiply_add(x[:, k, None], weight[None, :, k], sums[k % 2])
        one = torch.ones(())
        want = fused_multiply_add(fused_multiply_add(sums[0], one, sums[1]), one, want)
    y = torch.empty(rows, columns)
    native_library.operators().linear_forward(
        x.bfloat16(), weight.bfloat16(), None, columns, False, None, None, y
    )
    assert 0.05 < (want[5:9, :4] == 0).float().mean() < 0.9
    assert torch.equal(y, want)


def test_gelu_of_every_size():
    """Also the tails: relative accuracy for z down to -5, zero and identity beyond."""
    z = torch.cat([torch.linspace(-5, 5, 4001), torch.tensor([-40.0, -1e30, 40.0, 1e30, 0.0])])
    rows = z.view(-1, 1)
    one, y = torch.ones(1, 1), torch.empty_like(rows)
    native_library.operators().linear_forward(rows, one, None, 1, True, None, None, y)
    want = torch.nn.functional.gelu(rows.double())
    torch.testing.assert_close(y.double(), want, rtol=1e-4, atol=1e-30)
    dx = torch.empty_like(rows)
    native_library.operators().linear_backward(
        torch.ones_like(rows), rows, one, 1, True, None, dx, None, None
    )
    leaf = rows.double().requires_grad_()
    (want,) = torch.autograd.grad(torch.nn.functional.gelu(leaf).sum(), leaf)
    torch.testing.assert_close(dx.double(), want, rtol=0, atol=4e-7)


def test_gelu_of_every_bfloat16():
    """Rounding the result is most of the error, and the derivative's is below that of 1."""
    z = torch.arange(2**16, dtype=torch.int32).to(torch.uint16).view(torch.bfloat16)
    rows = z[z.isfinite()].view(-1, 1)
    one, ones = torch.ones(1, 1).bfloat16(), torch.ones_like(rows)
    y, dx = torch.empty_like(rows), torch.empty_like(rows)
    native_library.operators().linear_forward(rows, one, None, 1, True, None, None, y)
    native_library.operators().linear_backward(ones, rows, one, 1, True, None, dx, None, None)
    leaf = rows.double().requires_grad_()
    want = torch.nn.functional.gelu(leaf)
    (gradient,) = torch.autograd.grad(want.sum(), leaf)
    half_step = torch.finfo(torch.bfloat16).eps / 2
    torch.testing.assert_close(y.double(), want.detach(), rtol=1.15 * half_step, atol=2e-6)
    torch.testing.assert_close(dx.double(), gradient, rtol=half_step, atol=1.5e-4)


def test_few_rows_are_left_to_plain_pytorch_unless_it_is_named(monkeypatch):
    """Under `auto`, which has all to itself: packing the weight would cost more than it saves."""
    ran = []

    def noted(backend, name):
        function = getattr(backend, name)

        def run(*given):
            ran.append(backend.__name__.rsplit(".", 1)[1])
            return function(*given)

        return run

    for backend in (native_linear, reference_linear):
        for name in ("forward", "backward"):
            monkeypatch.setattr(backend, name, noted(backend, name))
    results = []
    for request, rows, expected in (
        ("auto", native_linear.MIN_ROWS, "native"),
        ("auto", native_linear.MIN_ROWS - 1, "reference"),
        ("native", native_linear.MIN_ROWS - 1, "native"),
        ("native", 1, "native"),
    ):
        inputs, cotangent = linear_inputs(rows, 24, 40)
        with kernels.use_backend(request):
            results.append(
                outputs_and_gradients(linear, inputs, cotangent, torch.float64, out_features=40)
            )
        assert ran == [expected] * 2
        ran.clear()
    for name, value in results[1].items():
        torch.testing.assert_close(value, results[2][name])


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
        "gelu_of_x": False, "scale": None, "residual": None, "y": torch.zeros(2, 4),
    }  # fmt: skip
    with pytest.raises(RuntimeError, match=message):
        native_library.operators().linear_forward(**{**arguments, **change})
