"""What the build of the compiled core came to, as recorded when the package was installed."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

_RECORD = Path(__file__).resolve().parent / "_build.json"


@functools.cache
def build_info() -> dict[str, Any]:
    """The build record.

    Returns:
        ``built`` (bool), ``reason`` (why not; empty when built), ``compiler``, ``torch`` (the
        version whose headers were used), ``torch_target`` (the oldest torch the operators run
        with), ``simd_levels`` (those compiled in) and ``cxx_flags``; None or empty where nothing
        was built. The running CPU's view is in ``growtas._C``.
    """
    if not _RECORD.exists():
        return {**_NOTHING, "reason": "growtas was not installed: run `pip install .` first"}
    record: dict[str, Any] = json.loads(_RECORD.read_text(encoding="utf-8"))
    return {**_NOTHING, **record}


_NOTHING: dict[str, Any] = {
    "built": False,
    "reason": "",
    "compiler": None,
    "torch": None,
    "torch_target": None,
    "simd_levels": [],
    "cxx_flags": [],
}
