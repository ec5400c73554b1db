"""Registration of growtas's operators with PyTorch: schema, implementation, fake kernel."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from growtas.kernels.dispatch import plain, transformed
from growtas.kernels.gradients import GradientAccumulator

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


def observed(first: Tensor) -> bool:
    """Whether somebody looks at the operators that run: compilation, tracing, a dispatch mode, a
    tensor subclass, a transform of ``torch.func``."""
    return (
        torch.compiler.is_dynamo_compiling()  # other tracers use what follows
        or torch._C._len_torch_dispatch_stack() > 0
        or type(first) not in (Tensor, torch.nn.Parameter)
        or torch._C._get_tracing_state() is not None
        or transformed()
    )


def own_function(first: Tensor, gradients: GradientAccumulator | None) -> bool:
    """Whether a call that needs a derivative goes through the operator's autograd.Function. Who
    observes operators sees the operator itself, whose derivative is registered; an accumulator is
    no argument of it.

    Raises:
        ValueError: an accumulator under torch.compile or torch.func.
    """
    if gradients is None:
        return not observed(first)
    if torch.compiler.is_dynamo_compiling() or transformed():
        raise ValueError(
            "gradients is a GradientAccumulator, which needs eager calls and loss.backward(); "
            "under torch.compile and torch.func it must be None"
        )
    return True


def define(schema: str, implementation: Callable, fake: Callable) -> Callable[..., Any]:
    """Register ``growtas::<schema>`` for every device; returns what to call.

    The implementation picks its backend when it runs, so a compiled graph holds one opaque
    operator whatever backend is in use. Where nobody observes operators the implementation is
    called directly: a way through the dispatcher costs as much Python as the rest of a call. So it
    is under ``torch.func``, whose transforms want to see plain PyTorch.
    """
    name = schema[: schema.index("(")]
    run = _without_autocast(implementation)
    _LIBRARY.define(schema)
    _LIBRARY.impl(name, run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"growtas::{name}", fake, lib=_LIBRARY)
    overload = getattr(torch.ops.growtas, name).default

    def call(first: Tensor, *rest: Any) -> Any:
        if observed(first) and (torch.compiler.is_dynamo_compiling() or not transformed()):
            return overload(first, *rest)
        return run(first, *rest)

    return call


def differentiable(name: str, setup_context: Callable, backward: Callable) -> None:
    """Register the derivative of ``growtas::<name>``: compilers then keep the operator whole, and
    need not trace an autograd.Function, of which every release of PyTorch takes other parts."""
    torch.library.register_autograd(
        f"growtas::{name}", backward, setup_context=setup_context, lib=_LIBRARY
    )


def second_order(
    operator: str,
    ctx: Any,
    call: Callable[..., Tensor],
    inputs: Sequence[Tensor | None],
    dy: Tensor,
) -> tuple[Tensor | None, ...]:
    """Gradients that can be differentiated again, of those inputs that require one.

    Args:
        operator: whose reference runs.
        ctx: of the operator's autograd.Function.
        call: given the reference's ``forward`` and the inputs.
        inputs: tensors, some of which may depend on others.
        dy: gradient of what `call` returns.

    Raises:
        RuntimeError: the call had an accumulator.
        BackendUnavailable: another backend was asked for by name.
    """
    if ctx.gradients is not None:
        raise RuntimeError(
            f"{operator} was called with a GradientAccumulator, which takes first derivatives; for "
            "create_graph=True its gradients must be None"
        )
    forward = plain(operator, "a second derivative").forward
    with torch.enable_grad():
        # Views, so that the gradient of an input stops there and does not pass to another one.
        views = [None if t is None else t.view_as(t) for t in inputs]
        wanted = [v for v in views if v is not None and v.requires_grad]
        found = iter(torch.autograd.grad(call(forward, *views), wanted, dy, create_graph=True))
    return tuple(next(found) if v is not None and v.requires_grad else None for v in views)
