"""Every operator test runs on every backend, with uninitialised memory poisoned by NaN."""

from __future__ import annotations

import pytest
from oracles import BACKENDS
from poison import poison_uninitialised_memory

from growtas import kernels
from growtas.kernels import attention, layer_norm, linear  # noqa: F401  registers the operators
from growtas.kernels.linear import native as native_linear


@pytest.fixture(params=BACKENDS)
def backend(request, monkeypatch):
    """The name of the backend in use for the test; skipped where csrc was not built. The native
    linear would leave the tests' few rows to BLAS."""
    monkeypatch.setattr(native_linear, "MIN_ROWS", 0)
    try:
        with kernels.use_backend(request.param):
            yield request.param
    except kernels.BackendUnavailable as error:
        pytest.skip(str(error))


@pytest.fixture(autouse=True)
def _poison_uninitialised_memory(monkeypatch):
    poison_uninitialised_memory(monkeypatch)
