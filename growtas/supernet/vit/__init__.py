"""The family of Vision Transformers: AutoFormer's supernet.

The names load on first use: the sizes of the family need no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from growtas.base.lazy import lazy_names

if TYPE_CHECKING:
    from growtas.supernet.vit.extents import Extents
    from growtas.supernet.vit.model import Supernet
    from growtas.supernet.vit.standalone import VisionTransformer

__all__ = ["Extents", "Supernet", "VisionTransformer"]

__getattr__ = lazy_names(
    __name__,
    {
        "Extents": "growtas.supernet.vit.extents",
        "Supernet": "growtas.supernet.vit.model",
        "VisionTransformer": "growtas.supernet.vit.standalone",
    },
)
