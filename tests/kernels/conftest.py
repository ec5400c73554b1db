"""Every operator test runs on every backend, with uninitialised memory poisoned by NaN."""

from __future__ import annotations

import pytest
from oracles import BACKENDS
from poison import poison_uninitialised_memory

from growtas import kernels


@pytest.fixture(params=BACKENDS)
def backend(request):
    """The name of the backend in use for the test; skipped where csrc was not built."""
    try:
        with kernels.use_backend(request.param):
            yield request.param
    except kernels.BackendUnavailable as error:
        pytest.skip(str(error))


@pytest.fixture(autouse=True)
def _poison_uninitialised_memory(monkeypatch):
    poison_uninitialised_memory(monkeypatch)
