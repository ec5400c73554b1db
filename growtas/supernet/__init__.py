"""The supernet, its files, and extraction of ordinary models from it."""

from growtas.supernet.files import load_supernet, save_supernet
from growtas.supernet.standalone import VisionTransformer
from growtas.supernet.vit import Supernet

__all__ = ["Supernet", "VisionTransformer", "load_supernet", "save_supernet"]
