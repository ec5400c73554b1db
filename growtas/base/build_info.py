"""What the build of the compiled core came to, as recorded when the package was installed."""

from __future__ import annotations

import functools
import importlib
import json
import os
import warnings
from pathlib import Path
from typing import Any

_HERE = Path(__file__).resolve().parent.parent
_RECORD = "_build.json"


@functools.cache
def build_info() -> dict[str, Any]:
    """The build record, and what the compiled module says; None or empty where nothing was
    built."""
    info: dict[str, Any] = {
        "built": False,
        # Why not; empty when built.
        "reason": "growtas was not installed: run `pip install .`, or `pip install -e .`",
        "compiler": None,
        "torch": None,  # the version whose headers were used
        "torch_target": None,  # the oldest torch that the operators run with
        "simd_levels": [],  # compiled in; `growtas._C.simd_level()` is the one in use
        "cxx_flags": [],
        "cuda": None,  # "built", or why there is no library for CUDA devices
    }
    record = _HERE / _RECORD
    if record.exists():
        info.update(json.loads(record.read_text(encoding="utf-8")))
    elif hidden := _hides_an_install():
        info["reason"] = hidden
    if info["built"]:
        try:
            module = importlib.import_module("growtas._C")
        except ImportError as error:
            return {**info, "built": False, "reason": f"growtas._C does not load: {error}"}
        info.update(module.build_facts())
    return info


def warn_if_install_is_hidden() -> None:
    """Called on import where nothing was ever built: a clone comes before what is installed when
    Python starts in its folder, and runs at a fraction of the speed without a word."""
    if os.environ.get("GROWTAS_BUILD") != "0" and (hidden := _hides_an_install()):
        # The line that is blamed is the one that imports growtas.
        warnings.warn(hidden, RuntimeWarning, stacklevel=3)


def _hides_an_install() -> str:
    """What to say if another growtas that is installed has the compiled core; else empty."""
    from importlib import metadata

    for found in metadata.distributions(name="growtas"):
        there = _package_of(found)
        record = there / _RECORD
        if there != _HERE and record.exists() and json.loads(record.read_text())["built"]:
            return (
                f"growtas is imported from {_HERE}, where the compiled core was never built; it "
                f"hides the one installed in {there}, which has it: start Python in another "
                "folder, or run `pip install -e .` here"
            )
    return ""


def _package_of(found: Any) -> Path:
    """Folder of the package that a distribution installs; of an editable one, in its clone."""
    from urllib.parse import urlsplit
    from urllib.request import url2pathname

    origin = json.loads(found.read_text("direct_url.json") or "{}")
    editable = origin.get("dir_info", {}).get("editable", False)
    root = url2pathname(urlsplit(origin["url"]).path) if editable else found.locate_file("")
    return (Path(root) / "growtas").resolve()
