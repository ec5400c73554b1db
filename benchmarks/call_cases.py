"""The calls whose host time is measured: every operator at batch 1, an update, training steps.

Tensors are so small that arithmetic is a minor part of a call. Only public names of growtas are
used, so the same file measures other commits: `benchmarks.paired_calls` runs it in two checkouts.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import growtas
from growtas import kernels
from growtas.space import SearchSpace
from growtas.training import AdamW

WIDTH, WIDEST = 16, 32
SIDE = 2  # patches per side for attention, with a class token beside them
LINEAR_ROWS = 145  # the native products begin at 128 rows

Operator = tuple[Callable[..., Any], list[Tensor], list[Tensor]]  # call, inputs, parameters
Step = Callable[[], Tensor]  # what it returns is to be finite


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


UPDATES = ("adamw_", "gradient_norm")
SPACES = ("digits", "autoformer-tiny")
GRADIENTS = ("dense", "accumulate")
MODES = ("forward", *GRADIENTS)


def operator_step(operator: str, mode: str) -> Step:
    """A call of `OPERATORS`, forward alone or with its backward pass."""
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

    return forward if mode == "forward" else train


def update_step(operator: str) -> Step:
    """One of `UPDATES`, of twenty parameters, as three blocks have."""
    box = (slice(0, 6), slice(0, 6))
    arrays = torch.rand(20, 4, 8, 8)
    parts = [
        kernels.AdamWRow(weight, gradient, first, second, boxes=[box], step=3.0)
        for weight, gradient, first, second in (values.unbind() for values in arrays.unbind())
    ]

    def update() -> Tensor:
        kernels.adamw_(parts, lr=1e-6)
        return arrays

    return update if operator == "adamw_" else lambda: kernels.gradient_norm(parts)


def train_step(name: str, gradients: str) -> Step:
    """Forward, loss, backward and AdamW on the smallest and the largest subnet of a space."""
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

    return step


def cases() -> dict[str, Step]:
    """All of them, by a name."""
    found = {f"{name}, {mode}": operator_step(name, mode) for name in OPERATORS for mode in MODES}
    found |= {name: update_step(name) for name in UPDATES}
    return found | {
        f"train step {name}, {gradients}": train_step(name, gradients)
        for name in SPACES
        for gradients in GRADIENTS
    }


def work() -> None:
    """Times what is asked for, a line each, until nobody asks."""
    if Path(growtas.__file__).parents[1] != Path.cwd():
        sys.exit(f"{growtas.__file__} is not of {Path.cwd()}")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    steps = cases()
    print(json.dumps(list(steps)), flush=True)
    for line in sys.stdin:
        name, calls = json.loads(line)
        start = time.perf_counter()
        for _ in range(calls):
            steps[name]()
        print(time.perf_counter() - start, flush=True)


if __name__ == "__main__":
    work()
