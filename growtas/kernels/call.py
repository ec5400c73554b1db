"""A call of an operator is one object; what PyTorch and the backends need of it is made here.

An operator's ``api.py`` declares its call, a NamedTuple, and registers it as an :class:`Operator`.
The schema, the fake kernels and the derivative follow from the fields, so a field that is added
reaches every backend, and compiled graphs too, without touching a signature.

A backend is a module with two functions::

    forward(call) -> y, or (y, *saved)      # saved: what its backward pass needs besides the call
    backward(call, saved, dy, grads) -> dx  # parameters' gradients are added into `grads`
"""

from __future__ import annotations

import functools
import types
import typing
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from growtas.kernels.dispatch import plain, select, transformed
from growtas.kernels.gradients import GradientAccumulator, full_size_zeros

_LIBRARY = torch.library.Library("growtas", "DEF")
_TYPES = {
    Tensor: "Tensor", int: "SymInt", bool: "bool", float: "float", torch.dtype: "ScalarType"
}  # fmt: skip


class Grads(NamedTuple):
    """What a backward pass is asked for.

    Attributes:
        parameters: of every whole parameter the buffer to add its gradient into, contiguous; None
            where no gradient is wanted.
        dx: whether the gradient of x is wanted; else what is returned does not count.
        added: to be added to the gradient of x; not None only for operators that are called with
            ``leaving``.
    """

    parameters: tuple[Tensor | None, ...]
    dx: bool
    added: Tensor | None


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


def _through_dispatcher(first: Tensor) -> bool:
    """Where nobody observes operators they are called directly: a way through the dispatcher costs
    as much Python as the rest of a call. So they are under ``torch.func``, whose transforms want to
    see plain PyTorch."""
    return observed(first) and (torch.compiler.is_dynamo_compiling() or not transformed())


