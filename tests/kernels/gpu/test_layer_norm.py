"""The LayerNorm kernels against float64."""

from __future__ import annotations

from functools import partial

import oracles
import pytest
import several
import torch
from oracles import assert_within_budget, bits_equal

from growtas import kernels
from growtas.kernels.call import Grads
from growtas.kernels.layer_norm.api import LayerNormCall
from growtas.kernels.triton import support as triton_support


@pytest.fixture
def gpu():
    """Imported within a test: Triton then knows whether it interprets."""
    from growtas.kernels.layer_norm import gpu

    return gpu


@pytest.fixture
def any_dtype(monkeypatch):
    """The kernels do in the interpreter what dispatch, for all kernels, says it does wrongly."""
    monkeypatch.setattr(triton_support, "unsupported", lambda *tensors: None)


def case(width, device, *, rows=(3, 5), dtype=torch.float32, offset=0.0):
    """NaN in the parameters beyond the width."""
    g = torch.Generator().manual_seed(width)
    inputs = {"x": (torch.randn(*rows, width, generator=g) * 2 + offset).to(device, dtype)}
    for name, centre in (("weight", 1.0), ("bias", 0.0)):
        values = torch.full((width + 7,), float("nan"))
        values[:width] = torch.randn(width, generator=g) + centre
        inputs[name] = values.to(device, dtype)
    return inputs, torch.randn(*rows, width, generator=g).to(device, dtype)


def check(inputs, cotangent, dtype, epsilons=2):
    golden = oracles.outputs_and_gradients(oracles.layer_norm, inputs, cotangent, torch.float64)
    plain = oracles.outputs_and_gradients(oracles.layer_norm, inputs, cotangent, dtype)
    actual = oracles.outputs_and_gradients(kernels.layer_norm, inputs, cotangent, dtype)
    assert_within_budget(actual, golden, plain, dtype, epsilons=epsilons)
    return actual


@pytest.mark.parametrize("width", [1, 2, 7, 8, 17, 100, *oracles.EMBED_WIDTHS, 1030])
def test_matches_float64(device, width):
    check(*case(width, device), torch.float32, epsilons=2 if width > 8 else 8)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("width", [24, 216])
def test_half_precision(device, any_dtype, width, dtype):
    check(*case(width, device, dtype=dtype), dtype)


def test_large_mean_does_not_cancel(device):
    check(*case(192, device, offset=2000.0), torch.float32)


def test_more_rows_than_programs_can_take_at_once(device, gpu, monkeypatch):
    """Every program takes several tiles, the last of them fewer; the same bits again."""
    monkeypatch.setattr(gpu, "PROGRAMS", 3)
    inputs, cotangent = case(40, device, rows=(131,))
    first, second = (check(inputs, cotangent, torch.float32) for _ in range(2))
    assert all(bits_equal(first[name], second[name]) for name in first)


@pytest.fixture
def counted(monkeypatch, gpu):
    """The counters of every launch."""
    given = []

    def counters(device, count):
        given.append(torch.zeros(count, dtype=torch.int32, device=device))
        return given[-1]

    monkeypatch.setattr(gpu, "counters", counters)
    return given


