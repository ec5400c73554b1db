"""What a call costs the host, as rows: every operator at batch 1 by backend, and training steps.

    OUT=/tmp/rows OMP_NUM_THREADS=1 python -m pytest benchmarks/test_call_overhead.py

With $OUT every case becomes a row in a file of that folder. Two commits are compared by
`benchmarks.paired_calls`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import rows
from benchmarks.call_cases import (
    GRADIENTS,
    MODES,
    OPERATORS,
    SPACES,
    UPDATES,
    operator_step,
    train_step,
    update_step,
)
from benchmarks.runner import Rows
from growtas import kernels

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
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("operator", OPERATORS)
def test_operator(benchmark: Any, book: rows.Book, operator: str, mode: str, backend: str) -> None:
    step = operator_step(operator, mode)
    with kernels.use_backend(backend):
        measure(benchmark, step, table(book, operator), f"{backend}, {mode}", each=10)
        assert step().isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("operator", UPDATES)
def test_update(benchmark: Any, book: rows.Book, operator: str, backend: str) -> None:
    step = update_step(operator)
    with kernels.use_backend(backend):
        measure(benchmark, step, table(book, operator), backend, each=10)
        assert step().isfinite().all()


@pytest.mark.parametrize("gradients", GRADIENTS)
@pytest.mark.parametrize("name", SPACES)
def test_train_step(benchmark: Any, book: rows.Book, name: str, gradients: str) -> None:
    step = train_step(name, gradients)
    measure(benchmark, step, table(book, f"train step, {name}"), gradients, each=1)
    assert step().isfinite()
