"""Registration of growtas's operators with PyTorch: schema, implementation, fake kernel."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_LIBRARY = torch.library.Library("growtas", "DEF")


def _without_autocast(implementation: Callable) -> Callable:
    """The operators choose their own precision: inside them autocast would round what is float32
    on purpose (logits, sums)."""

    @functools.wraps(implementation)
    def run(first: Tensor, *rest: Any) -> Any:
        device = first.device.type
        if not torch.is_autocast_enabled(device):
            return implementation(first, *rest)
        with torch.autocast(device, enabled=False):
            return implementation(first, *rest)

    return run


def define(schema: str, implementation: Callable, fake: Callable) -> Callable[..., Any]:
    """Register ``growtas::<schema>`` for every device; returns the overload to call.

    The implementation picks its backend when it runs, so a compiled graph holds one opaque
    operator whatever backend is in use. Autograd stays outside, in the operator's Function.
    """
    name = schema[: schema.index("(")]
    _LIBRARY.define(schema)
    _LIBRARY.impl(name, _without_autocast(implementation), "CompositeExplicitAutograd")
    torch.library.register_fake(f"growtas::{name}", fake, lib=_LIBRARY)
    return getattr(torch.ops.growtas, name).default
