"""What a Trainer is assembled from, as its settings say: optimizer, average, wrapper, mixing."""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor, nn

from growtas.base.optional import require
from growtas.supernet import Supernet
from growtas.training.config import OptimConfig, TrainConfig
from growtas.training.data import DataBundle
from growtas.training.distributed import Process
from growtas.training.optimizer import AdamW
from growtas.training.samples import ImageView, UnreadableImage


def check_fit(model: Supernet, data: DataBundle) -> None:
    """Refuse a model that is no supernet, or not made for the images.

    Raises:
        TypeError, ValueError: naming what does not fit.
    """
    if not isinstance(model, Supernet):
        raise TypeError(
            f"the model is a {type(model).__name__}; allowed: a Supernet (for several processes "
            "the trainer wraps it itself)"
        )
    height, width = model.config["image_size"]
    for name, ours, theirs in (
        ("image_size", [height, width], [data.image_size, data.image_size]),
        ("in_chans", model.config["in_chans"], data.in_chans),
        ("num_classes", model.config["num_classes"], data.num_classes),
    ):
        if ours != theirs:
            raise ValueError(f"the model has {name} {ours}, the data {theirs}; they must agree")


def build_optimizer(model: Supernet, optim: OptimConfig, batch_size: int) -> AdamW:
    """AdamW with timm's groups: no weight decay for biases, 1-D parameters and tokens."""
    groups = require("timm.optim", "train").param_groups_weight_decay(
        model, optim.weight_decay, no_weight_decay_list=model.no_weight_decay()
    )
    return AdamW(
        groups,
        lr=optim.peak_lr(batch_size),
        betas=optim.betas,
        eps=optim.eps,
        weight_decay=optim.weight_decay,
        inactive=optim.inactive,
    )


def build_average(model: Supernet, config: TrainConfig) -> Any:
    """timm's ModelEmaV3 over a copy of the model; None if averaging is off."""
    if not config.ema_decay:
        return None
    average = require("timm.utils", "train").ModelEmaV3
    return average(model, decay=config.ema_decay, use_warmup=config.ema_warmup)


def wrap(model: Supernet, process: Process) -> nn.Module:
    """The model in DistributedDataParallel if there are several processes, else the model."""
    if process.world_size == 1:
        return model
    # Each step uses other blocks; DDP has to find out which.
    return nn.parallel.DistributedDataParallel(
        model,
        device_ids=[process.device] if process.device.type == "cuda" else None,
        find_unused_parameters=True,
    )


def build_mix(data: DataBundle, world_size: int) -> Any:
    """timm's Mixup (mixup and cutmix); None if both are off.

    Raises:
        ValueError: a process's share of the batch is odd.
    """
    augment = data.augment
    if not augment.mixes:
        return None
    share = data.config.batch_size // world_size
    if share % 2:
        raise ValueError(
            f"a process's share of data.batch_size is {share}; allowed: even numbers, as mixup and "
            "cutmix mix pairs"
        )
    return require("timm.data", "train").Mixup(
        mixup_alpha=augment.mixup,
        cutmix_alpha=augment.cutmix,
        prob=augment.mixup_prob,
        switch_prob=augment.mixup_switch_prob,
        mode=augment.mixup_mode,
        label_smoothing=augment.smoothing,
        num_classes=data.num_classes,
    )


class SearchBatches:
    """Search images for the "eval" passes of a step: one draw for all processes, each its share."""

    def __init__(self, data: DataBundle, seed: int, process: Process) -> None:
        self._data = data
        self._seed = seed
        self._process = process

    def __call__(self, step: int) -> tuple[Tensor, Tensor]:
        """Images [batch, channels, side, side] and labels [batch], on the device."""
        view = self._data.search
        count = min(self._data.config.batch_size, len(view))
        draw = random.Random(f"growtas:{self._seed}:{step}:search").sample(range(len(view)), count)
        share = draw[self._process.rank :: self._process.world_size]
        found = [self._sample(view, position) for position in share]
        samples = [sample for sample in found if sample is not None]
        if not samples:
            raise UnreadableImage(f"cannot read any of the {len(share)} search images of a step")
        images, labels = zip(*samples, strict=True)
        device = self._process.device
        return torch.stack(images).to(device), torch.tensor(labels).to(device)

    def _sample(self, view: ImageView, position: int) -> tuple[Tensor, int] | None:
        try:
            return view[position]
        except UnreadableImage:
            if not self._data.config.skip_unreadable:
                raise
            return None
