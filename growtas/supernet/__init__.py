"""The supernet, its files, and extraction of ordinary models from it.

The names load on first use: the sizes of a family need no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from growtas.base.optional import lazy_names

if TYPE_CHECKING:
    from growtas.supernet.files import load_supernet, save_supernet
    from growtas.supernet.vit.model import Supernet
    from growtas.supernet.vit.standalone import VisionTransformer

__all__ = ["Supernet", "VisionTransformer", "load_supernet", "save_supernet"]

__getattr__ = lazy_names(
    __name__,
    {
        "Supernet": "growtas.supernet.vit.model",
        "VisionTransformer": "growtas.supernet.vit.standalone",
        "load_supernet": "growtas.supernet.files",
        "save_supernet": "growtas.supernet.files",
    },
)
