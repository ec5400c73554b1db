"""Registration of growtas's operators with PyTorch: schema, implementation, fake kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

_LIBRARY = torch.library.Library("growtas", "DEF")


def define(schema: str, implementation: Callable, fake: Callable) -> Callable[..., Any]:
    """Register ``growtas::<schema>`` for every device; returns the overload to call.

    The implementation picks its backend when it runs, so a compiled graph holds one opaque
    operator whatever backend is in use. Autograd stays outside, in the operator's Function.
    """
    name = schema[: schema.index("(")]
    _LIBRARY.define(schema)
    _LIBRARY.impl(name, implementation, "CompositeExplicitAutograd")
    torch.library.register_fake(f"growtas::{name}", fake, lib=_LIBRARY)
    return getattr(torch.ops.growtas, name).default
