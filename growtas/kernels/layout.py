"""Operands in the shapes that compiled kernels take: last dimension contiguous, parts first."""

from __future__ import annotations

from torch import Tensor


def _contiguous_rows(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def as_rows(x: Tensor) -> Tensor:
    """``[..., width]`` as ``[rows, width]`` with contiguous rows; a copy only if it must be."""
    return _contiguous_rows(x.reshape(-1, x.shape[-1]))


def as_matrices(weight: Tensor) -> Tensor:
    """A weight ``[out_max, in_max]`` or ``[P, ..., in_max]`` as ``[P, out_max, in_max]`` with
    contiguous rows; a copy only if it must be."""
    return _contiguous_rows(weight.unsqueeze(0) if weight.dim() == 2 else weight.flatten(1, -2))


def as_vectors(bias: Tensor | None) -> Tensor | None:
    """A bias as ``[entries]`` or ``[P, out_max]``, contiguous."""
    if bias is None:
        return None
    return (bias if bias.dim() == 1 else bias.flatten(1)).contiguous()
