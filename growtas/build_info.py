"""What the build of the compiled core came to, as recorded when the package was installed."""

from __future__ import annotations

import functools
import importlib
import json
from pathlib import Path
from typing import Any

_RECORD = Path(__file__).resolve().parent / "_build.json"


@functools.cache
def build_info() -> dict[str, Any]:
    """The build record.

    Returns:
        ``built`` (bool), ``reason`` (why not; empty when built), ``torch`` (the version whose
        headers were used), ``cxx_flags``, ``cuda`` ("built", or why there is no library for CUDA
        devices), and from the compiled module ``compiler``,
        ``torch_target`` (the oldest torch the operators run with) and ``simd_levels`` (those
        compiled in; ``growtas._C.simd_level()`` is the one in use). None or empty where nothing
        was built.
    """
    info: dict[str, Any] = {
        "built": False,
        "reason": "growtas was not installed: run `pip install .`, or `pip install -e .`",
        "compiler": None,
        "torch": None,
        "torch_target": None,
        "simd_levels": [],
        "cxx_flags": [],
        "cuda": None,
    }
    if _RECORD.exists():
        info.update(json.loads(_RECORD.read_text(encoding="utf-8")))
    if info["built"]:
        try:
            module = importlib.import_module("growtas._C")
        except ImportError as error:
            return {**info, "built": False, "reason": f"growtas._C does not load: {error}"}
        info.update(module.build_facts())
    return info
