"""A call of an operator is one object; what PyTorch and the backends need of it is made here.

An operator's ``api.py`` declares its call, a NamedTuple, and registers it as an :class:`Operator`.
The schema, the fake kernels and the derivative follow from the fields, so a field that is added
reaches every backend, and compiled graphs too, without touching a signature.

A backend is a module with two functions::

    forward(call) -> y, or (y, *saved)      # saved: what its backward pass needs besides the call
    backward(call, saved, dy, grads) -> dx  # parameters' gradients are added into `grads`
"""

from __future__ import annotations

import operator
import types
import typing
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from growtas.kernels.dispatch import plain, select, transformed, transforms
from growtas.kernels.gradients import GradientAccumulator, full_size_zeros

_LIBRARY = torch.library.Library("growtas", "DEF")
_dispatch_modes = torch._C._len_torch_dispatch_stack
_tracing_state = torch._C._get_tracing_state
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
        or _dispatch_modes() > 0
        or type(first) not in (Tensor, torch.nn.Parameter)
        or _tracing_state() is not None
        or transforms() is not None
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


class _Nested(NamedTuple):
    """A tuple inside a call: its class, whether None may stand for it, and its fields' places among
    the arguments of the schema."""

    kind: Any
    optional: bool
    start: int
    end: int


def _kind(hint: Any) -> tuple[Any, bool]:
    """The type that an annotation allows, and whether it allows None too."""
    if not isinstance(hint, types.UnionType):
        return hint, False
    (kind,) = (kind for kind in typing.get_args(hint) if kind is not types.NoneType)
    return kind, True


def _arguments(call: Any) -> tuple[dict[str, str], list[_Nested]]:
    """Names and types of the schema's arguments, from the fields of a call's class."""
    arguments: dict[str, str] = {}
    nested = []
    for name, hint in typing.get_type_hints(call).items():
        kind, optional = _kind(hint)
        if kind in _TYPES:
            arguments[name] = _TYPES[kind] + "?" * optional
            continue
        inner, _ = _arguments(kind)
        start = len(arguments)
        for field, type_ in inner.items():
            arguments[f"{name}_{field}"] = type_ + "?" * (optional and not type_.endswith("?"))
        nested.append(_Nested(kind, optional, start, len(arguments)))
    return arguments, nested


def _flattening(call: Any, nested: Sequence[_Nested]) -> Callable[[Any], tuple[Any, ...]]:
    """From a call to the arguments of the schema: written out once, as `_building` is, because
    loops over fields would take as long as the rest of a call."""
    if not nested:
        return lambda call: call
    plain = nested[0].start
    flat = [f"*call[:{plain}]"]
    for at, (_, optional, start, end) in enumerate(nested):
        inner, absent = f"call[{plain + at}]", (None,) * (end - start)
        flat.append(f"*({absent} if {inner} is None else {inner})" if optional else f"*{inner}")
    return eval(f"lambda call: ({', '.join(flat)},)")


def _building(
    call: Any, nested: Sequence[_Nested], takes: str, arguments: Sequence[str]
) -> Callable[..., Any]:
    """A function of `takes` that returns the call whose arguments of the schema these expressions
    are."""
    fields = [*arguments[: nested[0].start if nested else None]]
    for at, (_, optional, start, end) in enumerate(nested):
        made = f"new(kinds[{at}], ({', '.join(arguments[start:end])},))"
        fields.append(f"None if {arguments[start]} is None else {made}" if optional else made)
    scope = {"new": tuple.__new__, "kind": call, "kinds": [inner.kind for inner in nested]}
    return eval(f"lambda {takes}: new(kind, ({', '.join(fields)},))", scope)


