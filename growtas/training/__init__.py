"""Training a supernet: data, optimizer, averaging, mixed precision, checkpoints, processes.

space = SearchSpace.preset("digits")
data = build_data(DataConfig("digits", batch_size=32, workers=0))
model = Supernet(space, data.image_size, 2, data.num_classes, data.in_chans, init_std=0.1)
optim = OptimConfig(lr=2e-3, lr_base_batch=0, warmup_epochs=2)
Trainer(model, Uniform(), data, TrainConfig(epochs=60), "runs/first", optim=optim).fit()
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from growtas.base.optional import lazy_names
from growtas.training.config import AugmentConfig, DataConfig, OptimConfig, TrainConfig

if TYPE_CHECKING:
    from growtas.training.data import DataBundle, build_data
    from growtas.training.evaluation import Evaluation, evaluate
    from growtas.training.finite import NonFiniteLossError
    from growtas.training.optimizer import AdamW
    from growtas.training.trainer import Trainer, TrainResult

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

# Settings are read without torch; what needs it is loaded on first use.
__getattr__ = lazy_names(
    __name__,
    {
        "AdamW": "growtas.training.optimizer",
        "DataBundle": "growtas.training.data",
        "Evaluation": "growtas.training.evaluation",
        "NonFiniteLossError": "growtas.training.finite",
        "TrainResult": "growtas.training.trainer",
        "Trainer": "growtas.training.trainer",
        "build_data": "growtas.training.data",
        "evaluate": "growtas.training.evaluation",
    },
)
