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


def _observed(first: Tensor) -> bool:
    """Whether somebody looks at the operators that run (compilation, tracing, a dispatch mode, a
    tensor subclass, a functional transform): only then must they go through the dispatcher."""
    return (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack() > 0
        or type(first) not in (Tensor, torch.nn.Parameter)
        or torch._C._get_tracing_state() is not None
        or torch._C._functorch.peek_interpreter_stack() is not None
    )


def define(schema: str, implementation: Callable, fake: Callable) -> Callable[..., Any]:
    """Register ``growtas::<schema>`` for every device; returns what to call.

    The implementation picks its backend when it runs, so a compiled graph holds one opaque
    operator whatever backend is in use. Autograd stays outside, in the operator's Function. Where
    nobody observes operators the implementation is called directly: a way through the dispatcher
    costs as much Python as the rest of a call.
    """
    name = schema[: schema.index("(")]
    run = _without_autocast(implementation)
    _LIBRARY.define(schema)
    _LIBRARY.impl(name, run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"growtas::{name}", fake, lib=_LIBRARY)
    overload = getattr(torch.ops.growtas, name).default

    def call(first: Tensor, *rest: Any) -> Any:
        return overload(first, *rest) if _observed(first) else run(first, *rest)

    return call
