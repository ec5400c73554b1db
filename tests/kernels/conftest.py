"""Every operator test runs on every backend, with uninitialised memory poisoned by NaN."""

from __future__ import annotations

import pytest
import torch
from oracles import BACKENDS

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
    """torch.empty and its kin return NaN, so an output that is not fully written is seen."""

    def poisoned(function):
        def wrapper(*args, **kwargs):
            tensor = function(*args, **kwargs)
            if tensor.is_floating_point() and type(tensor) is torch.Tensor:
                tensor.fill_(float("nan"))
            return tensor

        return wrapper

    monkeypatch.setattr(torch, "empty", poisoned(torch.empty))
    monkeypatch.setattr(torch, "empty_like", poisoned(torch.empty_like))
    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned(torch.Tensor.new_empty))
