"""Extents on the device: the same numbers as sizes from the host, nothing beyond them read."""

from __future__ import annotations

import pytest
import torch
from oracles import assert_within_budget, bits_equal

from growtas import Subnet, kernels
from growtas.kernels import Extents
from growtas.kernels.extents import LinearExtents

NAN = float("nan")


def count(n):
    return torch.tensor([n], dtype=torch.int32)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def widened(x, *sizes):
    """x in the leading corner of a larger tensor of NaN."""
    wide = x.new_full(sizes, NAN)
    wide[tuple(slice(0, n) for n in x.shape)] = x
    return wide


def corner(x, like):
    return x[tuple(slice(0, n) for n in like.shape)]


def beyond(x, inner):
    """Every entry outside the leading corner of the inner one's shape."""
    outside = torch.ones_like(x, dtype=torch.bool)
    outside[tuple(slice(0, n) for n in inner.shape)] = False
    return x[outside]


def run(function, inputs, cotangent, dtype, gradients=None):
    given = {
        name: x if x is None else x.detach().to(dtype).requires_grad_()
        for name, x in inputs.items()
    }
    y = function(**given)
    leaves = {name: x for name, x in given.items() if x is not None}
    found = torch.autograd.grad(y, list(leaves.values()), cotangent.to(dtype))
    return {"output": y.detach(), **dict(zip(leaves, found, strict=True))}


def compare(narrow, wide, inputs, wide_inputs, cotangent, wide_cotangent, parameters):
    """Both ways in float64 and float32; dense gradients of parameters are zero beyond."""
    golden = run(narrow, inputs, cotangent, torch.float64)
    for dtype in (torch.float64, torch.float32):
        plain = run(narrow, inputs, cotangent, dtype)
        actual = run(wide, wide_inputs, wide_cotangent, dtype)
        again = run(wide, wide_inputs, wide_cotangent, dtype)
        cut = {name: corner(actual[name], golden[name]) for name in golden}
        assert all(bits_equal(corner(again[name], cut[name]), cut[name]) for name in cut)
        assert_within_budget(cut, golden, plain, dtype, epsilons=8)
        for name in parameters:
            assert torch.all(beyond(actual[name], golden[name]) == 0), name


@pytest.mark.parametrize("stacked", [False, True], ids=["matrix", "stacked"])
@pytest.mark.parametrize("residual", [False, True], ids=["plain", "residual"])
@pytest.mark.parametrize("gelu", ["gelu", None])
@pytest.mark.parametrize("known", ["both", "out", "in"])
def test_linear(backend, stacked, residual, gelu, known):
    """13 x 9 of a launched 20 x 12 of a weight of 24 x 15."""
    out, in_ = 13, 9
    launched_out, launched_in = 20, 12
    if known == "out":
        in_ = launched_in
    if known == "in":
        out = launched_out
    parts = 3 if stacked else 1
    lead = (3,) if stacked else ()
    inputs = {
        "x": random(2, 5, in_, seed=1),
        "weight": random(*lead, out, in_, seed=2),
        "bias": random(*lead, out, seed=3),
        "residual": random(2, 5, parts, out, seed=4) if residual else None,
    }
    cotangent = random(2, 5, parts, out, seed=5)
    wide_inputs = {
        "x": widened(inputs["x"], 2, 5, launched_in),
        "weight": widened(inputs["weight"], *lead, 24, 15),
        "bias": widened(inputs["bias"], *lead, 24),
        "residual": widened(inputs["residual"], 2, 5, parts, launched_out) if residual else None,
    }
    wide_cotangent = widened(cotangent, 2, 5, parts, launched_out)
    arguments = {
        "input_activation": gelu,
        "sample_scale": torch.tensor([1.25, 0.0]),
    }
    extents = LinearExtents(
        count(out) if known != "in" else None, count(in_) if known != "out" else None
    )

    def function(launched, sizes):
        def apply(x, weight, bias, residual):
            shape = (*x.shape[:-1], parts, launched)
            y = kernels.linear(
                x, weight, bias, out_features=launched, extents=sizes, **arguments,
                residual=residual if residual is None else residual.flatten(-2),
            )  # fmt: skip
            return y.view(shape)

        return apply

    compare(
        function(out, None), function(launched_out, extents), inputs, wide_inputs, cotangent,
        wide_cotangent, ("weight", "bias"),
    )  # fmt: skip


