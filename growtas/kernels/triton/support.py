"""Whether Triton kernels can take certain tensors, without importing Triton, and their settings."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LEAST = (8, 0)  # compute capability: the first with tensor cores for bfloat16


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, on CPU tensors: slow, for tests."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def unavailable() -> str | None:
    """Why no Triton kernel can run in this process; None if they can."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if not interpreted() and not torch.cuda.is_available():
        return "there is no CUDA device"
    return None


def unsupported(*tensors: Tensor) -> str | None:
    """Why Triton kernels cannot take such tensors; None if they can."""
    if (reason := unavailable()) is not None:
        return reason
    device = "cpu" if interpreted() else "cuda"
    for tensor in tensors:
        if tensor.device.type != device:
            where = "CPU tensors in the interpreter" if interpreted() else "CUDA tensors"
            return f"it takes {where}, not {tensor.device.type}"
        if device == "cuda" and (found := torch.cuda.get_device_capability(tensor.device)) < LEAST:
            return "it needs compute capability {}.{}, the device has {}.{}".format(*LEAST, *found)
        if tensor.dtype not in DTYPES:
            return f"it takes float32, bfloat16 and float16, not {tensor.dtype}"
    return None


def dot_precision(dtype: torch.dtype) -> str:
    """tl.dot's input_precision: full float32 unless torch was allowed to use TF32."""
    if dtype == torch.float32 and torch.backends.cuda.matmul.fp32_precision == "tf32":
        return "tf32"
    return "ieee"


@contextmanager
def float32_products(precision: str) -> Iterator[None]:
    """Inside the ``with`` block torch allows for CUDA devices what `dot_precision` then says."""
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = precision
    try:
        yield
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


def power_of_two(n: int, least: int = 16) -> int:
    """The next power of two, at least what tl.dot takes."""
    return max(least, 1 << (n - 1).bit_length())
