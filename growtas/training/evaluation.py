"""Accuracy and loss of subnets over images: the loop that training and search share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from growtas.base.distributed import Process
from growtas.base.precision import autocast
from growtas.space import Subnet

# Which of the subnets, and their logits [..., B, classes] for a batch of images.
Logits = tuple[int | slice, Tensor]


@dataclass(frozen=True)
class Evaluation:
    """Top-1 accuracy in [0, 1], mean cross-entropy in nats, and the number of images."""

    accuracy: float
    loss: float
    count: int


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

    def logits_of(images: Tensor) -> Iterator[Logits]:
        images = images.to(process.device, non_blocking=True)
        for index, subnet in enumerate(subnets):
            with autocast(dtype, process.device):
                logits = model(images, subnet)
            yield index, logits

    found = tally(model, loader, logits_of, len(subnets), process)
    if not found or not found[0].count:
        raise ValueError("nothing to evaluate: no subnet, or no image in the loader")
    return found


@torch.no_grad()  # not inference_mode: what a model caches meanwhile must be usable in training
def tally(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    logits_of: Callable[[Tensor], Iterable[Logits]],
    count: int,
    process: Process,
) -> list[Evaluation]:
    """Evaluate `count` subnets on the batches of all processes, as :func:`evaluate` does.

    A prediction from logits that are not all finite counts as wrong. `logits_of` gives the logits
    of all subnets for the images of a batch, on the process's device.
    """
    sums = torch.zeros(count, 3, dtype=torch.float64, device=process.device)
    with evaluating(model):
        for images, labels in batches:
            labels = labels.to(process.device, non_blocking=True)
            for which, logits in logits_of(images):
                sums[which] += _sums(logits.float(), labels)
    for one in sums:  # apart: the order of a sum over processes may depend on its neighbours
        process.sum(one)
    return [
        Evaluation(right / max(n, 1), loss / max(n, 1), int(n)) for right, loss, n in sums.tolist()
    ]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode; afterwards every module in its own."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _sums(logits: Tensor, labels: Tensor) -> Tensor:
    """[correct predictions, sum of the losses, images] ``[..., 3]`` of logits
    ``[..., B, classes]``."""
    right = (logits.argmax(-1) == labels) & logits.isfinite().all(-1)
    labels = labels.expand(right.shape)
    losses = F.cross_entropy(logits.flatten(0, -2), labels.flatten(), reduction="none")
    loss = losses.view(right.shape).sum(-1, dtype=torch.float64)
    images = torch.full_like(loss, right.shape[-1])
    return torch.stack((right.sum(-1).double(), loss, images), -1)
