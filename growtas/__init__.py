"""growtas: fast weight-sharing Vision Transformer architecture search.

The public names load on first use, so ``import growtas`` costs nothing and pure-Python
parts (spaces, costs, schedules) work without importing torch.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

from growtas.version import __version__

if TYPE_CHECKING:
    from growtas import export, kernels
    from growtas.compat.autoformer_files import load_autoformer, save_autoformer
    from growtas.space import SearchSpace, SpaceDifference, Subnet, SupernetSize
    from growtas.space.cost import macs, num_params
    from growtas.space.subnet_files import load_subnets
    from growtas.supernet import Supernet, VisionTransformer, load_supernet, save_supernet

__all__ = [
    "SearchSpace",
    "SpaceDifference",
    "Subnet",
    "Supernet",
    "SupernetSize",
    "VisionTransformer",
    "__version__",
    "export",
    "kernels",
    "load_autoformer",
    "load_subnets",
    "load_supernet",
    "macs",
    "num_params",
    "save_autoformer",
    "save_supernet",
]

_HOME = {
    "SearchSpace": "growtas.space",
    "SpaceDifference": "growtas.space",
    "Subnet": "growtas.space",
    "SupernetSize": "growtas.space",
    "Supernet": "growtas.supernet",
    "VisionTransformer": "growtas.supernet",
    "load_autoformer": "growtas.compat.autoformer_files",
    "load_subnets": "growtas.space.subnet_files",
    "load_supernet": "growtas.supernet",
    "save_autoformer": "growtas.compat.autoformer_files",
    "save_supernet": "growtas.supernet",
    "macs": "growtas.space.cost",
    "num_params": "growtas.space.cost",
}

if not os.path.exists(os.path.join(__path__[0], "_build.json")):
    from growtas.base.build_info import warn_if_install_is_hidden

    warn_if_install_is_hidden()


def __getattr__(name: str) -> Any:
    if name in ("export", "kernels"):
        return importlib.import_module(f"growtas.{name}")
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'growtas' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
