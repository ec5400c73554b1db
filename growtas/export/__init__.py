"""Stand-alone models on disk."""

from growtas.export.files import load, save
from growtas.export.prediction import Prediction, predict

__all__ = ["Prediction", "load", "predict", "save"]
