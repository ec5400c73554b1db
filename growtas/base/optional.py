"""Imports of packages that only some features need."""

from __future__ import annotations

import importlib
from typing import Any


def require(module: str, extra: str | None = None) -> Any:
    """Import `module`.

    Args:
        module: dotted name.
        extra: the extra of growtas that brings it; None if none does.

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
