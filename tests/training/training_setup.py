"""A supernet, data and strategies small enough to train within a test."""

from __future__ import annotations

import random

import pytest
import torch

from growtas.schedule import GrowTAS, Pass, PlusPhase, Stateless, StepPlan, Uniform
from growtas.space import SearchSpace
from growtas.supernet import Supernet
from growtas.training import (
    AugmentConfig,
    DataConfig,
    OptimConfig,
    TrainConfig,
    Trainer,
    build_data,
)

SPACE = SearchSpace(
    embed_dim=(16, 24), depth=(1, 2), num_heads=(1, 2), mlp_ratio=(1.0, 2.0), head_dim=8
)
FREEZE = {"embed_dim": [16]}
RATE = OptimConfig(lr=5e-3, lr_base_batch=0, min_lr=1e-4, warmup_epochs=1, sched_on_updates=True)


def supernet(seed: int = 0, **options) -> Supernet:
    torch.manual_seed(seed)
    settings = {"image_size": 8, "patch_size": 4, "num_classes": 10, "in_chans": 1}
    model = Supernet(SPACE, **settings, max_relative_position=1, **options)
    # Larger weights than the usual initialisation, so that a few steps make a difference.
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 and "patch" not in name:
                parameter.mul_(8)
    return model


def digits(batch_size: int = 256, augment: AugmentConfig | None = None, **settings):
    config = DataConfig("digits", batch_size=batch_size, workers=0, **settings)
    return build_data(config, augment if augment is not None else AugmentConfig.off())


def train_config(**settings) -> TrainConfig:
    return TrainConfig(**{"epochs": 2, "device": "cpu", "progress": False, **settings})


def growtas_plus(epochs: int = 1) -> GrowTAS:
    plus = PlusPhase(epochs=epochs, lr=2e-3, min_lr=1e-3, freeze=FREEZE)
    return GrowTAS([(0, FREEZE), (1, {})], plus=plus)


def interrupted(run: Trainer, epoch: int) -> None:
    """Train `run` until it has saved `epoch` epochs, and die."""
    save = run._save

    def save_then_die():
        save()
        if run.epoch == epoch:
            raise KeyboardInterrupt

    run._save = save_then_die
    with pytest.raises(KeyboardInterrupt):
        run.fit()


class Sandwich(Stateless):
    """Largest subnet on labels; a random one and the smallest distil from it."""

    def phases(self, space, epochs):
        return Uniform().phases(space, epochs)

    def plan(self, context):
        space = context.phase.space
        return StepPlan(
            (
                Pass(space.largest(), tag="teacher"),
                Pass(space.sample(context.rng), loss="ce+kd:teacher", regularise=False),
                Pass(space.smallest(), loss="kd:teacher", scale=0.5, regularise=False),
            )
        )


def subnets(space, count: int = 8):
    rng = random.Random(0)
    return [space.smallest(), space.largest(), *(space.sample(rng) for _ in range(count))]


def logits(model, space, count: int = 8):
    model.eval()
    images = torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return [model(images, subnet) for subnet in subnets(space, count)]
