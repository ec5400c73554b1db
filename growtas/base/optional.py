"""Imports that wait: of packages that only some features need, and of names until first use."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any


def require(module: str, extra: str | None = None) -> Any:
    """Import `module`, which the `extra` of growtas brings; None if none does.

    Raises:
        ImportError: it is missing; the message says what to install.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        # What is missing may be what the module imports: torch.utils.tensorboard is in torch.
        package = (error.name or module).partition(".")[0]
        wanted = f"'growtas[{extra}]'" if extra else package
        hint = f"this needs {package}: pip install {wanted} ({error})"
        raise ImportError(hint, name=package) from error


def lazy_names(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """The ``__getattr__`` of a package whose names live in the modules given."""

    def load(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(homes[name]), name)

    return load
