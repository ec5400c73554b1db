"""The compiled operator library: found, loaded once, or the reason why not.

The library holds ``torch.ops.growtas_native.*``, CPU operators registered through torch's stable
ABI; a second one, where it was built, holds implementations for CUDA devices. They write into
tensors given to them and return nothing.
"""

from __future__ import annotations

import functools
import importlib
from pathlib import Path
from typing import Any, NamedTuple

import torch

from growtas.base.build_info import build_info

_FOLDER = Path(__file__).resolve().parent.parent
_LIBRARY = _FOLDER / "_ops.so"
_CUDA_LIBRARY = _FOLDER / "_cuda.so"
_OPERATORS = (
    "linear_forward",
    "linear_backward",
    "layer_norm_forward",
    "layer_norm_backward",
    "attention_forward",
    "attention_backward",
    "adamw_",
    "gradient_norm_",
    "adamw_static_",
)
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


class LibraryStatus(NamedTuple):
    """Whether the native operators can be called, and if not, why."""

    available: bool
    reason: str  # empty when available


@functools.cache
def status() -> LibraryStatus:
    """Load the library on the first call; the answer stays the same for the process.

    Raises:
        RuntimeError: ``GROWTAS_SIMD`` names a SIMD level this machine cannot run.
    """
    info = build_info()
    if not info["built"]:
        return LibraryStatus(False, f"the native library is not built: {info['reason']}")
    importlib.import_module("growtas._C").simd_level()  # refuses a bad GROWTAS_SIMD
    try:
        torch.ops.load_library(_LIBRARY)
    except OSError as error:
        return LibraryStatus(False, f"the native library does not load: {error}")
    for name in _OPERATORS:
        torch.library.register_fake(f"growtas_native::{name}", _fake)
    return LibraryStatus(True, "")


@functools.cache
def cuda_unavailable() -> str | None:
    """Why the compiled operators for CUDA devices cannot run in this process; None if they can.
    They belong to the same namespace; the library is loaded on the first call."""
    reason = unavailable()
    if reason is not None:
        return reason
    if not _CUDA_LIBRARY.exists():
        return f"the library for CUDA devices is not built: {build_info().get('cuda', 'unknown')}"
    try:
        torch.ops.load_library(_CUDA_LIBRARY)
    except OSError as error:
        return f"the library for CUDA devices does not load: {error}"
    return None


def _fake(*args: object) -> None:
    """The operators only write into given tensors: there is nothing to allocate."""


@functools.cache
def operators() -> Any:
    """The namespace ``torch.ops.growtas_native``, loaded.

    Raises:
        RuntimeError: the library is not available; the message says why.
    """
    available, reason = status()
    if not available:
        raise RuntimeError(reason)
    return torch.ops.growtas_native


def unavailable() -> str | None:
    """Why no native operator can run in this process; None if they can."""
    return status().reason or None


def unsupported(*tensors: torch.Tensor) -> str | None:
    """Why the native operators cannot take such tensors; None if they can."""
    reason = unavailable()
    if reason is not None:
        return reason
    for tensor in tensors:
        if tensor.device.type != "cpu":
            return f"it runs on the CPU, not on {tensor.device.type}"
        if tensor.dtype not in DTYPES:
            return f"it takes floating-point tensors, not {tensor.dtype}"
    return None
