"""Training a supernet: data, optimizer, averaging, mixed precision, checkpoints, processes."""

from growtas.training.config import AugmentConfig, DataConfig, OptimConfig, TrainConfig
from growtas.training.data import DataBundle, build_data
from growtas.training.evaluation import Evaluation, evaluate
from growtas.training.optimizer import AdamW
from growtas.training.trainer import NonFiniteLossError, Trainer, TrainResult

__all__ = [
    "AdamW",
    "AugmentConfig",
    "DataBundle",
    "DataConfig",
    "Evaluation",
    "NonFiniteLossError",
    "OptimConfig",
    "TrainConfig",
    "TrainResult",
    "Trainer",
    "build_data",
    "evaluate",
]
