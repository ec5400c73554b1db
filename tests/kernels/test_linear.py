"""linear: exactness, slices read in place, nothing outside them touched."""

from __future__ import annotations

import oracles
import pytest
import several
import torch
from linear_cases import case, check, check_accumulation
from oracles import DTYPES, EMBED_WIDTHS, HIDDEN_WIDTHS, bits_equal

from growtas import kernels
from growtas.kernels.extents import LinearExtents


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", [None, "gelu"])
@pytest.mark.parametrize("residual", [False, True], ids=["plain", "residual"])
@pytest.mark.parametrize(("in_features", "out_features"), [(1, 1), (15, 33), (16, 32), (17, 31)])
def test_matches_float64(backend, dtype, activation, residual, in_features, out_features):
    inputs, cotangent = case(in_features, out_features, residual=residual)
    check(inputs, cotangent, dtype, out_features=out_features, input_activation=activation)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("residual", [False, True], ids=["plain", "residual"])
def test_input_activation_and_sample_scale(backend, dtype, residual):
    inputs, cotangent = case(35, 18, rows=(3, 5), shape=(2, 3, 7), residual=residual)
    check(
        inputs, cotangent, dtype, out_features=18, input_activation="gelu",
        sample_scale=torch.tensor([0.0, 1.25, 1.0]),
    )  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("embed", EMBED_WIDTHS)
def test_autoformer_embed_widths(backend, dtype, embed):
    """qkv, proj and head shapes of every embed dim, in the max-size buffers of its space."""
    in_max = next(m for m in (256, 448, 640) if m >= embed)
    inputs, cotangent = case(embed, 3 * 64, rows=(5,), in_max=in_max, shape=(3, 4, 64))
    # Some BLAS libraries sum this few rows in many short sums: less error than any bound on ours.
    check(inputs, cotangent, dtype, out_features=3 * 64, epsilons=6)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("hidden", HIDDEN_WIDTHS)
def test_autoformer_hidden_widths(backend, dtype, hidden):
    """fc1, then fc2 with a residual, at every kind of hidden width."""
    inputs, cotangent = case(216, hidden, rows=(5,), in_max=256, shape=(2560,))
    check(inputs, cotangent, dtype, out_features=hidden, epsilons=6)  # as above
    inputs, cotangent = case(hidden, 216, rows=(5,), in_max=2560, shape=(256,), residual=True)
    check(inputs, cotangent, dtype, out_features=216)


def test_flat_bias_of_a_stacked_weight_is_a_prefix(backend):
    """AutoFormer's reading: entry t * out + r of the flat bias, whatever the buffer's size."""
    inputs, cotangent = case(8, 6, shape=(3, 2, 5), flat_bias=True)
    actual = check(inputs, cotangent, torch.float32, out_features=6)
    assert torch.all(actual["bias"][18:] == 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_float32_master_weights(backend, dtype):
    """Weights stay float32 while activations are in a lower dtype, as under autocast."""
    inputs, cotangent = case(24, 40)
    x = inputs["x"].to(dtype).requires_grad_()
    weight, bias = (inputs[name].requires_grad_() for name in ("weight", "bias"))
    y = kernels.linear(x, weight, bias, out_features=40)
    y.backward(cotangent.to(dtype))
    assert y.dtype == x.grad.dtype == dtype
    assert weight.grad.dtype == bias.grad.dtype == torch.float32
    want = oracles.linear(
        x.detach().double(), weight.detach().to(dtype).double(), bias.detach().double(),
        out_features=40,
    )  # fmt: skip
    torch.testing.assert_close(y.double(), want, rtol=0, atol=2 * torch.finfo(dtype).eps * 8)


def test_dense_gradient_is_zero_outside_the_slice(backend):
    inputs, cotangent = case(9, 6, shape=(3, 2, 5))
    actual = check(inputs, cotangent, torch.float32, out_features=6)
    weight = actual["weight"].view(3, 10, -1)
    assert torch.all(weight[:, 6:] == 0)
    assert torch.all(weight[:, :, 9:] == 0)
    assert torch.all(actual["bias"].view(3, 10)[:, 6:] == 0)


@pytest.mark.parametrize("shape", [(10,), (3, 2, 5)], ids=["matrix", "stacked"])
def test_accumulate_adds_inside_and_keeps_every_bit_outside(backend, shape):
    check_accumulation(shape)


def test_bit_equal_repetition(backend):
    inputs, cotangent = case(200, 300, rows=(64,), residual=True)
    first, second = (
        oracles.outputs_and_gradients(
            kernels.linear, inputs, cotangent, out_features=300, input_activation="gelu"
        )
        for _ in range(2)
    )
    assert all(bits_equal(first[name], second[name]) for name in first)


def test_gradcheck(backend):
    inputs, _ = case(5, 6, rows=(3,), shape=(2, 3, 4), residual=True)
    tensors = [
        torch.nan_to_num(inputs[name].double()).requires_grad_()
        for name in ("x", "weight", "bias", "residual")
    ]

    def function(x, weight, bias, residual):
        return kernels.linear(
            x, weight, bias, out_features=6, input_activation="gelu",
            sample_scale=torch.tensor([0.5, 0.0, 2.0]), residual=residual,
        )  # fmt: skip

    assert torch.autograd.gradcheck(function, tensors)


def test_autocast_computes_in_the_autocast_dtype(backend):
    x, weight = torch.randn(4, 8, requires_grad=True), torch.randn(16, 8, requires_grad=True)
    residual = torch.randn(4, 12)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = kernels.linear(x, weight, out_features=12)
        stream = kernels.linear(x, weight, out_features=12, residual=residual)
    assert y.dtype == torch.bfloat16
    assert stream.dtype == torch.float32
    stream.sum().backward()
    assert x.grad.dtype == weight.grad.dtype == torch.float32


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"out_features": 9}, r"out_features is 9, the weight has 1 to 8"),
        ({"out_features": 0}, r"out_features must be at least 1, got 0"),
        ({"input_activation": "relu"}, r"input_activation is 'relu', allowed: None, 'gelu'"),
        ({"sample_scale": torch.ones(3)}, r"sample_scale is \(3,\), x \(2, 6\) needs one factor"),
        ({"bias": torch.zeros(7)}, r"bias has 7 entries"),
        ({"x": torch.zeros(2, 7)}, r"x has 7 features, the weight takes 1 to 6"),
        ({"weight": torch.zeros(8)}, r"2 or more dimensions"),
    ],
)
def test_bad_input_is_named(backend, arguments, message):
    given = {"x": torch.zeros(2, 6), "weight": torch.zeros(8, 6), **arguments}
    with pytest.raises(ValueError, match=message):
        kernels.linear(given.pop("x"), given.pop("weight"), **given)


