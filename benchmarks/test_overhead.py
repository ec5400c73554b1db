"""Host overhead of the operators and of a whole step, for regressions: `pytest benchmarks`.

Tensors are so small that arithmetic is a minor part; a slower time here means more Python or more
dispatch. Compare runs with pytest-benchmark's own `--benchmark-compare`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import growtas
from benchmarks.variants import missing
from growtas import kernels
from growtas.space import SearchSpace

HEADS, HEAD_DIM, SIDE, WIDTH = 2, 16, 2, 32
TOKENS = SIDE * SIDE + 1
BACKENDS = [
    pytest.param(
        name,
        marks=[pytest.mark.skip(reason=why)]
        if (why := missing(f"growtas-{name}-dense", "cpu"))
        else [],
    )
    for name in ("reference", "native")
]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)


def leaf(*shape: int) -> Tensor:
    return torch.randn(*shape).requires_grad_()


def attention_call() -> tuple[Callable[..., Tensor], list[Tensor]]:
    def call(qkv: Tensor, tables: Tensor) -> Tensor:
        return kernels.attention(qkv, tables, num_heads=HEADS, grid=(SIDE, SIDE))

    return call, [leaf(1, TOKENS, 3 * HEADS * HEAD_DIM), leaf(4, 2 * SIDE + 2, HEAD_DIM)]


def layer_norm_call() -> tuple[Callable[..., Tensor], list[Tensor]]:
    return kernels.layer_norm, [leaf(1, TOKENS, WIDTH), leaf(2 * WIDTH), leaf(2 * WIDTH)]


def linear_call() -> tuple[Callable[..., Tensor], list[Tensor]]:
    def call(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return kernels.linear(x, weight, bias, out_features=WIDTH, input_activation="gelu")

    return call, [leaf(1, TOKENS, WIDTH), leaf(2 * WIDTH, 2 * WIDTH), leaf(2 * WIDTH)]


CALLS = {"attention": attention_call, "layer_norm": layer_norm_call, "linear": linear_call}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("operator", CALLS)
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "train"])
def test_operator(benchmark: Any, operator: str, backend: str, backward: bool) -> None:
    call, inputs = CALLS[operator]()

    def step() -> Tensor:
        if not backward:
            with torch.no_grad():
                return call(*inputs)
        for value in inputs:
            value.grad = None
        out = call(*inputs)
        out.backward(torch.ones_like(out))
        return out

    with kernels.use_backend(backend):
        out = benchmark.pedantic(step, rounds=100, iterations=10, warmup_rounds=5)
    assert out.isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("gradients", ["dense", "accumulate"])
def test_supernet_step(benchmark: Any, backend: str, gradients: str) -> None:
    space = SearchSpace.preset("digits")
    model = growtas.Supernet(space, image_size=8, patch_size=2, num_classes=10, in_chans=1)
    images, labels = torch.randn(2, 1, 8, 8), torch.tensor([3, 7])
    subnets = [space.smallest(), space.largest()]
    accumulator = (
        kernels.GradientAccumulator(model.parameters()) if gradients == "accumulate" else None
    )

    def step() -> Tensor:
        for subnet in subnets:
            if accumulator is None:
                model.zero_grad()
            else:
                accumulator.zero_()
            logits = model(images, subnet, gradients=accumulator)
            F.cross_entropy(logits, labels).backward()
        return logits

    with kernels.use_backend(backend):
        out = benchmark.pedantic(step, rounds=20, iterations=1, warmup_rounds=3)
    assert out.isfinite().all()
