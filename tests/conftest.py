"""Where there is no CUDA device, Triton and the kernels are imported for its interpreter, which is
decided once: `tests/kernels/gpu` runs them there. Nothing changes for the other tests."""

from __future__ import annotations

import importlib
import importlib.util
import os

import numpy
import pytest
import torch
from interpreter import problem

if not torch.cuda.is_available() and importlib.util.find_spec("triton") is not None:
    before = os.environ.get("TRITON_INTERPRET")
    os.environ["TRITON_INTERPRET"] = "1"
    try:
        from growtas.kernels.dispatch import OPERATORS

        for name in [f"growtas.kernels.{operator}.gpu_builds" for operator in OPERATORS]:
            if importlib.util.find_spec(name) is not None:
                importlib.import_module(name)  # and all it calls
    finally:
        if before is None:
            del os.environ["TRITON_INTERPRET"]
        else:
            os.environ["TRITON_INTERPRET"] = before


def pytest_configure(config):
    """One error in place of one for every kernel that is interpreted.

    Raises:
        pytest.UsageError: Triton's interpreter is needed and does not go with this numpy.
    """
    if torch.cuda.is_available() or importlib.util.find_spec("triton") is None:
        return
    import triton

    if reason := problem(triton.__version__, numpy.__version__):
        raise pytest.UsageError(reason)
