"""Stand-alone models on disk."""

from growtas.export.files import load, save

__all__ = ["load", "save"]
