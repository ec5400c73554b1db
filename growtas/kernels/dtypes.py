"""What is computed and returned in which dtype, for all backends alike."""

from __future__ import annotations

import torch
from torch import Tensor


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """Of sums and statistics: float32, or float64 for float64."""
    return torch.promote_types(dtype, torch.float32)


def result_dtype(x: Tensor, residual: Tensor | None) -> torch.dtype:
    """Of a layer's output: x's, promoted with that of the residual added to it."""
    return x.dtype if residual is None else torch.promote_types(x.dtype, residual.dtype)
