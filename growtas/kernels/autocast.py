"""Autocast for growtas's operators, which PyTorch's own cast lists do not know."""

from __future__ import annotations

import torch
from torch import Tensor


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """The dtype autocast wants for products of x; None outside autocast or for float64."""
    device = x.device.type
    if x.dtype == torch.float64 or not torch.is_autocast_enabled(device):
        return None
    return torch.get_autocast_dtype(device)


def cast_to_autocast(x: Tensor) -> Tensor:
    """x in the dtype autocast wants."""
    dtype = autocast_dtype(x)
    return x if dtype is None else x.to(dtype)
