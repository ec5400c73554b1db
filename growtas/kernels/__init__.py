"""Operators that read the leading slice of max-size parameters in place.

Every operator takes whole parameters and the sampled extents, never a view; one folder each,
with ``api.py`` (checks, autograd, registration), ``reference.py`` (plain PyTorch, the
specification) and ``native.py`` (the CPU's own path, through the C++ core where that has a kernel).
Second derivatives and the transforms of ``torch.func`` go through the reference (docs/pytorch.md).
"""

from typing import TYPE_CHECKING

from growtas.base.optional import lazy_names
from growtas.kernels.adamw.api import adamw_, gradient_norm
from growtas.kernels.adamw.row import Row as AdamWRow
from growtas.kernels.attention.api import attention
from growtas.kernels.dispatch import BackendUnavailable, explain, use_backend
from growtas.kernels.gradients import GradientAccumulator
from growtas.kernels.layer_norm.api import layer_norm, pre_norm
from growtas.kernels.linear.api import linear

if TYPE_CHECKING:
    from growtas.supernet.vit.extents import Extents

__all__ = [
    "AdamWRow",
    "BackendUnavailable",
    "Extents",
    "GradientAccumulator",
    "adamw_",
    "attention",
    "explain",
    "gradient_norm",
    "layer_norm",
    "linear",
    "pre_norm",
    "use_backend",
]

# Its home is the family whose sizes it holds, which kernels must not import; here it had its first.
__getattr__ = lazy_names(__name__, {"Extents": "growtas.supernet.vit.extents"})
