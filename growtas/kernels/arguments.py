"""What every operator asks of its arguments, at next to no cost per call.

Compiled code decides these checks while it is traced: they look at types, dtypes and numbers of
dimensions, which a graph is made for in any case.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from growtas.base.checks import listed, positive_int

FLOATING = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_NAMES = listed(str(dtype).removeprefix("torch.") for dtype in FLOATING)


def check_floating(name: str, value: Any) -> None:
    """Refuse what holds no floats: integers would be computed with as integers, and cut off.

    Raises:
        TypeError: no tensor, or one of another dtype than `FLOATING`.
        ValueError: a tensor of no dimensions, or one without memory.
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}")
    if value.dtype not in FLOATING:
        raise TypeError(f"{name} must be of floats ({_NAMES}), got {value.dtype}")
    if value.is_meta:
        raise ValueError(f"{name} must be on a device that computes, got a tensor on meta")
    if value.dim() == 0:
        raise ValueError(f"{name} must have 1 or more dimensions, got a tensor of none")


def whole(name: str, value: Any) -> int:
    """`value` as a positive integer; TypeError and ValueError name it. A symbolic one passes."""
    if (type(value) is int or isinstance(value, torch.SymInt)) and value > 0:
        return value  # type: ignore[return-value]
    return positive_int(name, value)