@pytest.mark.parametrize("team", [1, 2, 3, 16])
def test_whoever_comes_last_adds_up_the_same(device, gpu, monkeypatch, counted, team):
    """5 programs in teams, in any order: the same bits, and counters that are zero again."""
    if device != "cpu":
        pytest.skip("the interpreter can be told an order")
    from triton.runtime.interpreter import interpreter_builder

    monkeypatch.setattr(gpu, "TEAM", team)
    monkeypatch.setattr(gpu, "PROGRAMS", 5)
    inputs, cotangent = case(40, device, rows=(131,))
    in_order = check(inputs, cotangent, torch.float32)
    tell = interpreter_builder.set_grid_idx
    for order in ([4, 3, 2, 1, 0], [2, 4, 0, 1, 3]):
        told = []
        with monkeypatch.context() as patch:

            def shuffled(x, y, z, order=order, told=told):
                if interpreter_builder.grid_dim[0] == 5:  # the backward kernel
                    x = order[x]
                    told.append(x)
                tell(x, y, z)

            patch.setattr(interpreter_builder, "set_grid_idx", shuffled)
            again = check(inputs, cotangent, torch.float32)
        assert told == order
        assert all(bits_equal(in_order[name], again[name]) for name in in_order)
    assert len(counted) == 3
    for counters in counted:
        assert len(counters) == 1 + -(-5 // team)
        assert torch.all(counters == 0)


def test_rows_of_wider_buffers_and_an_empty_batch(device):
    inputs, _ = case(12, device)
    x, weight, bias = inputs.values()
    wide = torch.full((*x.shape[:-1], 20), float("nan"), device=device)
    wide[..., :12] = x
    y = kernels.layer_norm(x, weight, bias)
    assert bits_equal(kernels.layer_norm(wide[..., :12], weight, bias), y)
    assert kernels.layer_norm(x[:0], weight, bias).shape == (0, 5, 12)


def test_accumulates_inside_and_keeps_every_bit_outside(device):
    inputs, cotangent = case(10, device)
    weight, bias = (torch.nn.Parameter(inputs[name]) for name in ("weight", "bias"))
    accumulator = kernels.GradientAccumulator([weight, bias])
    for parameter in (weight, bias):
        parameter.grad.copy_(torch.randn(parameter.shape))
    before = [weight.grad.clone(), bias.grad.clone()]
    x = inputs["x"].requires_grad_()
    kernels.layer_norm(x, weight, bias, gradients=accumulator).backward(cotangent)
    dense = oracles.outputs_and_gradients(kernels.layer_norm, inputs, cotangent)
    for name, parameter, start in zip(("weight", "bias"), (weight, bias), before, strict=True):
        assert bits_equal(parameter.grad[10:], start[10:])
        torch.testing.assert_close(parameter.grad[:10], start[:10] + dense[name][:10])
        assert torch.all(dense[name][10:] == 0)


def test_one_parameter_gradient_alone(device):
    inputs, cotangent = case(24, device)
    both = oracles.outputs_and_gradients(kernels.layer_norm, inputs, cotangent)
    for name in ("weight", "bias"):
        given = {key: value.detach() for key, value in inputs.items()}
        given[name].requires_grad_()
        kernels.layer_norm(**given).backward(cotangent)
        assert bits_equal(given[name].grad, both[name])


@pytest.mark.parametrize("pitch", [32, 40])
def test_width_on_the_device(device, gpu, pitch):
    """24 columns of wider buffers: as with 24 given, to the bit where the block of columns is the
    same one (32; in one of 64 sums are made in another order); beyond, nothing moves."""
    inputs, cotangent = case(24, device)
    x, weight, bias = inputs.values()
    same = bits_equal if pitch == 32 else partial(torch.allclose, rtol=1e-6, atol=1e-5)

    def widened(tensor):
        wide = torch.full((*tensor.shape[:-1], pitch), float("nan"), device=device)
        wide[..., :24] = tensor
        return wide

    width = torch.tensor([24], dtype=torch.int32, device=device)
    call = LayerNormCall(x, weight, bias, 1e-5, torch.float32, None, None)
    y, *statistics = gpu.forward(call)
    parameters = torch.nn.functional.pad(weight, (0, 16)), torch.nn.functional.pad(bias, (0, 16))
    wide_call = LayerNormCall(widened(x), *parameters, 1e-5, torch.float32, width, None)
    wide = gpu.forward(wide_call)
    assert same(wide[0][..., :24], y)
    assert all(same(a, b) for a, b in zip(wide[1:], statistics, strict=True))
    assert wide[0][..., 24:].isnan().all()  # torch.empty is poisoned

    gradients = tuple(torch.full((47,), 2.0, device=device) for _ in range(4))
    dx = gpu.backward(call, statistics, cotangent, Grads(gradients[:2], True, None))
    wide_dx = gpu.backward(
        wide_call, statistics, widened(cotangent), Grads(gradients[2:], True, None)
    )
    assert same(wide_dx[..., :24], dx)
    assert wide_dx[..., 24:].isnan().all()
    assert same(gradients[2], gradients[0])
    assert same(gradients[3], gradients[1])
    assert torch.all(gradients[2][24:] == 2)


@pytest.mark.parametrize("programs", [2, 5, 264])
@pytest.mark.parametrize("widths", [[24], [8, 40], [40, 16, 24]], ids=str)
def test_several_subnets(device, gpu, monkeypatch, widths, programs):
    """Of 30 rows each, shared among programs that take part of one subnet, or of several."""
    monkeypatch.setattr(gpu, "PROGRAMS", programs)
    several.check_layer_norm(widths, device=device, exact=len(widths) == 1, images=6)


def test_several_subnets_of_which_one_is_not_read(device):
    several.check_layer_norm([24, 40, 16], device=device, exact=False, absent=(1,))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_gradient_of_the_stream(device, any_dtype, dtype):
    """Added before dx is rounded; read by its strides."""
    inputs, cotangent = case(24, device, dtype=dtype)
    wide = torch.full((*cotangent.shape[:-1], 40), float("nan"), device=device, dtype=dtype)
    wide[..., :24] = cotangent * 3

    class Stream(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, dy):
            return wide[..., :24]

    def branch(x, weight, bias):
        y, stream = kernels.pre_norm(x, weight, bias)
        return Stream.apply(stream) + y

    golden, plain = (
        oracles.outputs_and_gradients(
            lambda x, weight, bias: x * 3 + oracles.layer_norm(x, weight, bias), inputs,
            cotangent, to,
        )
        for to in (torch.float64, dtype)
    )  # fmt: skip
    actual = oracles.outputs_and_gradients(branch, inputs, cotangent)
    for results in (golden, plain, actual):
        del results["output"]
    assert_within_budget(actual, golden, plain, dtype)