def _own_function(first: Tensor, gradients: GradientAccumulator | None) -> bool:
    """Whether a call that needs a derivative goes through `_Function`. Who observes operators sees
    the operator itself, whose derivative is registered; an accumulator is no argument of it.

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


def _without_autocast(method: Callable) -> Callable:
    """The operators choose their own precision: inside them autocast would round what is float32
    on purpose (logits, sums)."""

    @functools.wraps(method)
    def run(operator: Operator, call: Any, *rest: Any) -> Any:
        device = call[0].device.type
        if not torch.is_autocast_enabled(device):
            return method(operator, call, *rest)
        with torch.autocast(device, enabled=False):
            return method(operator, call, *rest)

    return run


class _Field(NamedTuple):
    """One argument of the schema."""

    name: str
    kind: str


class _Nested(NamedTuple):
    """A tuple inside a call: its class, and how many arguments of the schema it is."""

    kind: Any
    size: int


def _kind(hint: Any) -> tuple[Any, bool]:
    """The type that an annotation allows, and whether it allows None too."""
    if not isinstance(hint, types.UnionType):
        return hint, False
    (kind,) = (kind for kind in typing.get_args(hint) if kind is not types.NoneType)
    return kind, True


def _fields(call: Any, prefix: str = "", optional: bool = False) -> Iterator[_Field | _Nested]:
    """Of a call's class in their order; behind a nested tuple's `_Nested` come its own."""
    for name, hint in typing.get_type_hints(call).items():
        kind, maybe = _kind(hint)
        if kind in _TYPES:
            yield _Field(prefix + name, _TYPES[kind] + "?" * (maybe or optional))
        else:
            yield _Nested(kind, len(kind._fields))
            yield from _fields(kind, f"{prefix}{name}_", maybe)


class Operator:
    """An operator ``growtas::<name>``, to be called with its call.

    Args:
        name: of the operator and of its folder in `growtas.kernels`.
        call: its NamedTuple: first x, the activations, then the whole parameters, then what else
            there is, nested tuples last; one that may be None must not begin with a None
            otherwise. Every tensor but a parameter divides among the subnets that share a batch;
            `extents`, if there is such a field, is or begins with an int32 ``[S]`` that says how
            many. Two methods are asked for: ``outputs()``, what `forward` returns, not filled;
            and ``boxes()``, the leading box of every parameter that is read.
        parameters: how many whole parameters there are.
        saved: how many tensors `forward` returns besides y.
        keeps_y: whether `backward` wants y too, first of what is saved.
        passed_on: the schema's name of a tensor that is added to y, whose gradient is y's.
    """

    def __init__(
        self,
        name: str,
        call: Any,
        *,
        parameters: int,
        saved: int = 0,
        keeps_y: bool = False,
        passed_on: str | None = None,
    ) -> None:
        found = list(_fields(call))
        fields = [field for field in found if isinstance(field, _Field)]
        self.name, self._call = name, call
        self._inputs = 1 + parameters
        self._returns_more = saved > 0
        self._first_saved = 0 if keeps_y else 1  # among what `forward` returns
        self._saved = saved + keeps_y
        self._nested = tuple(nested for nested in found if isinstance(nested, _Nested))
        self._plain = len(call._fields) - len(self._nested)
        self._passed = next((i for i, f in enumerate(fields) if f.name == passed_on), None)
        tensors = [i for i, f in enumerate(fields) if f.kind.startswith("Tensor")]
        self._kept = [i for i in tensors if i != self._passed]
        self._rest = [i for i in range(len(fields)) if i not in tensors]
        order = [*self._kept, *self._rest, self._passed]
        self._order = [order.index(i) for i in range(len(fields))]
        self._shared = frozenset(range(1, self._inputs))
        self._has_extents = "extents" in call._fields
        self._register([f"{f.kind} {f.name}" for f in fields], [f.name for f in fields])

    def _register(self, arguments: Sequence[str], names: Sequence[str]) -> None:
        saved = [f"Tensor saved_{i}" for i in range(self._saved)]
        buffers = [
            f"Tensor({chr(ord('a') + i)}!)? grad_{name}"
            for i, name in enumerate(names[1 : self._inputs])
        ]
        count = self._first_saved + self._saved
        returns = f"({', '.join(['Tensor'] * count)})" if self._returns_more else "Tensor"
        backward = ["Tensor dy", *arguments, *saved, "bool dx", *buffers, "Tensor? added"]
        _LIBRARY.define(f"{self.name}({', '.join(arguments)}) -> {returns}")
        _LIBRARY.define(f"{self.name}_backward({', '.join(backward)}) -> Tensor")
        functions = (
            (self.name, lambda *flat: self._run(self.rebuild(flat)), self._fake),
            (f"{self.name}_backward", self._backward_flat, self._backward_fake),
        )
        for name, implementation, fake in functions:
            _LIBRARY.impl(name, implementation, "CompositeExplicitAutograd")
            torch.library.register_fake(f"growtas::{name}", fake, lib=_LIBRARY)
        # Compilers keep an operator with a registered derivative whole, and need not trace an
        # autograd.Function, of which every release of PyTorch takes other parts.
        torch.library.register_autograd(
            f"growtas::{self.name}",
            self._registered_backward,
            setup_context=self._setup_context,
            lib=_LIBRARY,
        )
        self._overload = getattr(torch.ops.growtas, self.name).default
        self._backward_overload = getattr(torch.ops.growtas, f"{self.name}_backward").default

    def __call__(
        self, call: Any, gradients: GradientAccumulator | None = None, *, leaving: bool = False
    ) -> Any:
        """y; with `leaving` y, and x for where the branch comes back: of both gradients of x one is
        then made where that of the first is computed."""
        if torch.is_grad_enabled():
            flat = self.flatten(call)
            inputs = flat[: self._inputs]
            if self._passed is not None:
                inputs = (*inputs, flat[self._passed])
            for tensor in inputs:
                if tensor is not None and tensor.requires_grad:
                    if not _own_function(call[0], gradients):
                        break
                    return _Function.apply(self, call, flat, gradients, leaving, *inputs)
        y = self._forward(call)[0]
        return (y, call[0]) if leaving else y

    def flatten(self, call: Any) -> tuple[Any, ...]:
        """The arguments of the schema."""
        flat = call[: self._plain]
        for nested, (_, size) in zip(call[self._plain :], self._nested, strict=True):
            flat = (*flat, *((None,) * size if nested is None else nested))
        return flat

    def rebuild(self, flat: Sequence[Any]) -> Any:
        """The call of such arguments."""
        fields = [*flat[: self._plain]]
        start = self._plain
        for kind, size in self._nested:
            end = start + size
            fields.append(None if flat[start] is None else kind._make(flat[start:end]))
            start = end
        return self._call._make(fields)

    def of_subnets(self, call: Any) -> list[Any]:
        """The calls of the subnets that share the batch, each with its part of all but the
        parameters."""
        count = self._subnets(call)
        columns = [
            value.tensor_split(count)
            if isinstance(value, Tensor) and i not in self._shared
            else (value,) * count
            for i, value in enumerate(self.flatten(call))
        ]
        return [self.rebuild(flat) for flat in zip(*columns, strict=True)]

    def _subnets(self, call: Any) -> int:
        if not self._has_extents or call.extents is None:
            return 1
        return len(call.extents if isinstance(call.extents, Tensor) else call.extents[0])

    def _backend(self, call: Any) -> Any:
        tensors = call[:2] if call[1] is not None else call[:1]
        return select(self.name, *tensors, call=call)

    def _forward(self, call: Any) -> tuple[Tensor, ...]:
        """y and what is saved."""
        if _through_dispatcher(call[0]):
            outputs = self._overload(*self.flatten(call))
        else:
            outputs = self._run(call)
        return outputs if self._returns_more else (outputs,)

    @_without_autocast
    def _run(self, call: Any) -> Any:
        return self._forward_on(self._backend(call), call)

    def _forward_on(self, backend: Any, call: Any) -> Any:
        if self._subnets(call) == 1 or getattr(backend, "SEVERAL_SUBNETS", False):
            return backend.forward(call)
        parts = [backend.forward(one) for one in self.of_subnets(call)]
        if self._returns_more:
            return tuple(map(torch.cat, zip(*parts, strict=True)))
        return torch.cat(parts)

    def _backward(self, call: Any, saved: Sequence[Tensor], dy: Tensor, grads: Grads) -> Any:
        if _through_dispatcher(call[0]):
            parameters, dx, added = grads
            flat = self.flatten(call)
            return self._backward_overload(dy, *flat, *saved, dx, *parameters, added)
        return self._run_backward(call, saved, dy, grads)

    @_without_autocast
    def _run_backward(self, call: Any, saved: Sequence[Tensor], dy: Tensor, grads: Grads) -> Any:
        backend = self._backend(call)
        count = self._subnets(call)
        if count == 1 or getattr(backend, "SEVERAL_SUBNETS", False):
            return backend.backward(call, saved, dy, grads)
        divided = (dy, *saved, *(() if grads.added is None else (grads.added,)))
        parts = []
        for one, shares in zip(
            self.of_subnets(call),
            zip(*(tensor.tensor_split(count) for tensor in divided), strict=True),
            strict=True,
        ):
            end = 1 + self._saved
            added = shares[end] if len(shares) > end else None
            mine = grads._replace(added=added)
            parts.append(backend.backward(one, shares[1:end], shares[0], mine))
        return torch.cat(parts) if grads.dx else None

    def _backward_flat(self, dy: Tensor, *flat: Any) -> Tensor:
        end = len(self._order)
        call, saved = self.rebuild(flat[:end]), flat[end : end + self._saved]
        need, *parameters, added = flat[end + self._saved :]
        dx = self._run_backward(call, saved, dy, Grads(tuple(parameters), need, added))
        return dx if need else call[0].new_empty(0)

    def _fake(self, *flat: Any) -> Any:
        return self.rebuild(flat).outputs()

    def _backward_fake(self, dy: Tensor, x: Tensor, *flat: Any) -> Tensor:
        return x.new_empty(x.shape if flat[len(self._order) - 1 + self._saved] else (0,))

    def keep(
        self,
        ctx: Any,
        flat: Sequence[Any],
        outputs: Sequence[Tensor],
        gradients: GradientAccumulator | None,
    ) -> None:
        """What the backward pass needs of a call."""
        ctx.save_for_backward(*[flat[i] for i in self._kept], *outputs[self._first_saved :])
        ctx.rest = [flat[i] for i in self._rest]
        ctx.gradients = gradients
        # the parameters themselves: saved tensors may come back as other objects
        ctx.parameters = None if gradients is None else flat[1 : self._inputs]
        passed = None if self._passed is None else flat[self._passed]
        ctx.passed_dtype = None if passed is None else passed.dtype
        ctx.set_materialize_grads(False)

    def gradients(
        self, ctx: Any, dy: Tensor | None, added: Tensor | None, needed: Sequence[bool]
    ) -> tuple[Tensor | None, ...]:
        """Of x and the parameters, and of what is passed on if this operator has such a tensor."""
        if dy is None:
            return added, *(None,) * (self._inputs - (self._passed is None))
        tensors = ctx.saved_tensors
        values = (*tensors[: len(self._kept)], *ctx.rest, None)
        call, saved = self.rebuild([values[i] for i in self._order]), tensors[len(self._kept) :]
        passed = (
            () if self._passed is None
            else (None,) if ctx.passed_dtype is None else (dy.to(ctx.passed_dtype),)
        )  # fmt: skip
        if torch.is_grad_enabled():
            return *self._second_order(ctx, call, dy, added), *passed
        wanted = needed[1 : self._inputs]
        if ctx.gradients is None:
            parameters = zip(call[1 : self._inputs], wanted, strict=True)
            buffers = tuple([full_size_zeros(p) if want else None for p, want in parameters])
        else:
            boxes = zip(ctx.parameters, call.boxes(), wanted, strict=True)
            buffers = tuple([ctx.gradients.buffer(p, box) if want else None
                             for p, box, want in boxes])  # fmt: skip
        dx = self._backward(call, saved, dy, Grads(buffers, needed[0], added))
        if ctx.gradients is not None:
            buffers = (None,) * len(buffers)
        return dx if needed[0] else None, *buffers, *passed

    def _second_order(
        self, ctx: Any, call: Any, dy: Tensor, added: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        """Gradients that can be differentiated again, of those inputs that require one.

        Raises:
            RuntimeError: the call had an accumulator.
            BackendUnavailable: another backend was asked for by name.
        """
        if ctx.gradients is not None:
            raise RuntimeError(
                f"{self.name} was called with a GradientAccumulator, which takes first "
                "derivatives; for create_graph=True its gradients must be None"
            )
        reference = plain(self.name, "a second derivative")
        with torch.enable_grad():
            # Views, so that the gradient of an input stops there and does not pass to another one.
            views = [None if t is None else t.view_as(t) for t in call[: self._inputs]]
            outputs = self._forward_on(
                reference, self._call._make((*views, *call[self._inputs :]))
            )  # fmt: skip
            y = outputs[0] if self._returns_more else outputs
            wanted = [v for v in views if v is not None and v.requires_grad]
            found = iter(torch.autograd.grad(y, wanted, dy.to(y.dtype), create_graph=True))
        dx, *rest = (next(found) if v is not None and v.requires_grad else None for v in views)
        return dx if added is None or dx is None else dx + added, *rest

    def _setup_context(self, ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        outputs = output if self._returns_more else (output,)
        ctx.mark_non_differentiable(*outputs[1:])
        self.keep(ctx, inputs, outputs, None)

    def _registered_backward(self, ctx: Any, dy: Tensor | None, *_: Any) -> tuple[Any, ...]:
        found: list[Tensor | None] = [None] * len(self._order)
        gradients = self.gradients(ctx, dy, None, ctx.needs_input_grad)
        found[: self._inputs] = gradients[: self._inputs]
        if self._passed is not None:
            found[self._passed] = gradients[-1]
        return tuple(found)


class _Function(torch.autograd.Function):
    """The derivative of an operator that nobody observes."""

    @staticmethod
    def forward(
        ctx: Any,
        operator: Operator,
        call: Any,
        flat: Sequence[Any],
        gradients: GradientAccumulator | None,
        leaving: bool,
        x: Tensor,
        *_: Tensor | None,
    ) -> Any:
        outputs = operator._forward(call)
        operator.keep(ctx, flat, outputs, gradients)
        ctx.operator = operator
        return (outputs[0], x.view_as(x)) if leaving else outputs[0]

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, added: Tensor | None = None) -> Any:
        found = ctx.operator.gradients(ctx, dy, added, ctx.needs_input_grad[5:])
        return *(None,) * 5, *found
