"""The Triton kernels: compiled on a CUDA device, else on CPU tensors in Triton's interpreter."""

from __future__ import annotations

import pytest
import torch

from growtas import kernels
from growtas.kernels import dispatch


@pytest.fixture(scope="session")
def device() -> str:
    """Where the tensors of these tests have to be."""
    return "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(autouse=True)
def _triton(monkeypatch, device):
    """Every operator runs on Triton; `tests/conftest.py` has prepared the interpreter."""
    pytest.importorskip("triton")
    if device == "cpu":
        monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(dispatch, "_cache", {})
    with kernels.use_backend("triton"):
        yield
