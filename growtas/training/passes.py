"""Executing a `StepPlan`: the forward and backward passes of one optimizer step."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, overload

import torch
from torch import Tensor, nn

from growtas.base.precision import autocast
from growtas.schedule import Pass, StepPlan
from growtas.training.distributed import Process

Batch = tuple[Tensor, Tensor]


def check_plan(plan: StepPlan) -> None:
    """Refuse what this trainer cannot execute.

    Raises:
        ValueError: naming the value and what is allowed.
    """
    if plan.momentum_key != 0:
        raise ValueError(f"momentum_key is {plan.momentum_key}; this trainer has only key 0")
    if not any(trains(step) for step in plan.passes):
        raise ValueError("every pass of the plan has loss 'eval': nothing would be trained")
    splits = {step.tag: step.split for step in plan.passes}
    for step in plan.passes:
        if step.teacher is not None and splits.get(step.teacher) != step.split:
            raise ValueError(
                f"loss is {step.loss!r} on split {step.split!r}; the pass tagged {step.teacher!r} "
                f"ran on {splits.get(step.teacher)!r}, so the images differ"
            )
        if step.split not in ("train", "search"):
            raise ValueError(f"split is {step.split!r}; this trainer has 'train' and 'search'")
        if step.split == "search" and trains(step):
            raise ValueError(
                f"split is 'search' with loss {step.loss!r}; weights never train on the search "
                "split, allowed there: 'eval'"
            )
        head, _, teacher = step.loss.partition("kd:")
        if step.loss not in ("ce", "eval") and not (teacher and head in ("", "ce+")):
            raise ValueError(
                f"loss is {step.loss!r}; this trainer has 'ce', 'kd:TAG', 'ce+kd:TAG' and 'eval'"
            )


def trains(step: Pass) -> bool:
    """Whether the pass has a backward."""
    return step.loss != "eval"


class StepLosses(Sequence[float]):
    """The losses of a step's passes, averaged over all processes when somebody looks.

    Reading waits for the device, so a strategy that ignores its losses costs nothing.
    """

    def __init__(self, losses: Tensor, process: Process) -> None:
        self._losses = losses
        self._process = process
        self._values: list[float] | None = None

    def __len__(self) -> int:
        return len(self._losses)

    @overload
    def __getitem__(self, index: int) -> float: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[float]: ...
    def __getitem__(self, index: int | slice) -> float | Sequence[float]:
        if self._values is None:
            mean = self._process.sum(self._losses.clone()) / self._process.world_size
            self._values = mean.tolist()
        return self._values[index]


@dataclass(frozen=True)
class StepResult:
    """What one step measured on this process.

    Attributes:
        losses: [passes] float32, mean loss of each pass, unscaled.
        objective: [] float32, the sum of the scaled losses of the passes that train.
        correct: [] int64, images that the first training pass classified as their main label.
    """

    losses: Tensor
    objective: Tensor
    correct: Tensor


class PassRunner:
    """Runs plans on one model.

    Args:
        model: called as ``model(images, subnet)``, maybe wrapped for distributed training.
        supernet: the model without the wrapper; its training mode switches drop path.
        process: device and world.
        dtype: of autocast, None for float32.
        smoothing: label smoothing where labels are not mixed.
        mix: timm's Mixup (in place on images, labels to soft targets), or None.
        scale_loss: applied before each backward, for fp16.
        search_batch: gives the batch of "eval" passes on the search split for a step number.
        accumulate: pieces that the batch is cut into.
    """

    def __init__(
        self,
        model: nn.Module,
        supernet: nn.Module,
        process: Process,
        *,
        dtype: torch.dtype | None = None,
        smoothing: float = 0.0,
        mix: Callable[[Tensor, Tensor], Batch] | None = None,
        scale_loss: Callable[[Tensor], Tensor] | None = None,
        search_batch: Callable[[int], Batch] | None = None,
        accumulate: int = 1,
        **forward: Any,
    ) -> None:
        self.model = model
        self.supernet = supernet
        self.process = process
        self.dtype = dtype
        self.smoothing = smoothing
        self.mix = mix
        self.scale_loss = scale_loss
        self.search_batch = search_batch
        self.accumulate = accumulate
        self.forward = forward

    def run(self, plan: StepPlan, images: Tensor, labels: Tensor, step: int) -> StepResult:
        """Add the gradients of all passes of `plan` to the parameters.

        A pass that distils sees the same images as its teacher did. Of the others, those with
        `regularise` see mixed images (if mixing is on) and use drop path.

        Raises:
            ValueError: the plan asks for something this trainer does not have.
        """
        check_plan(plan)
        mixed = _mixing_passes(plan) if self.mix is not None else [False] * len(plan.passes)
        plain: Batch = (images, labels)
        soft = plain
        if self.mix is not None and any(mixed):
            soft = self.mix(images.clone() if not all(mixed) else images, labels)
        pieces = min(self.accumulate, len(images))
        last = max(i for i, step_pass in enumerate(plan.passes) if trains(step_pass))
        device = self.process.device
        losses = torch.zeros(len(plan.passes), device=device)
        objective = torch.zeros((), device=device)
        correct = torch.zeros((), dtype=torch.int64, device=device)
        first = next(i for i, step_pass in enumerate(plan.passes) if trains(step_pass))
        for piece, (plain_part, soft_part) in enumerate(_cut(plain, soft, pieces)):
            share = len(plain_part[0]) / len(images)
            tags: dict[str, Tensor] = {}
            for i, step_pass in enumerate(plan.passes):
                batch, part = soft_part if mixed[i] else plain_part, share
                if step_pass.split == "search":  # nothing to accumulate: once, in one piece
                    if piece > 0:
                        continue
                    batch, part = self._search_part(step), 1.0
                sync = i == last and piece == pieces - 1
                logits, loss = self._pass(step_pass, batch, tags, share, sync)
                losses[i] += loss * part
                if trains(step_pass):
                    objective += loss * (share * step_pass.scale)
                if i == first:
                    hard = batch[1].argmax(1) if batch[1].dim() == 2 else batch[1]
                    correct += (logits.argmax(1) == hard).sum()
        return StepResult(losses, objective, correct)

    def _pass(
        self, step_pass: Pass, batch: Batch, tags: dict[str, Tensor], share: float, sync: bool
    ) -> tuple[Tensor, Tensor]:
        images, targets = batch
        self.supernet.train(step_pass.regularise and trains(step_pass))
        try:
            if not trains(step_pass):
                with torch.no_grad(), autocast(self.dtype, self.process.device):
                    logits = self.supernet(images, step_pass.subnet).float()
                loss = nn.functional.cross_entropy(logits, targets)
            else:
                with self._no_sync(sync):
                    with autocast(self.dtype, self.process.device):
                        logits = self.model(images, step_pass.subnet, **self.forward)
                    logits = logits.float()
                    loss = self._loss(step_pass, logits, targets, tags)
                    scaled = loss * (share * step_pass.scale)
                    (self.scale_loss(scaled) if self.scale_loss else scaled).backward()
        finally:
            self.supernet.train()
        if step_pass.tag is not None:
            tags[step_pass.tag] = logits.detach()
        return logits.detach(), loss.detach()

    def _loss(
        self, step_pass: Pass, logits: Tensor, targets: Tensor, tags: dict[str, Tensor]
    ) -> Tensor:
        loss = logits.new_zeros(())
        if step_pass.uses_labels:
            smoothing = 0.0 if targets.dim() == 2 else self.smoothing
            loss = nn.functional.cross_entropy(logits, targets, label_smoothing=smoothing)
        if step_pass.teacher is not None:
            teacher = tags[step_pass.teacher].softmax(1)
            loss = loss + nn.functional.cross_entropy(logits, teacher)
        return loss

    def _no_sync(self, sync: bool) -> contextlib.AbstractContextManager[None]:
        # Gradients of all passes meet in one exchange between processes, at the last backward.
        if sync or not isinstance(self.model, nn.parallel.DistributedDataParallel):
            return contextlib.nullcontext()
        return self.model.no_sync()

    def _search_part(self, step: int) -> Batch:
        if self.search_batch is None:
            raise ValueError("split is 'search', but the data has no search split here")
        return self.search_batch(step)


def _mixing_passes(plan: StepPlan) -> list[bool]:
    """Which passes see mixed images."""
    by_tag: dict[str, bool] = {}
    mixing = []
    for step_pass in plan.passes:
        own = step_pass.split == "train" and step_pass.regularise and trains(step_pass)
        mixed = by_tag[step_pass.teacher] if step_pass.teacher is not None else own
        if step_pass.tag is not None:
            by_tag[step_pass.tag] = mixed
        mixing.append(mixed)
    return mixing


def _cut(plain: Batch, soft: Batch, pieces: int) -> Iterator[tuple[Batch, Batch]]:
    parts = [tensor.tensor_split(pieces) for tensor in (*plain, *soft)]
    for images, labels, soft_images, soft_labels in zip(*parts, strict=True):
        yield (images, labels), (soft_images, soft_labels)
