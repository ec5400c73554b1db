"""layer_norm: statistics over the sampled width, parameters read and written by slice."""

from __future__ import annotations

import oracles
import pytest
import several
import torch
from oracles import DTYPES, EMBED_WIDTHS, assert_within_budget, bits_equal

from growtas import kernels


def case(width, *, rows=(3, 5), width_max=None, seed=0, offset=0.0):
    g = torch.Generator().manual_seed(seed)
    width_max = width_max or width + 7
    inputs = {"x": torch.randn(*rows, width, generator=g) * 2 + offset}
    for name, centre in (("weight", 1.0), ("bias", 0.0)):
        values = torch.full((width_max,), float("nan"))
        values[:width] = torch.randn(width, generator=g) + centre
        inputs[name] = values
    return inputs, torch.randn(*rows, width, generator=g)


def run_all(inputs, cotangent, dtype):
    stored = {name: value.to(dtype) for name, value in inputs.items()}
    golden = oracles.outputs_and_gradients(
        oracles.layer_norm, stored, cotangent.to(dtype), torch.float64
    )
    plain = oracles.outputs_and_gradients(oracles.layer_norm, stored, cotangent, dtype)
    actual = oracles.outputs_and_gradients(kernels.layer_norm, stored, cotangent, dtype)
    return actual, golden, plain


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [1, 2, 7, 8, 15, 16, 17, 31, 64, 100, *EMBED_WIDTHS])
def test_matches_float64(backend, dtype, width):
    if width == 1 and dtype != torch.float32:
        pytest.skip("one value per row: the output is the bias")
    actual, golden, plain = run_all(*case(width), dtype)
    assert_within_budget(actual, golden, plain, dtype, epsilons=2 if width > 8 else 8)


def test_large_mean_does_not_cancel(backend):
    """Two-pass statistics: a mean a thousand times the deviation costs no accuracy."""
    actual, golden, plain = run_all(*case(192, offset=2000.0), torch.float32)
    assert_within_budget(actual, golden, plain, torch.float32)


def test_more_rows_than_a_chunk(backend):
    """Parameter gradients of many rows, reduced in a fixed order."""
    inputs, cotangent = case(40, rows=(3001,))
    actual, golden, plain = run_all(inputs, cotangent, torch.float32)
    assert_within_budget(actual, golden, plain, torch.float32)
    again = run_all(inputs, cotangent, torch.float32)[0]
    assert all(bits_equal(actual[name], again[name]) for name in actual)


def test_float32_parameters_and_autocast_output(backend):
    inputs, _ = case(24)
    x, weight, bias = inputs.values()
    y = kernels.layer_norm(x.bfloat16(), weight, bias)
    assert y.dtype == torch.bfloat16
    with torch.autocast("cpu", dtype=torch.bfloat16):
        z = kernels.layer_norm(x, weight, bias)
    assert z.dtype == torch.bfloat16
    assert bits_equal(z, kernels.layer_norm(x, weight, bias).bfloat16())


def test_accumulate_adds_inside_and_keeps_every_bit_outside(backend):
    inputs, cotangent = case(10, width_max=17)
    weight, bias = (torch.nn.Parameter(inputs[name]) for name in ("weight", "bias"))
    accumulator = kernels.GradientAccumulator([weight, bias])
    for parameter in (weight, bias):
        parameter.grad.copy_(torch.randn(parameter.shape))
    sentinels = [weight.grad.clone(), bias.grad.clone()]
    x = inputs["x"].requires_grad_()
    kernels.layer_norm(x, weight, bias, gradients=accumulator).backward(cotangent)
    dense = oracles.outputs_and_gradients(kernels.layer_norm, inputs, cotangent)
    for parameter, sentinel, name in zip(
        (weight, bias), sentinels, ("weight", "bias"), strict=True
    ):
        assert torch.all(dense[name][10:] == 0)
        assert bits_equal(parameter.grad[10:], sentinel[10:])
        torch.testing.assert_close(parameter.grad[:10], sentinel[:10] + dense[name][:10])
    assert accumulator.dirty(weight) == (10,)


