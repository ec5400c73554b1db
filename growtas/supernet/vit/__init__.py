"""The family of Vision Transformers. Its sizes need no torch, so the module loads on first use."""

from typing import TYPE_CHECKING

from growtas.base.optional import lazy_names

if TYPE_CHECKING:
    from growtas.supernet.vit.model import Supernet

__all__ = ["Supernet"]

__getattr__ = lazy_names(__name__, {"Supernet": "growtas.supernet.vit.model"})
