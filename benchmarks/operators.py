"""One operator at a time, at the sizes it has inside a subnet: forward, and forward + backward."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.baselines.naive import NaiveAttention
from benchmarks.baselines.smart import make_grid, relative_attention
from benchmarks.cases import Case
from benchmarks.rows import Book, Row
from benchmarks.runner import (
    BFLOAT16_FACTOR,
    FLOAT32_TOLERANCE,
    Effort,
    Rows,
    WrongResult,
    interleave,
    relative_error,
    survived,
)
from growtas import kernels

Forward = Callable[..., Tensor]


@dataclass(frozen=True)
class Operator:
    """Float32 leaf inputs and, by variant, the call on them.

    The activation (the first input) is used in the case's dtype, the parameters stay float32 and
    each variant casts what it needs, as it would in training.
    """

    name: str
    inputs: dict[str, Tensor]
    variants: dict[str, Forward]


def _ours(backends: list[str], call: Forward) -> dict[str, Forward]:
    return {f"growtas-{backend}": call for backend in backends}


def _backend_of(variant: str) -> AbstractContextManager[None]:
    """Around forward and backward of a variant."""
    prefix, _, backend = variant.partition("growtas-")
    return nullcontext() if prefix else kernels.use_backend(backend)


def attention(case: Case, backends: list[str], device: str) -> Operator:
    """Relative-position attention: naive, the padded SDPA form, ours."""
    heads, head_dim, side = case.subnet.num_heads[0], case.space.head_dim, _side(case)
    naive = NaiveAttention(heads * head_dim, head_dim, 14, "blocks").to(device)
    naive.set_sample_config(heads * head_dim, heads)
    grid = make_grid(side, side, 14, head_dim)
    grid = grid._replace(
        vertical=grid.vertical.to(device),
        horizontal=grid.horizontal.to(device),
        one_hot=grid.one_hot.to(device),
    )

    def run_naive(x: Tensor, tables: Tensor) -> Tensor:
        tables = tables.to(x.dtype)
        for position, first in ((naive.rel_pos_embed_k, 0), (naive.rel_pos_embed_v, 2)):
            position.sampled_table_v = tables[first]
            position.sampled_table_h = tables[first + 1]
        return naive.core(x)

    inputs = {
        "x": torch.randn(case.batch, side**2 + 1, 3 * heads * head_dim),
        "tables": torch.randn(4, 30, head_dim),
    }
    return Operator(
        "attention",
        inputs,
        {
            "naive": run_naive,
            "sdpa": lambda x, tables: relative_attention(x, tables, heads, grid),
            **_ours(
                backends,
                lambda x, tables: kernels.attention(x, tables, num_heads=heads, grid=(side, side)),
            ),
        },
    )


def layer_norm(case: Case, backends: list[str], device: str) -> Operator:
    """LayerNorm of the sampled width: sliced F.layer_norm, ours."""
    dim, full = case.subnet.embed_dim, case.space.supernet.embed_dim
    inputs = {
        "x": torch.randn(case.batch, _side(case) ** 2 + 1, dim),
        "weight": torch.randn(full),
        "bias": torch.randn(full),
    }

    def run_naive(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        weight, bias = weight[:dim].to(x.dtype), bias[:dim].to(x.dtype)
        return F.layer_norm(x, (dim,), weight, bias, 1e-5)

    return Operator(
        "layer_norm", inputs, {"naive": run_naive, **_ours(backends, kernels.layer_norm)}
    )


def linear(case: Case, backends: list[str], device: str) -> Operator:
    """GELU and fc2: sliced F.linear and autograd, ours with the activation of the input inside."""
    dim, hidden = case.subnet.embed_dim, case.subnet.hidden_dims[0]
    size = case.space.supernet
    inputs = {
        "x": torch.randn(case.batch, _side(case) ** 2 + 1, hidden),
        "weight": torch.randn(size.embed_dim, size.hidden_dim) * size.hidden_dim**-0.5,
        "bias": torch.randn(size.embed_dim),
    }

    def run_naive(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        weight, bias = weight[:dim, :hidden].to(x.dtype), bias[:dim].to(x.dtype)
        return F.linear(F.gelu(x.float()).to(x.dtype), weight, bias)

    def run_ours(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return kernels.linear(x, weight, bias, out_features=dim, input_activation="gelu")

    return Operator("linear", inputs, {"naive": run_naive, **_ours(backends, run_ours)})


def _side(case: Case) -> int:
    return case.image_size // case.patch_size


OPERATORS = {"attention": attention, "layer_norm": layer_norm, "linear": linear}


def _leaves(operator: Operator, dtype: torch.dtype, device: str) -> dict[str, Tensor]:
    leaves = {name: value.detach().clone().to(device) for name, value in operator.inputs.items()}
    leaves["x"] = leaves["x"].to(dtype)
    return {name: value.requires_grad_() for name, value in leaves.items()}


def _call(forward: Forward, leaves: dict[str, Tensor], grad: Tensor | None) -> Tensor:
    if grad is None:
        with torch.no_grad():
            return forward(**leaves)
    for leaf in leaves.values():
        leaf.grad = None
    out = forward(**leaves)
    out.backward(grad)
    return out.detach()


def check(
    operator: Operator, dtype: torch.dtype, grad: Tensor, device: str, table: Rows
) -> list[str]:
    """Output and every gradient against the naive form in float32; budgets as in runner.check.
    What is wrong with a variant becomes a row.

    Returns:
        the variants that can be timed.
    """

    def run(name: str, dtype: torch.dtype) -> dict[str, Tensor]:
        leaves = _leaves(operator, dtype, device)
        with _backend_of(name):
            out = _call(operator.variants[name], leaves, grad.to(dtype))
        grads = {key: leaf.grad for key, leaf in leaves.items() if leaf.grad is not None}
        return {"": out, **grads}

    expected = run("naive", torch.float32)
    budget = dict.fromkeys(expected, FLOAT32_TOLERANCE)
    if dtype != torch.float32:
        for key, value in run("naive", dtype).items():
            budget[key] += BFLOAT16_FACTOR * relative_error({key: value}, {key: expected[key]})
    passed = []
    for name in operator.variants:
        with survived(table, name):
            found = run(name, dtype)
            for key, allowed in budget.items():
                error = relative_error({key: found[key]}, {key: expected[key]})
                if not error <= allowed:
                    what = f"gradient of {key}" if key else "output"
                    raise WrongResult(f"error of the {what}", error, allowed)
            passed.append(name)
    return passed


def run_operator(
    name: str, case: Case, backends: list[str], book: Book, effort: Effort
) -> list[Row]:
    """Check, then time an operator at a case's sizes; tasks are "<name>-forward" and "-train"."""
    device = book.device
    torch.manual_seed(0)
    operator = OPERATORS[name](case, backends, device)
    dtype = getattr(torch, case.dtype)
    leaves = _leaves(operator, dtype, device)
    with torch.no_grad():
        grad = torch.randn_like(operator.variants["naive"](**leaves))
    passed = check(operator, dtype, grad, device, Rows.of_case(book, case, task=name))
    found: list[Row] = []
    for task, upstream in (("forward", None), ("train", grad)):
        made = Rows.of_case(book, case, task=f"{name}-{task}")
        guard = partial(survived, made)
        steps: dict[str, Callable[[], object]] = {}
        for variant in passed:
            with guard(variant):
                step = _step(variant, operator.variants[variant], leaves, upstream)
                step()
                steps[variant] = step
        made.add_timings(interleave(steps, effort, device, guard), ("naive", "sdpa"))
        found += made.rows
    return found


def _step(
    name: str, forward: Forward, leaves: Mapping[str, Tensor], grad: Tensor | None
) -> Callable[[], object]:
    def step() -> Tensor:
        with _backend_of(name):
            return _call(forward, dict(leaves), grad)

    return step
