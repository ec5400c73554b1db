"""growtas: fast weight-sharing Vision Transformer architecture search.

The public names load on first use, so ``import growtas`` costs nothing and pure-Python
parts (spaces, costs, schedules) work without importing torch.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

from growtas.base.optional import lazy_names
from growtas.version import __version__

if TYPE_CHECKING:
    from growtas import export, kernels
    from growtas.compat.autoformer_files import load_autoformer, save_autoformer
    from growtas.space import SearchSpace, SpaceDifference, Subnet, SupernetSize
    from growtas.supernet import Supernet, VisionTransformer, load_supernet, save_supernet
    from growtas.supernet.vit.geometry import macs, num_params
    from growtas.supernet.vit.subnet_files import load_subnets

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
    "load_subnets": "growtas.supernet.vit.subnet_files",
    "load_supernet": "growtas.supernet",
    "save_autoformer": "growtas.compat.autoformer_files",
    "save_supernet": "growtas.supernet",
    "macs": "growtas.supernet.vit.geometry",
    "num_params": "growtas.supernet.vit.geometry",
}
_load = lazy_names(__name__, _HOME)

if not os.path.exists(os.path.join(__path__[0], "_build.json")):
    from growtas.base.build_info import warn_if_install_is_hidden

    warn_if_install_is_hidden()


def __getattr__(name: str) -> Any:
    if name in ("export", "kernels"):
        return importlib.import_module(f"growtas.{name}")
    return _load(name)


def __dir__() -> list[str]:
    return sorted(__all__)