def test_weight_of_another_dtype_is_refused(backend):
    with pytest.raises(TypeError, match="bfloat16"):
        kernels.linear(torch.zeros(2, 6), torch.zeros(8, 6, dtype=torch.bfloat16))


def test_one_dimensional_input(backend):
    x, weight = torch.randn(6, requires_grad=True), torch.randn(8, 6, requires_grad=True)
    kernels.linear(x, weight, out_features=5).sum().backward()
    torch.testing.assert_close(x.grad, weight[:5].sum(0))
    torch.testing.assert_close(weight.grad[:5], x.detach().expand(5, 6))


def test_residual_of_another_shape_is_refused(backend):
    with pytest.raises(ValueError, match=r"residual is \(5, 3, 8\), the output \(3, 8\)"):
        kernels.linear(torch.zeros(3, 6), torch.zeros(8, 6), residual=torch.zeros(5, 3, 8))


def test_gradient_of_a_stacked_weight_in_another_memory_format(backend):
    """channels_last re-strides 4-D weights; their gradient must not end in a temporary."""
    weight = torch.randn(3, 2, 5, 6).to(memory_format=torch.channels_last).requires_grad_()
    assert not weight.is_contiguous()
    twin = weight.detach().contiguous().requires_grad_()
    x, cotangent = torch.randn(4, 6), torch.randn(4, 18)
    for w in (weight, twin):
        kernels.linear(x, w, out_features=6).backward(cotangent)
    assert weight.grad.abs().sum() > 0
    torch.testing.assert_close(weight.grad, twin.grad)
    weight.grad = None
    accumulator = kernels.GradientAccumulator([weight])
    kernels.linear(x, weight, out_features=6, gradients=accumulator).backward(cotangent)
    torch.testing.assert_close(weight.grad, twin.grad)


@pytest.mark.parametrize("sizes", several.LINEAR_SIZES.values(), ids=several.LINEAR_SIZES)
@pytest.mark.parametrize("layout", ["matrix", "stacked", "flat"])
def test_several_subnets(backend, sizes, layout):
    """Each with its part of the batch and its extents; the bits of one call for each."""
    several.check_linear(sizes, exact=True, stacked=layout != "matrix", flat=layout == "flat")


def test_several_subnets_of_which_one_has_no_outputs(backend):
    several.check_linear([(13, 9), (0, 9)], exact=True, fused=False)


def test_extents_that_do_not_fit_the_batch(backend):
    x, weight = torch.zeros(4, 3, 6), torch.zeros(8, 6)
    three, two = (several.column([6] * n, "cpu", 0) for n in (3, 2))
    with pytest.raises(ValueError, match="3 subnets, which do not divide a batch of 4"):
        kernels.linear(x, weight, extents=LinearExtents(None, three))
    with pytest.raises(ValueError, match="2 and of 1 subnets"):
        kernels.linear(x, weight, extents=LinearExtents(two, two[:1]))
    with pytest.raises(ValueError, match="a batch of 1"):
        kernels.linear(x[0, 0], weight, extents=LinearExtents(two, None))
