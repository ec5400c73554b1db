"""Operands in the shapes that compiled kernels take: last dimension contiguous, groups first."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def _contiguous_rows(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def as_rows(x: Tensor) -> Tensor:
    """``[..., width]`` as ``[rows, width]`` with contiguous rows; a copy only if it must be."""
    return _contiguous_rows(x.reshape(-1, x.shape[-1]))


def as_matrices(weight: Tensor) -> Tensor:
    """A weight ``[out_max, in_max]`` or ``[G, ..., in_max]`` as ``[G, out_max, in_max]`` with
    contiguous rows; a copy only if it must be."""
    return _contiguous_rows(weight.unsqueeze(0) if weight.dim() == 2 else weight.flatten(1, -2))


def as_vectors(bias: Tensor | None) -> Tensor | None:
    """A bias as ``[entries]`` or ``[G, out_max]``, contiguous."""
    if bias is None:
        return None
    return (bias if bias.dim() == 1 else bias.flatten(1)).contiguous()


def shares(tensor: Tensor | None, count: int) -> Sequence[Tensor | None]:
    """What each of so many subnets has of a batch: equal consecutive parts, as views."""
    return (None,) * count if tensor is None else tensor.tensor_split(count)


def result_dtype(x: Tensor, residual: Tensor | None) -> torch.dtype:
    """Of a layer's output: x's, promoted with that of the residual added to it."""
    return x.dtype if residual is None else torch.promote_types(x.dtype, residual.dtype)