def test_linear_with_autoformers_flat_bias(backend):
    """Entry t * extent + r, in a buffer of any size."""
    x, weight, bias = random(2, 5, 9), random(3, 6, 9, seed=1), random(18, seed=2)
    cotangent = random(2, 5, 3, 6, seed=3)

    def function(launched, extents):
        return lambda x, weight, bias: kernels.linear(
            x, weight, bias, out_features=launched, extents=extents
        ).unflatten(-1, (3, launched))

    compare(
        function(6, None), function(8, LinearExtents(count(6), count(9))),
        {"x": x, "weight": weight, "bias": bias},
        {
            "x": widened(x, 2, 5, 11),
            "weight": widened(weight, 3, 10, 11),
            "bias": widened(bias, 30),
        },
        cotangent, widened(cotangent, 2, 5, 3, 8), ("weight", "bias"),
    )  # fmt: skip


def test_absent_linear_layers(backend):
    """Without inputs the residual passes unchanged; without outputs the input gets no gradient.
    The parameters, all of them NaN, have no part in either."""
    weight, bias = (torch.full(s, NAN, requires_grad=True) for s in ((6, 8), (6,)))
    residual = random(2, 5, 6).float().requires_grad_()
    x = torch.full((2, 5, 8), NAN, requires_grad=True)
    y = kernels.linear(
        x, weight, bias, residual=residual, sample_scale=torch.tensor([0.0, 2.0]),
        extents=LinearExtents(count(6), count(0)),
    )  # fmt: skip
    assert bits_equal(y, residual)
    cotangent = random(2, 5, 6, seed=1).float()
    y.backward(cotangent)
    assert bits_equal(residual.grad, cotangent)
    assert torch.all(weight.grad == 0)
    assert torch.all(bias.grad == 0)

    for tensor in (weight, bias):
        tensor.grad = None
    x = torch.full((2, 5, 8), NAN, requires_grad=True)
    y = kernels.linear(x, weight, bias, extents=LinearExtents(count(0), count(8)))
    y.backward(torch.full((2, 5, 6), NAN))
    assert torch.all(x.grad == 0)
    assert torch.all(weight.grad == 0)
    assert torch.all(bias.grad == 0)


@pytest.mark.parametrize("width", [8, 24, 40])
def test_layer_norm(backend, width):
    inputs = {
        "x": random(2, 5, width) * 2 + 1,
        "weight": random(width, seed=1) + 1,
        "bias": random(width, seed=2),
    }
    cotangent = random(2, 5, width, seed=3)
    wide_inputs = {
        "x": widened(inputs["x"], 2, 5, 40),
        "weight": widened(inputs["weight"], 44),
        "bias": widened(inputs["bias"], 44),
    }
    compare(
        kernels.layer_norm,
        lambda **given: kernels.layer_norm(**given, extents=count(width), present=count(1)),
        inputs, wide_inputs, cotangent, widened(cotangent, 2, 5, 40), ("weight", "bias"),
    )  # fmt: skip


def test_layer_norm_that_nothing_reads(backend):
    weight, bias = (torch.full((8,), NAN, requires_grad=True) for _ in range(2))
    x = random(3, 8).float().requires_grad_()
    y = kernels.layer_norm(x, weight, bias, extents=count(8), present=count(0))
    y.backward(torch.zeros(3, 8))
    for tensor in (x, weight, bias):
        assert torch.all(tensor.grad == 0)


