"""torch.func and second derivatives go through plain PyTorch; what cannot, says so."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call, grad, hessian, jvp, vjp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

import growtas
from growtas import kernels
from growtas.kernels.extents import LinearExtents

SPACE = growtas.SearchSpace((16, 24), (1, 2), (1, 2), (2.0,), 8)


def double(*shape):
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, dtype=torch.float64, generator=generator).requires_grad_()


def column(value):
    return torch.tensor([value], dtype=torch.int32)


def linear(x, weight, bias, residual, **options):
    return kernels.linear(
        x, weight, bias, out_features=4, input_activation="gelu",
        sample_scale=torch.tensor([0.5, 2.0]), residual=residual, **options,
    )  # fmt: skip


def attention(qkv, tables, **options):
    return kernels.attention(qkv, tables, num_heads=2, grid=(2, 2), **options)


LINEAR = [double(2, 3, 5), double(2, 3, 2, 6), double(2, 3, 2), double(2, 3, 8)]
NORM = [double(2, 3, 5), double(8), double(8)]
ATTENTION = [double(2, 5, 12), double(4, 4, 2)]
CASES = {
    "linear": (linear, LINEAR, {}),
    "linear, extents": (linear, LINEAR, {"extents": LinearExtents(column(3), column(4))}),
    "layer_norm": (kernels.layer_norm, NORM, {}),
    "layer_norm, extents": (
        kernels.layer_norm, NORM, {"extents": column(4), "present": column(1)},
    ),
    "pre_norm": (kernels.pre_norm, NORM, {}),
    "attention": (attention, ATTENTION, {}),
    "attention, extents": (attention, ATTENTION, {"extents": column(1)}),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_second_derivatives(case):
    function, inputs, options = CASES[case]
    assert torch.autograd.gradgradcheck(lambda *given: function(*given, **options), inputs)


def test_a_gradient_penalty_is_that_of_plain_pytorch():
    """Of a whole model, whose layer norms' outputs are not kept but computed again."""
    torch.manual_seed(0)
    model = growtas.Supernet(SPACE, 8, 4, 3).double()
    subnet = SPACE.largest()
    alone = model.extract(subnet)
    images = double(2, 3, 8, 8)

    def penalty(network, *arguments):
        network.zero_grad()
        (inner,) = torch.autograd.grad(
            network(images, *arguments).square().sum(), images, create_graph=True
        )
        inner.square().sum().backward()
        return network.head.weight.grad, network.blocks[0].mlp.fc2.weight.grad

    with sdpa_kernel(SDPBackend.MATH):  # others have no second derivative
        expected = penalty(alone)
    for found, wanted in zip(penalty(model, subnet), expected, strict=True):
        torch.testing.assert_close(found, wanted)


def test_second_derivatives_on_a_named_backend_and_with_an_accumulator():
    x, weight = torch.randn(2, 5, requires_grad=True), torch.randn(4, 5, requires_grad=True)
    accumulator = kernels.GradientAccumulator([weight])
    y = kernels.linear(x, weight, gradients=accumulator).square().sum()
    with pytest.raises(RuntimeError, match=r"for create_graph=True its gradients must be None"):
        torch.autograd.grad(y, x, create_graph=True)
    try:
        with kernels.use_backend("native"):
            y = kernels.linear(x, weight).square().sum()
            with pytest.raises(kernels.BackendUnavailable, match=r"use_backend\('reference'\)"):
                torch.autograd.grad(y, x, create_graph=True)
    except kernels.BackendUnavailable as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def trained():
    """A model, its parameters, a batch, and loss(parameters, images, labels)."""
    torch.manual_seed(0)
    model = growtas.Supernet(SPACE, 8, 4, 3)
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    images, labels = torch.randn(3, 3, 8, 8), torch.tensor([0, 1, 2])

    def loss(parameters, images, labels):
        logits = functional_call(model, parameters, (images, SPACE.largest()))
        return F.cross_entropy(logits, labels)

    F.cross_entropy(model(images, SPACE.largest()), labels).backward()
    return model, parameters, images, labels, loss


def test_grad_and_gradients_per_sample(trained):
    model, parameters, images, labels, loss = trained
    whole = grad(loss)(parameters, images, labels)
    each = vmap(grad(lambda p, x, y: loss(p, x[None], y[None])), in_dims=(None, 0, 0))(
        parameters, images, labels
    )
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(whole[name], parameter.grad, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(each[name].mean(0), parameter.grad, rtol=1e-4, atol=1e-6)


def test_products_with_jacobians_and_hessians(trained):
    model, _, images, _, _ = trained
    forward = lambda x: model(x, SPACE.smallest())  # noqa: E731
    direction = torch.randn_like(images)
    logits, pullback = vjp(forward, images)
    (pulled,) = pullback(torch.ones_like(logits))
    _, pushed = jvp(forward, (images,), (direction,))
    torch.testing.assert_close((pulled * direction).sum(), pushed.sum(), rtol=1e-4, atol=1e-5)
    x, weight = torch.randn(3), torch.randn(2, 3)
    curvature = hessian(lambda x: kernels.linear(x, weight).square().sum())(x)
    torch.testing.assert_close(curvature, 2 * weight.T @ weight)


def test_what_torch_func_cannot_have():
    x, weight = torch.randn(2, 5), torch.randn(4, 5, requires_grad=True)
    accumulator = kernels.GradientAccumulator([weight])
    with pytest.raises(ValueError, match=r"under torch.compile and torch.func it must be None"):
        grad(lambda x: kernels.linear(x, weight, gradients=accumulator).sum())(x)
    try:
        with (
            kernels.use_backend("native"),
            pytest.raises(
                kernels.BackendUnavailable,
                match=r"no linear for torch.func; use_backend\('reference'",
            ),
        ):
            grad(lambda x: kernels.linear(x, weight).sum())(x)
    except kernels.BackendUnavailable as error:
        pytest.skip(str(error))


def test_with_an_accumulator_torch_compile_leaves_the_operator_alone():
    x, weight = torch.randn(2, 5), torch.randn(4, 5, requires_grad=True)
    accumulator = kernels.GradientAccumulator([weight])
    function = lambda x: kernels.linear(x, weight, gradients=accumulator).sum()  # noqa: E731
    torch.compile(function, backend="eager")(x).backward()
    torch.testing.assert_close(weight.grad, x.sum(0).expand(4, 5))
    assert accumulator.dirty(weight) == (4, 5)
