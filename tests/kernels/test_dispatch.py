"""Choosing a backend: explicit requests raise, automatic ones fall back and explain."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from growtas import kernels
from growtas.kernels import dispatch


@pytest.fixture(autouse=True)
def _fresh_cache(monkeypatch):
    monkeypatch.setattr(dispatch, "_cache", {})
    monkeypatch.delenv(dispatch.ENVIRONMENT_VARIABLE, raising=False)


def norm():
    return kernels.layer_norm(torch.randn(2, 4), torch.ones(4), torch.zeros(4))


def test_unknown_name_lists_the_choices():
    with (
        pytest.raises(ValueError, match="unknown backend 'cuda'; choose one of auto, triton"),
        kernels.use_backend("cuda"),
    ):
        pass


def test_environment_variable(monkeypatch):
    monkeypatch.setenv("GROWTAS_BACKEND", "reference")
    assert dispatch.select("layer_norm", torch.zeros(1)).__name__.endswith("layer_norm.reference")
    monkeypatch.setenv("GROWTAS_BACKEND", "fastest")
    with pytest.raises(ValueError, match="GROWTAS_BACKEND: unknown backend 'fastest'"):
        norm()


def test_use_backend_wins_over_the_environment_and_is_undone(monkeypatch):
    monkeypatch.setenv("GROWTAS_BACKEND", "native")
    with kernels.use_backend("reference"):
        assert dispatch.requested_backend() == "reference"
        with kernels.use_backend("auto"):
            assert dispatch.requested_backend() == "auto"
        assert dispatch.requested_backend() == "reference"
    assert dispatch.requested_backend() == "native"


def test_overlapping_blocks_leave_nothing_behind():
    """Blocks of two threads may end in any order."""
    first, second = kernels.use_backend("reference"), kernels.use_backend("auto")
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert dispatch.requested_backend() == "auto"
    second.__exit__(None, None, None)
    assert dispatch._requests == []


def test_missing_backend_raises_when_asked_for_and_auto_falls_back(monkeypatch):
    real = dispatch._missing
    monkeypatch.setattr(
        dispatch,
        "_missing",
        lambda op, backend: "not built: no compiler" if backend == "native" else real(op, backend),
    )
    with (
        pytest.raises(kernels.BackendUnavailable, match="not built: no compiler"),
        kernels.use_backend("native"),
    ):
        pass
    monkeypatch.setenv("GROWTAS_BACKEND", "native")
    with pytest.raises(kernels.BackendUnavailable, match=r"layer_norm \(native: not built"):
        norm()
    monkeypatch.delenv("GROWTAS_BACKEND")
    assert norm().isfinite().all()
    rows = kernels.explain(("cpu",))
    assert {row.backend for row in rows} == {"reference"}
    assert all(row.rejected["native"] == "not built: no compiler" for row in rows)


def test_explicit_request_that_cannot_take_the_tensors_raises(backend):
    """Every backend says why it refuses a device instead of running elsewhere."""
    tensor = torch.empty(0, device="meta")
    if backend == "reference":
        assert dispatch.select("linear", tensor).__name__.endswith("linear.reference")
    else:
        with pytest.raises(kernels.BackendUnavailable, match="meta"):
            dispatch.select("linear", tensor)


def test_explain_covers_every_operator():
    rows = kernels.explain(("cpu",))
    assert {row.operator for row in rows} == set(dispatch.OPERATORS)
    for row in rows:
        assert row.backend in dispatch.BACKENDS
        assert set(row.rejected) == set(dispatch.BACKENDS) - {row.backend}
        assert all(row.rejected.values())


WITHOUT_TRITON = """
import sys, growtas
from growtas import kernels
for _ in range(2):
    for row in kernels.explain(("cpu",)):
        assert row.backend != "triton" and row.rejected["triton"]
        print(row.rejected["triton"])
    assert sys.modules.setdefault("triton", None) is None  # not imported, and now as if missing
"""


def test_triton_is_refused_without_importing_it():
    """And nothing else needs it."""
    run = [sys.executable, "-c", WITHOUT_TRITON]
    lines = subprocess.run(run, capture_output=True, text=True, check=True).stdout.splitlines()
    assert set(lines[: len(lines) // 2]) <= {
        "triton is not installed",
        "there is no CUDA device",
        "it takes CUDA tensors, not cpu",
    }
    assert set(lines[len(lines) // 2 :]) == {"triton is not installed"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="kernels are compiled, not interpreted")
def test_interpreter_runs_only_by_name(monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    tensor = torch.zeros(1)
    assert not dispatch.select("linear", tensor).__name__.endswith("gpu")
    for row in kernels.explain(("cpu",)):
        assert "only when asked for by name" in row.rejected["triton"]
    with kernels.use_backend("triton"):
        assert dispatch.select("linear", tensor).__name__.endswith("linear.gpu")
        with pytest.raises(kernels.BackendUnavailable, match=r"not torch\.float64"):
            dispatch.select("linear", tensor.double())