@pytest.mark.parametrize("heads", [1, 2, 4])
@pytest.mark.parametrize("relative", [True, False])
def test_attention(backend, heads, relative):
    """Some of four heads of 8, on a grid of 2 x 3 with a class token."""
    qkv, cotangent = random(2, 7, 3, heads, 8), random(2, 7, heads, 8, seed=1)
    tables = random(4, 6, 8, seed=2) * 0.3 if relative else None

    def function(launched, extents):
        return lambda qkv, tables: kernels.attention(
            qkv.flatten(2), tables, num_heads=launched, grid=(2, 3), extents=extents
        ).unflatten(-1, (launched, 8))

    compare(
        function(heads, None), function(4, count(heads)),
        {"qkv": qkv, "tables": tables}, {"qkv": widened(qkv, 2, 7, 3, 4, 8), "tables": tables},
        cotangent, widened(cotangent, 2, 7, 4, 8), (),
    )  # fmt: skip


def test_attention_without_heads(backend):
    tables = torch.full((4, 6, 8), NAN, requires_grad=True)
    qkv = torch.full((2, 7, 96), NAN, requires_grad=True)
    out = kernels.attention(qkv, tables, num_heads=4, grid=(2, 3), extents=count(0))
    out.backward(torch.full((2, 7, 32), NAN))
    assert torch.all(tables.grad == 0)


def test_accumulating_leaves_everything_beyond_alone(backend):
    """What is in the gradient buffers outside the extents stays; inside, the gradient is added."""
    sizes = [(20, 24), (20,), (24,), (24,)]
    parameters = [torch.nn.Parameter(random(*size, seed=i)) for i, size in enumerate(sizes)]
    boxes = [(9, 16), (9,), (16,), (16,)]
    weight, bias, norm, shift = parameters
    x = widened(random(2, 5, 16), 2, 5, 24)

    def step(gradients):
        y = kernels.layer_norm(x, norm, shift, extents=count(16), gradients=gradients)
        sizes = LinearExtents(count(9), count(16))
        y = kernels.linear(y, weight, bias, extents=sizes, gradients=gradients)
        y.backward(widened(random(2, 5, 9, seed=7), 2, 5, 20))

    step(None)
    want = [p.grad.clone() for p in parameters]
    for p, box in zip(parameters, boxes, strict=True):
        p.grad = widened(torch.ones(box, dtype=torch.float64), *p.shape).nan_to_num(nan=7.0)
    accumulator = kernels.GradientAccumulator(parameters)
    step(accumulator)
    for p, g, box in zip(parameters, want, boxes, strict=True):
        inner = torch.empty(box)
        torch.testing.assert_close(corner(p.grad, inner), 1 + corner(g, inner), rtol=1e-12, atol=0)
        assert torch.all(beyond(p.grad, inner) == 7.0)


def test_writing_between_forward_and_backward_is_refused(backend):
    extents = Extents(2, 16, 2, 8, 32)
    extents.write(Subnet(8, (1,), (2.0,)))
    x = random(3, 16).requires_grad_()
    y = kernels.layer_norm(x, torch.ones(16).double(), torch.zeros(16).double(),
                           extents=extents.embed)  # fmt: skip
    extents.write(Subnet(16, (1,), (2.0,)))
    with pytest.raises(RuntimeError, match="modified by an inplace"):
        y.sum().backward()


def test_the_table_of_a_subnet():
    extents = Extents(3, 48, 3, 8, 192, hidden_multiple=12)
    address = extents.table.data_ptr()
    extents.write(Subnet(24, (2, 3), (1.0, 3.5)))
    assert extents.table.tolist() == [[[24, 2, 24, 1, 16], [24, 3, 84, 1, 24], [24, 0, 0, 0, 0]]]
    assert extents.table.data_ptr() == address
    assert extents.table.dtype == torch.int32
    assert [int(x) for x in extents.blocks[1]] == [24, 3, 84, 1, 24, 8, 4]
    assert int(extents.embed) == 24


