"""Accuracy and loss of some subnets over one pass of a loader."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from growtas.base.precision import autocast
from growtas.space import Subnet
from growtas.training.distributed import Process


@dataclass(frozen=True)
class Evaluation:
    """Top-1 accuracy in [0, 1], mean cross-entropy in nats, and the number of images."""

    accuracy: float
    loss: float
    count: int


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    subnets: Sequence[Subnet],
    loader: Iterable[tuple[Tensor, Tensor]],
    process: Process,
    dtype: torch.dtype | None = None,
) -> list[Evaluation]:
    """Run every subnet on every batch of `loader`; sums are over the loaders of all processes.

    Args:
        model: called as ``model(images, subnet)``; put into evaluation mode and back.
        subnets: what to evaluate.
        loader: batches of this process, (images [B, C, H, W], labels [B]).
        process: whose device to use.
        dtype: of autocast, None for float32.

    Raises:
        ValueError: the loaders of all processes together are empty.
    """
    totals = torch.zeros(len(subnets), 3, dtype=torch.float64, device=process.device)
    training = model.training
    model.eval()
    try:
        for images, labels in loader:
            images = images.to(process.device, non_blocking=True)
            labels = labels.to(process.device, non_blocking=True)
            for row, subnet in enumerate(subnets):
                with autocast(dtype, process.device):
                    logits = model(images, subnet)
                logits = logits.float()
                totals[row, 0] += (logits.argmax(1) == labels).sum()
                totals[row, 1] += nn.functional.cross_entropy(logits, labels, reduction="sum")
                totals[row, 2] += len(labels)
    finally:
        model.train(training)
    sums = process.sum(totals).tolist()
    if not sums or not sums[0][2]:
        raise ValueError("nothing to evaluate: no subnet, or no image in the loader")
    return [Evaluation(right / n, loss / n, int(n)) for right, loss, n in sums]
