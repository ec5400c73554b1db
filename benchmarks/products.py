"""How fast the products of a subnet's linear layers are: ours on slices of the max-size weight,
PyTorch's libraries on dense copies of the same numbers. One thread, so that only kernels compare.

`torch` is what a dense layer runs: F.linear forward, `mm` for the gradients. `onednn` is oneDNN's
linear, each operand copied beforehand (not timed) to the layout it reads fastest. No bias.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.cases import Case
from benchmarks.rows import Book, Row
from benchmarks.runner import (
    BFLOAT16_FACTOR,
    FLOAT32_TOLERANCE,
    Effort,
    Rows,
    WrongResult,
    interleave,
    paired_ratios,
    relative_error,
    survived,
    warm_up,
)
from growtas import kernels

LAYERS = ("qkv", "proj", "fc1", "fc2")
DIRECTIONS = ("forward", "input-gradient", "weight-gradient")
OURS = "growtas-native"

Step = Callable[[], Tensor]


@dataclass(frozen=True)
class Product:
    """Operands of one layer: x [rows, in], dy [rows, out], and the buffer [out_max, in_max] whose
    leading [out, in] are the weight."""

    x: Tensor
    dy: Tensor
    weight: Tensor

    @property
    def flops(self) -> int:
        return 2 * self.x.shape[0] * self.x.shape[1] * self.dy.shape[1]


def product(case: Case, layer: str) -> Product:
    """A layer of the case's subnet, its first block, in the case's dtype."""
    subnet, size = case.subnet, case.space.supernet
    inner, inner_max = (h * case.space.head_dim for h in (subnet.num_heads[0], size.num_heads))
    hidden = subnet.hidden_dims[0]
    ins, outs = {
        "qkv": ((subnet.embed_dim, size.embed_dim), (3 * inner, 3 * inner_max)),
        "proj": ((inner, inner_max), (subnet.embed_dim, size.embed_dim)),
        "fc1": ((subnet.embed_dim, size.embed_dim), (hidden, size.hidden_dim)),
        "fc2": ((hidden, size.hidden_dim), (subnet.embed_dim, size.embed_dim)),
    }[layer]
    rows = case.batch * ((case.image_size // case.patch_size) ** 2 + 1)
    generator = torch.Generator().manual_seed(0)
    dtype = getattr(torch, case.dtype)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    return Product(draw(rows, ins[0]), draw(rows, outs[0]), draw(outs[1], ins[1]))


def steps_of(p: Product, direction: str) -> dict[str, Step]:
    """The timed calls by variant; each returns the product."""
    out_features, in_features = p.dy.shape[1], p.x.shape[1]
    x, dy = p.x, p.dy
    weight = p.weight[:out_features, :in_features].contiguous()
    onednn = torch.ops.mkldnn._linear_pointwise

    def one_dnn(a: Tensor, b: Tensor) -> Step:
        return lambda: onednn(a, b, None, "none", [], "")

    # As in training: a float32 parameter whatever the activation, gradients added in place.
    train_weight = direction == "weight-gradient"
    buffer = torch.nn.Parameter(p.weight.float(), requires_grad=train_weight)
    accumulator = kernels.GradientAccumulator([buffer]) if train_weight else None
    leaf = x.clone().requires_grad_(direction == "input-gradient")

    def forward() -> Tensor:
        with kernels.use_backend("native"):
            return kernels.linear(leaf, buffer, out_features=out_features, gradients=accumulator)

    out = forward()

    def input_gradient() -> Tensor:
        with kernels.use_backend("native"):
            return torch.autograd.grad(out, leaf, dy, retain_graph=True)[0]

    def weight_gradient() -> Tensor:
        with kernels.use_backend("native"):
            out.backward(dy, retain_graph=True)
        assert buffer.grad is not None
        return buffer.grad[:out_features, :in_features]

    if direction == "forward":
        return {
            "torch": lambda: F.linear(x, weight),
            "onednn": one_dnn(x, weight),
            OURS: forward,
        }
    if direction == "input-gradient":
        return {
            "torch": lambda: dy.mm(weight),
            "onednn": one_dnn(dy, weight.t().contiguous()),
            OURS: input_gradient,
        }
    return {
        "torch": lambda: dy.t().mm(x),
        "onednn": one_dnn(dy.t().contiguous(), x.t().contiguous()),
        OURS: weight_gradient,
    }


def check(p: Product, direction: str, steps: dict[str, Step]) -> None:
    """The first call of every variant against the product in float32.

    Raises:
        WrongResult: an error beyond 1e-4 and, in bfloat16, twice that of `torch`.
    """
    wide = Product(*(t.float() for t in (p.x, p.dy, p.weight)))
    expected = {"": steps_of(wide, direction)["torch"]()}
    allowed = FLOAT32_TOLERANCE
    if p.x.dtype != torch.float32:
        allowed += BFLOAT16_FACTOR * relative_error({"": steps["torch"]()}, expected)
    for name, step in steps.items():
        error = relative_error({"": step()}, expected)
        if not error <= allowed:
            raise WrongResult(f"error of {name}", error, allowed)


@contextmanager
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def run_products(
    case: Case, book: Book, effort: Effort, layers: Sequence[str] = LAYERS
) -> list[Row]:
    """Rates of every layer and direction; tasks are "product-<layer>-<direction>"."""
    found: list[Row] = []
    with one_thread():
        for layer in layers:
            p = product(case, layer)
            for direction in DIRECTIONS:
                made = Rows.of_case(book, case, f"product-{layer}-{direction}")
                with survived(made, OURS):
                    steps = steps_of(p, direction)
                    check(p, direction, steps)
                    warm_up(steps)
                    samples = {n: s["wall_time"] for n, s in interleave(steps, effort).items()}
                    for name, seconds in samples.items():
                        made.add(name, "rate", "FLOP/s", [p.flops / s for s in seconds])
                    for name in ("torch", "onednn"):
                        rate = paired_ratios(samples[name], samples[OURS])
                        made.add(f"{OURS} / {name}", "rate_ratio", "1", rate)
                found += made.rows
    return found
