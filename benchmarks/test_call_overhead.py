"""What a call costs the host: every operator at batch 1, and whole training steps.

    OUT=/tmp/rows OMP_NUM_THREADS=1 python -m pytest benchmarks/test_call_overhead.py

Tensors are so small that arithmetic is a minor part of a call; more time here is more Python or
more dispatch. With $OUT every case becomes a row in a file of that folder. Only public names are
used, so the same file measures another commit in a checkout of its own, and `benchmarks.compare`
sets the rows of both side by side.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import growtas
from benchmarks import rows
from benchmarks.runner import Rows
from growtas import kernels
from growtas.space import SearchSpace
from growtas.training import AdamW

WIDTH, WIDEST = 16, 32
SIDE = 2  # patches per side for attention, with a class token beside them
LINEAR_ROWS = 145  # the native products begin at 128 rows
ROUNDS = 300


def runs(backend: str) -> bool:
    try:
        with kernels.use_backend(backend):
            return True
    except kernels.BackendUnavailable:
        return False


BACKENDS = [
    pytest.param(name, marks=pytest.mark.skipif(not runs(name), reason="it cannot run here"))
    for name in ("auto", "reference", "native")
]
Operator = tuple[Callable[..., Any], list[Tensor], list[Tensor]]  # call, inputs, parameters


@pytest.fixture(scope="module")
def book() -> rows.Book:
    out = os.environ.get("OUT")
    return rows.Book("cpu", rows.result_file("cpu", Path(out)) if out else None)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)


def leaf(*shape: int) -> Tensor:
    return torch.randn(*shape).requires_grad_()


def linear() -> Operator:
    def call(x: Tensor, weight: Tensor, bias: Tensor, **options: Any) -> Tensor:
        return kernels.linear(x, weight, bias, out_features=WIDTH, **options)

    return call, [leaf(1, LINEAR_ROWS, WIDTH)], [leaf(WIDEST, WIDEST), leaf(WIDEST)]


def linear_of_mlp() -> Operator:
    """With all that a second layer of an MLP asks for."""
    residual, scale = torch.randn(1, LINEAR_ROWS, WIDTH), torch.ones(1)

    def call(x: Tensor, weight: Tensor, bias: Tensor, **options: Any) -> Tensor:
        return kernels.linear(
            x, weight, bias, out_features=WIDTH, input_activation="gelu",
            sample_scale=scale, residual=residual, **options,
        )  # fmt: skip

    return call, [leaf(1, LINEAR_ROWS, WIDTH)], [leaf(WIDEST, WIDEST), leaf(WIDEST)]


def linear_of_qkv() -> Operator:
    def call(x: Tensor, weight: Tensor, bias: Tensor, **options: Any) -> Tensor:
        return kernels.linear(x, weight, bias, out_features=WIDTH, **options)

    inputs, parameters = [leaf(1, LINEAR_ROWS, WIDTH)], [leaf(3, 2, WIDTH, WIDEST)]
    return call, inputs, [*parameters, leaf(3, 2, WIDTH)]


def layer_norm() -> Operator:
    return kernels.layer_norm, [leaf(1, 5, WIDTH)], [leaf(WIDEST), leaf(WIDEST)]


def pre_norm() -> Operator:
    def call(*tensors: Tensor, **options: Any) -> Tensor:
        normed, stream = kernels.pre_norm(*tensors, **options)
        return normed + stream

    return call, [leaf(1, 5, WIDTH)], [leaf(WIDEST), leaf(WIDEST)]


def attention() -> Operator:
    def call(qkv: Tensor, tables: Tensor, **options: Any) -> Tensor:
        return kernels.attention(qkv, tables, num_heads=2, grid=(SIDE, SIDE), **options)

    return call, [leaf(1, SIDE**2 + 1, 3 * 2 * WIDTH)], [leaf(4, 2 * SIDE + 2, WIDTH)]


OPERATORS = {
    "linear": linear,
    "linear of an MLP": linear_of_mlp,
    "linear of q, k and v": linear_of_qkv,
    "layer_norm": layer_norm,
    "pre_norm": pre_norm,
    "attention": attention,
}


def measure(
    benchmark: Any, step: Callable[[], object], table: Rows, variant: str, *, each: int
) -> None:
    """Time a step, `each` calls to a round, and add the row of its seconds per call."""
    rounds = max(1, ROUNDS // (1 if each > 1 else 10))
    benchmark.pedantic(step, rounds=rounds, iterations=each, warmup_rounds=3)
    if benchmark.stats is not None:  # as it is with --benchmark-disable
        table.add(variant, "wall_time", "s", benchmark.stats.stats.data)


def table(book: rows.Book, task: str) -> Rows:
    return Rows(book, dtype="float32", batch=1, space="", subnet="", task=f"call-{task}")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mode", ["forward", "dense", "accumulate"])
@pytest.mark.parametrize("operator", OPERATORS)
def test_operator(benchmark: Any, book: rows.Book, operator: str, mode: str, backend: str) -> None:
    call, inputs, parameters = OPERATORS[operator]()
    leaves = [*inputs, *parameters]
    options = {}
    if mode == "accumulate":
        options["gradients"] = kernels.GradientAccumulator(parameters)
    fresh = inputs if options else leaves  # whose gradients are made anew
    upstream = torch.ones_like(call(*leaves))

    def forward() -> Tensor:
        with torch.no_grad():
            return call(*leaves)

    def train() -> Tensor:
        for value in fresh:
            value.grad = None
        out = call(*leaves, **options)
        out.backward(upstream)
        return out

    step = forward if mode == "forward" else train
    with kernels.use_backend(backend):
        measure(benchmark, step, table(book, operator), f"{backend}, {mode}", each=10)
        assert step().isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("operator", ["adamw_", "gradient_norm"])
def test_update(benchmark: Any, book: rows.Book, operator: str, backend: str) -> None:
    """Of twenty parameters, as three blocks have."""
    box = (slice(0, 6), slice(0, 6))
    arrays = [torch.rand(4, 8, 8) for _ in range(20)]
    parts = [
        kernels.AdamWRow(weight, gradient, first, second, boxes=[box], step=3.0)
        for weight, gradient, first, second in (values.unbind() for values in arrays)
    ]

    def step() -> None:
        if operator == "adamw_":
            kernels.adamw_(parts, lr=1e-6)
        else:
            kernels.gradient_norm(parts)

    with kernels.use_backend(backend):
        measure(benchmark, step, table(book, operator), backend, each=10)
    assert all(values.isfinite().all() for values in arrays)


@pytest.mark.parametrize("gradients", ["dense", "accumulate"])
@pytest.mark.parametrize("name", ["digits", "autoformer-tiny"])
def test_train_step(benchmark: Any, book: rows.Book, name: str, gradients: str) -> None:
    """Forward, loss, backward and AdamW on the smallest and the largest subnet."""
    space = SearchSpace.preset(name)
    size, patch = (8, 2) if name == "digits" else (64, 16)
    model = growtas.Supernet(space, image_size=size, patch_size=patch, num_classes=10)
    optimizer = AdamW(model.parameters(), lr=1e-6)
    accumulator = (
        kernels.GradientAccumulator(model.parameters()) if gradients == "accumulate" else None
    )
    images, labels = torch.randn(1, 3, size, size), torch.tensor([3])

    def step() -> Tensor:
        for subnet in (space.smallest(), space.largest()):
            if accumulator is None:
                model.zero_grad()
            else:
                accumulator.zero_()
            loss = F.cross_entropy(model(images, subnet, gradients=accumulator), labels)
            loss.backward()
            optimizer.step()
        return loss

    measure(benchmark, step, table(book, f"train step, {name}"), gradients, each=1)
    assert step().isfinite()
