"""What is installed and built, and which backend runs each operator here, and why not another.

What ``growtas info`` prints, with ``--json`` for machines and bug reports.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import platform
import textwrap
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = (
    "torch",
    "triton",
    "numpy",
    "timm",
    "torchvision",
    "safetensors",
    "scikit-learn",
    "matplotlib",
    "tqdm",
)

# What the whole test suite has passed with. Others that pip allows should work; nobody has tried.
TESTED: dict[str, tuple[str, ...]] = {
    "python": ("3.11", "3.13"),
    "torch": ("2.11.0", "2.14.1", "2.15.0"),
    "triton": ("3.6.0", "3.8.0", "3.9.0"),
    "numpy": ("2.3.5", "2.4.6", "2.5.5"),
    "timm": ("1.0.31",),
}


def collect() -> dict[str, Any]:
    """Every fact as plain JSON values."""
    from growtas.kernels import dispatch
    from growtas.version import __version__

    return {
        "location": str(Path(__file__).resolve().parent.parent),  # of the package imported
        "versions": {  # None: missing
            "growtas": __version__,
            "python": platform.python_version(),
            **{name: _version(name) for name in PACKAGES},
        },
        "tested": {name: list(versions) for name, versions in TESTED.items()},
        "platform": platform.platform(),
        "cpu": _cpu(),
        "gpus": _gpus(),
        "native": _native(),  # the compiled core
        "backend_request": dispatch.requested_backend(),  # what GROWTAS_BACKEND asks for
        # One row per operator, device and dtype, see `growtas.kernels.explain`.
        "operators": [row._asdict() for row in dispatch.explain()],
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cpu() -> dict[str, Any]:
    import torch

    facts: dict[str, Any] = {
        "machine": platform.machine(),
        "torch uses": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
    }
    if (core := _compiled_module()) is not None:
        facts["features"] = core.cpu_features()
    return facts


def _compiled_module() -> Any:
    """`growtas._C`, None where it was not built."""
    if importlib.util.find_spec("growtas._C") is None:
        return None
    return importlib.import_module("growtas._C")


def _native() -> dict[str, Any]:
    from growtas.base.build_info import build_info

    facts = {name: value for name, value in build_info().items() if value not in (None, "", [])}
    core = _compiled_module()
    if core is not None:
        facts["simd_level"] = core.simd_level()
        if named := [name for name in core.simd_levels() if name.startswith("amx")]:
            facts["amx"] = (
                f"its speed has not been measured: only by GROWTAS_SIMD={'|'.join(named)}"
            )
    return facts


def _gpus() -> list[dict[str, Any]]:
    import torch

    found = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return [
        {
            "name": gpu.name,
            "memory_gib": round(gpu.total_memory / 2**30, 1),
            "capability": f"{gpu.major}.{gpu.minor}",
        }
        for gpu in found
    ]


def describe(facts: dict[str, Any]) -> str:
    """`collect`'s facts as text for people."""
    lines = [f"growtas in {facts['location']}", "", "Versions"]
    for name, version in facts["versions"].items():
        tested = facts["tested"].get(name, ())
        beside = f" (tested: {', '.join(tested)})" if tested else ""
        lines.append(_line(name, f"{version or 'not installed'}{beside}"))
    lines += ["", "Machine", _line("system", facts["platform"])]
    lines += [_line(f"cpu {name}", value) for name, value in facts["cpu"].items()]
    gpus = [
        f"{gpu['name']}, {gpu['memory_gib']} GiB, capability {gpu['capability']}"
        for gpu in facts["gpus"]
    ]
    lines += [_line("gpu", gpu) for gpu in gpus or ["none that this torch can use"]]
    lines += ["", "Compiled core"]
    lines += [_line(name.replace("_", " "), value) for name, value in facts["native"].items()]
    lines += ["", f"Operators (GROWTAS_BACKEND={facts['backend_request']})"]
    for row, dtypes in _same_but_dtype(facts["operators"]):
        lines.append(_line(row["operator"], f"{row['backend']} ({row['device']}: {dtypes})"))
        for backend, reason in row["rejected"].items():
            lines += textwrap.wrap(
                f"not {backend}: {reason}", 96, initial_indent=" " * 18, subsequent_indent=" " * 20
            )
    return "\n".join(lines)


def _line(name: str, value: Any) -> str:
    return f"  {name:<15} {_plain(value)}"


def _same_but_dtype(rows: Sequence[dict[str, Any]]) -> list[tuple[dict[str, Any], str]]:
    """Rows in order, those that differ in their dtype only as one, with all its dtypes."""
    merged: dict[str, tuple[dict[str, Any], list[str]]] = {}
    for row in rows:
        key = json.dumps({name: value for name, value in row.items() if name != "dtype"})
        merged.setdefault(key, (row, []))[1].append(row["dtype"])
    return [(row, ", ".join(dtypes)) for row, dtypes in merged.values()]


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(name for name, on in value.items() if on) or "none"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "unknown" if value is None else str(value)
