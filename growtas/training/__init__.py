"""Training a supernet: data, optimizer, averaging, mixed precision, checkpoints, processes.

space = SearchSpace.preset("digits")
data = build_data(DataConfig("digits", batch_size=32, workers=0))
model = Supernet(space, data.image_size, 2, data.num_classes, data.in_chans)
optim = OptimConfig(lr=2e-3, lr_base_batch=0, warmup_epochs=2)
Trainer(model, Uniform(), data, TrainConfig(epochs=60), "runs/first", optim=optim).fit()
"""

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