def test_rows_of_a_wider_buffer(backend):
    """A view with a row stride beyond its width is read in place."""
    inputs, _ = case(12)
    x, weight, bias = inputs.values()
    wide = torch.full((*x.shape[:-1], 20), float("nan"))
    wide[..., :12] = x
    assert bits_equal(
        kernels.layer_norm(wide[..., :12], weight, bias), kernels.layer_norm(x, weight, bias)
    )


def test_nan_propagates(backend):
    inputs, _ = case(12)
    x, weight, bias = inputs.values()
    x[0, 1, 3] = float("nan")
    y = kernels.layer_norm(x, weight, bias)
    assert y[0, 1].isnan().all()
    assert not y[1].isnan().any()


def test_gradcheck(backend):
    x, weight, bias = (torch.nan_to_num(t.double()).requires_grad_() for t in case(6)[0].values())
    assert torch.autograd.gradcheck(kernels.layer_norm, (x, weight, bias))


@pytest.mark.parametrize(
    ("width", "sizes", "error", "message"),
    [
        (9, (8, 8), ValueError, "x is 9 wide, the parameters allow 1 to 8"),
        (8, (8, 9), ValueError, "1-D of one size"),
    ],
)
def test_bad_input_is_named(backend, width, sizes, error, message):
    with pytest.raises(error, match=message):
        kernels.layer_norm(torch.zeros(2, width), torch.ones(sizes[0]), torch.zeros(sizes[1]))


@pytest.mark.parametrize("widths", [[24], [8, 40], [40, 16, 24]], ids=str)
def test_several_subnets(backend, widths):
    """Each with its part of the batch and its width; the bits of one call for each."""
    several.check_layer_norm(widths, exact=True)


def test_several_subnets_of_which_one_is_not_read(backend):
    several.check_layer_norm([24, 40, 16], exact=True, absent=(1,))


def test_extents_that_do_not_fit(backend):
    x, one = torch.zeros(4, 8), torch.ones(8)
    three, two = (several.column([8] * n, "cpu", 0) for n in (3, 2))
    with pytest.raises(ValueError, match="3 subnets, which do not divide a batch of 4"):
        kernels.layer_norm(x, one, one, extents=three)
    with pytest.raises(ValueError, match="2 and of 1 subnets"):
        kernels.layer_norm(x, one, one, extents=two, present=two[:1])
    with pytest.raises(ValueError, match="present is given, extents are not"):
        kernels.layer_norm(x, one, one, present=two)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [17, 216])
def test_pre_norm_adds_the_gradient_of_the_stream(backend, dtype, width):
    """x + norm(x), whose two gradients become one."""
    inputs, cotangent = case(width)

    def branch(x, weight, bias):
        y, stream = kernels.pre_norm(x, weight, bias)
        assert stream.data_ptr() == x.data_ptr()
        return stream * 3 + y

    stored = {name: value.to(dtype) for name, value in inputs.items()}
    golden, plain = (
        oracles.outputs_and_gradients(
            lambda x, weight, bias: x * 3 + oracles.layer_norm(x, weight, bias), stored,
            cotangent.to(dtype), to,
        )
        for to in (torch.float64, dtype)
    )  # fmt: skip
    actual = oracles.outputs_and_gradients(branch, stored, cotangent, dtype)
    assert_within_budget(actual, golden, plain, dtype)


def test_pre_norm_of_which_one_result_is_used(backend):
    inputs, cotangent = case(12)
    x, weight, bias = (value.requires_grad_() for value in inputs.values())
    y, stream = kernels.pre_norm(x, weight, bias)
    of_stream = torch.autograd.grad(stream, x, cotangent, retain_graph=True)[0]
    assert bits_equal(of_stream, cotangent)
    alone = torch.autograd.grad(kernels.layer_norm(x, weight, bias), x, cotangent)[0]
    assert bits_equal(torch.autograd.grad(y, x, cotangent)[0], alone)
    with torch.no_grad():
        again, same = kernels.pre_norm(x, weight, bias)
    assert same is x
    assert bits_equal(again, y.detach())
