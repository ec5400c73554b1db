"""Gradients added straight into the slice of persistent ``.grad`` buffers.

The default, ``dense``, returns a full-size gradient that is zero outside the slice; it is safe
with every tool around autograd. A :class:`GradientAccumulator` handed to the operators selects
``accumulate`` instead: the backward pass adds into ``parameter.grad[:e0, :e1, ...]``, touches
nothing outside it, and the accumulator remembers which part is dirty, so that zeroing and
reducing cost what the sampled subnets cost, not the supernet.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor


def leading_box(tensor: Tensor, extents: Sequence[int]) -> Tensor:
    """The view ``tensor[:e0, :e1, ...]``; one extent per dimension."""
    for dim, extent in enumerate(extents):
        tensor = tensor.narrow(dim, 0, extent)
    return tensor


def full_size_zeros(parameter: Tensor) -> Tensor:
    """A zero gradient of the parameter's shape; contiguous, so that its slices can be viewed
    whatever the parameter's memory format."""
    return torch.zeros_like(parameter, memory_format=torch.contiguous_format)


class GradientAccumulator:
    """Owns the ``.grad`` buffers of a model trained without full-size gradients.

    Pass it to the operators (or to :class:`growtas.Supernet`'s forward) as ``gradients``, call
    :meth:`zero_` where ``optimizer.zero_grad()`` would stand. For eager, single-process training:
    DistributedDataParallel and torch.compile need the dense gradients.

    Args:
        parameters: leaf tensors that require grad; their ``.grad`` is allocated (zeros, same
            dtype) where it is None.

    Raises:
        ValueError: a parameter is not a leaf that requires grad.
    """

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        if isinstance(parameters, torch.nn.Module):
            raise TypeError("GradientAccumulator takes tensors: pass model.parameters()")
        self._parameters = list(parameters)
        self._dirty: dict[Tensor, tuple[int, ...]] = {}
        self._whole: set[Tensor] = set()  # written by autograd itself, anywhere
        this = weakref.ref(self)  # the hooks live as long as the parameters

        def watch(parameter: Tensor) -> Callable[[Tensor | None], None]:
            watched = weakref.ref(parameter)

            def mark_whole(gradient: Tensor | None) -> None:
                # None is what the operators return after they have added in place
                accumulator, tensor = this(), watched()
                if gradient is not None and accumulator is not None and tensor is not None:
                    accumulator._whole.add(tensor)

            return mark_whole

        for parameter in self._parameters:
            if not (parameter.is_leaf and parameter.requires_grad):
                raise ValueError(
                    "GradientAccumulator takes leaf tensors that require grad; got one of shape "
                    f"{tuple(parameter.shape)} with requires_grad={parameter.requires_grad}"
                )
            if parameter.grad is None:
                parameter.grad = full_size_zeros(parameter)
            else:
                self._whole.add(parameter)
            parameter.register_hook(watch(parameter))
        self._known = set(self._parameters)

    def buffer(self, parameter: Tensor, extents: Sequence[int]) -> Tensor:
        """The gradient buffer of ``parameter`` (whole), its leading ``extents`` marked dirty.

        Raises:
            ValueError: the accumulator was not built over this parameter, or somebody replaced its
                ``.grad`` by a tensor that is not contiguous.
        """
        if parameter not in self._known:
            raise ValueError(
                f"a parameter of shape {tuple(parameter.shape)} is not among those this "
                "GradientAccumulator was built over"
            )
        if parameter.grad is None:  # somebody called zero_grad(set_to_none=True)
            parameter.grad = full_size_zeros(parameter)
        if not parameter.grad.is_contiguous():
            raise ValueError(
                f"the gradient of a parameter of shape {tuple(parameter.shape)} is not contiguous"
            )
        before = self._dirty.get(parameter)
        self._dirty[parameter] = (
            tuple(extents)
            if before is None
            else tuple(max(a, b) for a, b in zip(before, extents, strict=True))
        )
        return parameter.grad

    def dirty(self, parameter: Tensor) -> tuple[int, ...] | None:
        """Extents of the leading box written since :meth:`zero_`; None where no operator wrote."""
        return self._dirty.get(parameter)

    def zero_(self) -> None:
        """Zero what may be non-zero: the dirty boxes, and whole gradients that autograd itself
        wrote (parameters used outside the operators, regularisers, passes without this object)."""
        written = [
            leading_box(parameter.grad, extents)
            for parameter, extents in self._dirty.items()
            if parameter.grad is not None and parameter not in self._whole
        ]
        written += [p.grad for p in self._whole if p.grad is not None]
        if written:
            torch._foreach_zero_(written)
        self._dirty.clear()
        self._whole.clear()