def test_the_table_of_several_subnets():
    """A row of the table for each; a column of all of them for each extent."""
    extents = Extents(2, 48, 3, 8, 192, groups=3)
    address = extents.table.data_ptr()
    extents.write([Subnet(24, (2,), (1.0,)), Subnet(48, (3, 1), (4.0, 2.0)), Subnet(8, (1,), (2,))])
    assert extents.groups == 3
    assert extents.table.tolist() == [
        [[24, 2, 24, 1, 16], [24, 0, 0, 0, 0]],
        [[48, 3, 192, 1, 24], [48, 1, 96, 1, 8]],
        [[8, 1, 16, 1, 8], [8, 0, 0, 0, 0]],
    ]
    assert extents.embed.tolist() == [24, 48, 8]
    assert extents.blocks[1].hidden.tolist() == [0, 96, 0]
    assert extents.blocks[1].hidden.stride() == (10,)
    before = extents.table.clone()
    one = Subnet(24, (1,), (1.0,))
    for count, given in ((0, []), (1, one), (2, [one, one])):
        with pytest.raises(ValueError, match=f"{count} subnets for 3 groups"):
            extents.write(given)
    with pytest.raises(ValueError, match="embed_dim is 56"):
        extents.write([one, one, Subnet(56, (1,), (1.0,))])
    assert torch.equal(extents.table, before)
    assert extents.table.data_ptr() == address


def test_multiples_that_are_promised():
    extents = Extents(1, 48, 3, 8, 192, embed_multiple=12)
    assert extents.embed_multiple == 4
    extents.write(Subnet(36, (1,), (1.0,)))
    with pytest.raises(ValueError, match=r"embed_dim is 22.*multiples of 4"):
        extents.write(Subnet(22, (1,), (1.0,)))
    with pytest.raises(ValueError, match="embed_multiple is 5, embed_dim 48"):
        Extents(1, 48, 3, 8, 192, embed_multiple=5)
    with pytest.raises(ValueError, match="in 0 groups"):
        Extents(1, 48, 3, 8, 192, groups=0)


@pytest.mark.parametrize(
    ("subnet", "message"),
    [
        (Subnet(56, (1,), (1.0,)), "embed_dim is 56.*1 to 48, multiples of 8"),
        (Subnet(20, (1,), (1.0,)), "embed_dim is 20.*multiples of 8"),
        (Subnet(24, (1, 4), (1.0, 1.0)), "num_heads is 4.*1 to 3"),
        (Subnet(24, (1,), (1.25,)), "hidden_dim is 30.*multiples of 4"),
        (Subnet(48, (1,), (5.0,)), "hidden_dim is 240.*1 to 192"),
        (Subnet(24, (1,) * 4, (1.0,) * 4), "4 blocks.*1 to 3"),
    ],
)
def test_a_bad_subnet_is_refused_before_anything_is_written(subnet, message):
    extents = Extents(3, 48, 3, 8, 192, hidden_multiple=4)
    extents.write(Subnet(24, (2,), (1.0,)))
    before = extents.table.clone()
    with pytest.raises(ValueError, match=message):
        extents.write(subnet)
    assert torch.equal(extents.table, before)


def test_extents_of_another_kind_are_refused():
    x, one = torch.ones(2, 8), torch.ones(8)
    for wrong in (torch.tensor([8]), torch.tensor(8, dtype=torch.int32)):
        with pytest.raises(ValueError, match=r"int32 \[1\]"):
            kernels.layer_norm(x, one, one, extents=wrong)
    with pytest.raises(ValueError, match="hidden_multiple is 5"):
        Extents(1, 8, 1, 8, 16, hidden_multiple=5)
    with pytest.raises(ValueError, match="1 or more"):
        Extents(0, 8, 1, 8, 16)