def _picker(places: Sequence[int]) -> Callable[[Sequence[Any]], tuple[Any, ...]]:
    """What picks these places of a sequence, where no compiler looks."""
    if len(places) > 1:
        return operator.itemgetter(*places)
    return lambda flat: tuple([flat[place] for place in places])


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
        keeps_y: whether `backward` wants y too, first of what is saved; only with `saved`.
        passed_on: the schema's name of a tensor that is added to y, whose gradient is y's.

    Attributes:
        flatten: from a call to the arguments of the schema.
        rebuild: back.
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
        arguments, nested = _arguments(call)
        names = list(arguments)
        self.name = name
        self._size = len(names)
        self._end = 1 + parameters
        self._returns_more = saved > 0
        self._first_saved = 0 if keeps_y else 1  # among what `forward` returns
        self._saved = saved + keeps_y
        self._has_extents = "extents" in call._fields
        self._passed = None if passed_on is None else names.index(passed_on)
        tensors = [i for i, kind in enumerate(arguments.values()) if kind.startswith("Tensor")]
        kept = [i for i in tensors if i != self._passed]
        rest = [i for i in range(len(names)) if i not in tensors]
        self._kept_count = len(kept)
        self._kept, self._rest = _picker(kept), _picker(rest)
        self.flatten = _flattening(call, nested)
        self.rebuild = _building(call, nested, "flat", [f"flat[{i}]" for i in range(len(names))])
        places = ["None"] * len(names)  # of what is passed on nothing is kept
        for found, indices in (("kept", kept), ("rest", rest)):
            for place, i in enumerate(indices):
                places[i] = f"{found}[{place}]"
        self._restored = _building(call, nested, "kept, rest", places)
        self._register([f"{kind} {name}" for name, kind in arguments.items()], names)

    def _register(self, arguments: Sequence[str], names: Sequence[str]) -> None:
        saved = [f"Tensor saved_{i}" for i in range(self._saved)]
        buffers = [
            f"Tensor({chr(ord('a') + i)}!)? grad_{name}"
            for i, name in enumerate(names[1 : self._end])
        ]
        count = self._first_saved + self._saved
        returns = f"({', '.join(['Tensor'] * count)})" if self._returns_more else "Tensor"
        backward = ["Tensor dy", *arguments, *saved, "bool dx", *buffers, "Tensor? added"]
        _LIBRARY.define(f"{self.name}({', '.join(arguments)}) -> {returns}")
        _LIBRARY.define(f"{self.name}_backward({', '.join(backward)}) -> Tensor")
        for name, implementation, fake in (
            (
                self.name,
                lambda *flat: self._run(self.rebuild(flat)),
                lambda *flat: self.rebuild(flat).outputs(),
            ),
            (f"{self.name}_backward", self._run_backward_flat, self._backward_fake),
        ):
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
            inputs = flat[: self._end]
            if self._passed is not None:
                inputs = (*inputs, flat[self._passed])
            for tensor in inputs:
                if tensor is not None and tensor.requires_grad:
                    if not _own_function(call[0], gradients):
                        break
                    return _Function.apply((self, call, flat, gradients, leaving), *inputs)
        outputs = self._forward(call)
        y = outputs[0] if self._returns_more else outputs
        return (y, call[0]) if leaving else y

    def of_subnets(self, call: Any) -> list[Any]:
        """The calls of the subnets that share the batch, each with its part of all but the
        parameters."""
        count = self._subnets(call)
        columns = [
            value.tensor_split(count)
            if isinstance(value, Tensor) and not 1 <= i < self._end
            else (value,) * count
            for i, value in enumerate(self.flatten(call))
        ]
        return [self.rebuild(flat) for flat in zip(*columns, strict=True)]

    def _divides(self, backend: Any, call: Any) -> bool:
        """Whether the backend gets a call for each subnet."""
        if not self._has_extents or call.extents is None:
            return False
        return self._subnets(call) > 1 and not getattr(backend, "SEVERAL_SUBNETS", False)

    def _subnets(self, call: Any) -> int:
        return len(call.extents if isinstance(call.extents, Tensor) else call.extents[0])

    def _forward(self, call: Any) -> Any:
        """What a backend's `forward` returns."""
        if _through_dispatcher(call[0]):
            return self._overload(*self.flatten(call))
        return self._run(call)

    def _run(self, call: Any) -> Any:
        device = call[0].device.type
        if torch.is_autocast_enabled(device):
            # The operators choose their own precision: autocast would round what is float32 on
            # purpose (logits, sums).
            with torch.autocast(device, enabled=False):
                return self._run(call)
        return self._forward_on(select(self.name, call[0], call[1], call=call), call)

    def _forward_on(self, backend: Any, call: Any) -> Any:
        if not self._divides(backend, call):
            return backend.forward(call)
        found = [backend.forward(one) for one in self.of_subnets(call)]
        if self._returns_more:
            return tuple(map(torch.cat, zip(*found, strict=True)))
        return torch.cat(found)

    def _run_backward(self, call: Any, saved: Sequence[Tensor], dy: Tensor, grads: Grads) -> Any:
        device = call[0].device.type
        if torch.is_autocast_enabled(device):
            with torch.autocast(device, enabled=False):
                return self._run_backward(call, saved, dy, grads)
        backend = select(self.name, call[0], call[1], call=call)
        if not self._divides(backend, call):
            return backend.backward(call, saved, dy, grads)
        count = self._subnets(call)
        added = (None,) * count if grads.added is None else grads.added.tensor_split(count)
        divided = zip(*(tensor.tensor_split(count) for tensor in (dy, *saved)), strict=True)
        found = [
            backend.backward(one, of_saved, of_dy, grads._replace(added=of_added))
            for one, (of_dy, *of_saved), of_added in zip(
                self.of_subnets(call), divided, added, strict=True
            )
        ]
        return torch.cat(found) if grads.dx else None

    def _run_backward_flat(self, dy: Tensor, *flat: Any) -> Tensor:
        end = self._size + self._saved
        call, saved = self.rebuild(flat[: self._size]), flat[self._size : end]
        need, *parameters, added = flat[end:]
        dx = self._run_backward(call, saved, dy, Grads(tuple(parameters), need, added))
        return dx if need else call[0].new_empty(0)

    def _backward_fake(self, dy: Tensor, *flat: Any) -> Tensor:
        need = flat[self._size + self._saved]
        return flat[0].new_empty(flat[0].shape if need else (0,))

    def keep(
        self,
        ctx: Any,
        flat: Sequence[Any],
        outputs: Any,
        gradients: GradientAccumulator | None,
    ) -> None:
        """What the backward pass needs of a call."""
        saved = outputs[self._first_saved :] if self._saved else ()
        ctx.save_for_backward(*self._kept(flat), *saved)
        ctx.rest = self._rest(flat)
        ctx.gradients = gradients
        if gradients is not None:
            # the parameters themselves: saved tensors may come back as other objects
            ctx.parameters = flat[1 : self._end]
        if self._passed is not None:
            passed = flat[self._passed]
            ctx.passed_dtype = None if passed is None else passed.dtype
        ctx.set_materialize_grads(False)

    def gradients(
        self, ctx: Any, dy: Tensor | None, added: Tensor | None, needed: Sequence[bool]
    ) -> tuple[Tensor | None, ...]:
        """Of x and the parameters, and of what is passed on if this operator has such a tensor."""
        if dy is None:
            return added, *(None,) * (self._end - (self._passed is None))
        tensors = ctx.saved_tensors
        call, saved = self._restored(tensors, ctx.rest), tensors[self._kept_count :]
        if torch.is_grad_enabled():
            found = self._second_order(ctx, call, dy, added)
        else:
            parameters = call[1 : self._end]
            if ctx.gradients is None:
                buffers = [
                    full_size_zeros(parameter) if need else None
                    for parameter, need in zip(parameters, needed[1 : self._end], strict=True)
                ]
            else:
                buffers = [
                    ctx.gradients.buffer(parameter, box) if need else None
                    for parameter, box, need in zip(
                        ctx.parameters, call.boxes(), needed[1 : self._end], strict=True
                    )
                ]
            need = needed[0]
            if _through_dispatcher(call[0]):
                dx = self._backward_overload(
                    dy, *self.flatten(call), *saved, need, *buffers, added
                )  # fmt: skip
            else:
                dx = self._run_backward(call, saved, dy, Grads(tuple(buffers), need, added))
            if ctx.gradients is not None:
                buffers = [None] * len(buffers)
            found = (dx if need else None, *buffers)
        if self._passed is None:
            return found
        return *found, None if ctx.passed_dtype is None else dy.to(ctx.passed_dtype)

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
            views = [None if t is None else t.view_as(t) for t in call[: self._end]]
            outputs = self._forward_on(reference, call._make((*views, *call[self._end :])))
            y = outputs[0] if self._returns_more else outputs
            wanted = [v for v in views if v is not None and v.requires_grad]
            found = iter(torch.autograd.grad(y, wanted, dy.to(y.dtype), create_graph=True))
        dx, *rest = (next(found) if v is not None and v.requires_grad else None for v in views)
        return dx if added is None or dx is None else dx + added, *rest

    def _setup_context(self, ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        if self._returns_more:
            ctx.mark_non_differentiable(*output[1:])
        self.keep(ctx, inputs, output, None)

    def _registered_backward(self, ctx: Any, dy: Tensor | None, *_: Any) -> tuple[Any, ...]:
        found: list[Tensor | None] = [None] * self._size
        gradients = self.gradients(ctx, dy, None, ctx.needs_input_grad)
        found[: self._end] = gradients[: self._end]
        if self._passed is not None:
            found[self._passed] = gradients[-1]
        return tuple(found)


class _Function(torch.autograd.Function):
    """The derivative of an operator that nobody observes."""

    @staticmethod
    def forward(ctx: Any, asked: tuple[Any, ...], x: Tensor, *_: Tensor | None) -> Any:
        """`asked` holds what has no derivative in one argument: each costs the host time."""
        operator, call, flat, gradients, leaving = asked
        # With an accumulator somebody may observe operators; without one nobody does.
        outputs = operator._run(call) if gradients is None else operator._forward(call)
        operator.keep(ctx, flat, outputs, gradients)
        ctx.operator = operator
        y = outputs[0] if operator._returns_more else outputs
        return (y, x.view_as(x)) if leaving else y

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, added: Tensor | None = None) -> Any:
        return None, *ctx.operator.gradients(ctx, dy, added, ctx.needs_input_grad[1:])
