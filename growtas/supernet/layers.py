"""Layers of any family: they own max-size parameters and are told how much of them to use.

No module remembers a subnet: sizes come in as arguments, so torch.compile treats them as dynamic
and one module serves any number of threads or passes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from growtas import kernels
from growtas.kernels import GradientAccumulator
from growtas.kernels.autocast import autocast_dtype
from growtas.kernels.dispatch import transformed
from growtas.supernet.geometry import Box


def drawn(shape: Box, std: float) -> nn.Parameter:
    """A parameter that starts truncated normal."""
    return nn.Parameter(nn.init.trunc_normal_(torch.empty(shape), std=std))


class SlicedLinear(nn.Module):
    """Weight ``[out_max, in_max]`` or ``[parts, ..., in_max]`` and bias, initialised truncated
    normal and zero; the options are those of :func:`growtas.kernels.linear`."""

    def __init__(self, weight: Box, bias: Box, init_std: float) -> None:
        super().__init__()
        self.weight = drawn(weight, init_std)
        self.bias = nn.Parameter(torch.zeros(bias))

    def forward(self, x: Tensor, out_features: int | None = None, **options: Any) -> Tensor:
        return kernels.linear(x, self.weight, self.bias, out_features=out_features, **options)


class SlicedLayerNorm(nn.Module):
    """LayerNorm whose statistics cover the width of its input."""

    def __init__(self, width: Box, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.eps = eps

    def forward(self, x: Tensor, **options: Any) -> Tensor:
        return kernels.layer_norm(x, self.weight, self.bias, eps=self.eps, **options)

    def leaving(
        self,
        x: Tensor,
        gradients: GradientAccumulator | None,
        extents: Tensor | None,
        present: Tensor | None,
    ) -> tuple[Tensor, Tensor, Callable[[], Tensor]]:
        """The output, for a branch that leaves the stream; x, for where it comes back; and the
        same output later, from today's parameters: functional calls only lend them."""
        y, x = kernels.pre_norm(
            x, self.weight, self.bias, eps=self.eps, gradients=gradients, extents=extents,
            present=present,
        )  # fmt: skip
        again = partial(
            kernels.layer_norm, x, self.weight, self.bias, eps=self.eps, extents=extents,
            present=present,
        )  # fmt: skip
        return y, x, again


def shapes_under(shapes: Mapping[str, Box], prefix: str) -> dict[str, Box]:
    """The shapes of a part of a module, by their names in there."""
    return {n.removeprefix(prefix): shape for n, shape in shapes.items() if n.startswith(prefix)}


def leading(x: Tensor, width: int) -> Tensor:
    """``x[..., :width]``; in compiled code a copy, because of a view it would ask whether it is
    contiguous, which only the widest is: a graph for that one, and one for the others."""
    if torch.compiler.is_compiling():
        return x.index_select(-1, torch.arange(width, device=x.device))
    return x[..., :width]


def computed_again(y: Tensor, again: Callable[[], Tensor]) -> contextlib.AbstractContextManager:
    """Within the context, operators that save ``y`` for their backward pass save ``again`` instead,
    which is called then: a LayerNorm's output costs less to compute than to keep.

    ``again`` must return the bits of ``y``. torch.compile decides such things by itself, and
    tensors without memory are left alone: empty ones all have the same address.
    """
    plain = type(y) is Tensor and not y.is_meta and y.numel() > 0 and not transformed()
    if not y.requires_grad or torch.compiler.is_compiling() or not plain:
        return contextlib.nullcontext()
    place, device, dtype = y.data_ptr(), y.device.type, y.dtype

    def pack(saved: Tensor) -> Any:
        return again if saved.data_ptr() == place else saved

    def unpack(packed: Any) -> Tensor:
        if packed is not again:
            return packed
        low = dtype in (torch.bfloat16, torch.float16)  # as under autocast
        with torch.no_grad(), torch.autocast(device, dtype if low else None, enabled=low):
            return again()

    return torch.autograd.graph.saved_tensors_hooks(pack, unpack)


def survival(
    x: Tensor,
    keep: float | Tensor,
    shape: tuple[int, ...],
    generator: torch.Generator | None = None,
) -> Tensor:
    """Drop path's factors: 1 / keep with probability keep, else 0.

    From one seed the same samples are dropped as in AutoFormer's runs: as in timm's ``drop_path``
    of that time, a sample is kept where keep + uniform, in the dtype of the branch, reaches 1.

    Args:
        x: the branch's input, ``[B, ...]``.
        keep: a number, or a tensor that broadcasts to `shape`.
        shape: of the result.
        generator: on x's device; None: the default one.
    """
    dtype = autocast_dtype(x) or x.dtype
    # PyTorch 2.11 draws other numbers for new_empty and rand when it compiles them.
    numbers = torch.empty(shape, device=x.device, dtype=dtype).uniform_(generator=generator)
    kept = numbers.add_(keep).ge_(1.0)
    return kept.to(torch.promote_types(dtype, torch.float32)) / keep
