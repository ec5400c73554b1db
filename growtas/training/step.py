"""One optimizer step: the passes of a plan, the update, the average.

Where the plan and the device allow it, all of this comes from one captured graph
(`growtas.training.graph`). docs/a-step.md follows a step from the plan to the kernels and back.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, overload

import torch
from torch import Tensor, nn

from growtas.base.distributed import Process
from growtas.base.optional import require
from growtas.base.precision import amp_dtype, autocast
from growtas.kernels import GradientAccumulator
from growtas.schedule import Pass, StepPlan
from growtas.supernet import Supernet
from growtas.training.batches import build_mix
from growtas.training.config import OptimConfig, TrainConfig
from growtas.training.data import DataBundle
from growtas.training.graph import GraphedStep
from growtas.training.optimizer import AdamW, update

Batch = tuple[Tensor, Tensor]


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


class TrainStep:
    """Executes plans on a model that is on the process's device, its optimizer and its average.

    Attributes:
        dtype: of autocast; None for float32.
        scaler: of the loss; disabled unless float16 trains.
        mix: timm's Mixup (in place on images, labels to soft targets); None if labels stay hard.
        average: timm's ModelEmaV3; None if averaging is off.
    """

    def __init__(
        self,
        model: Supernet,
        optimizer: AdamW,
        data: DataBundle,
        config: TrainConfig,
        optim: OptimConfig,
        process: Process,
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.data = data
        self.config = config
        self.optim = optim
        self.process = process
        self.dtype = amp_dtype(config.amp, process.device)
        self.scaler = torch.amp.GradScaler(process.device.type, enabled=self.dtype is torch.float16)
        share = data.config.batch_size // process.world_size
        self.mix = build_mix(data.augment, share, data.num_classes)
        # Gradients go straight into the sampled boxes where nothing needs them at full size.
        self._gradients = (
            GradientAccumulator(p for p in model.parameters() if p.requires_grad)
            if process.world_size == 1 and not config.compile
            else None
        )
        self._graphed: GraphedStep | None = None
        self._told: set[str] = set()
        self._notes: list[str] = []
        self._never = _never_graphed(config, model)
        if self._never is not None and config.graph != "off" and process.device.type == "cuda":
            self._tell(self._never)
        process.share(model.parameters())  # before the average is copied from them
        self.average: Any = None
        if config.ema_decay:
            average = require("timm.utils", "train").ModelEmaV3
            self.average = average(model, decay=config.ema_decay, use_warmup=config.ema_warmup)
        if config.compile:
            for block in model.blocks:
                block.compile(dynamic=True)

    def __call__(self, plan: StepPlan, images: Tensor, labels: Tensor, step: int) -> StepResult:
        """One step: weights, optimizer, loss scale and average move.

        Args:
            plan: passes, all on one batch or the search split.
            images, labels: this process's share of the batch; `images` may be overwritten.
            step: number of the step in the run, from 0.

        Raises:
            ValueError: the plan asks for something this trainer does not have.
        """
        check_plan(plan)
        if self._never is None:
            reason = not_graphed(plan)
            if reason is None:
                return self._replay(plan, images, labels, step)
            self._tell(reason)
        self._zero_grad()
        result = self.run_passes(plan, images, labels, step)
        self.update(plan)
        if self.average is not None:
            self.average.update(self.model, step + 1)
        return result

    def run_passes(self, plan: StepPlan, images: Tensor, labels: Tensor, step: int) -> StepResult:
        """Add the gradients of all passes of `plan` to the parameters.

        A pass that distils sees the same images as its teacher did. Of the others, those with
        `regularise` see mixed images (if mixing is on) and use drop path.
        """
        mixed = _mixing_passes(plan) if self.mix is not None else [False] * len(plan.passes)
        soft = (images, labels)
        if self.mix is not None and any(mixed):
            soft = self.mix(images.clone() if not all(mixed) else images, labels)
        pieces = min(self.config.accumulate, len(images))
        training = [i for i, one in enumerate(plan.passes) if _trains(one)]
        device = self.process.device
        losses = torch.zeros(len(plan.passes), device=device)
        objective = torch.zeros((), device=device)
        correct = torch.zeros((), dtype=torch.int64, device=device)
        cut = [tensor.tensor_split(pieces) for tensor in (images, labels, *soft)]
        for piece, (x, y, soft_x, soft_y) in enumerate(zip(*cut, strict=True)):
            share = len(x) / len(images)
            tags: dict[str, Tensor] = {}
            for i, one in enumerate(plan.passes):
                batch, part = (soft_x, soft_y) if mixed[i] else (x, y), share
                if one.split == "search":  # nothing to accumulate: once, in one piece
                    if piece > 0:
                        continue
                    batch = self.data.search_batch(self.config.seed, step, self.process)
                    part = 1.0
                sync = i == training[-1] and piece == pieces - 1
                logits, loss = self._pass(one, batch, tags, share, sync)
                losses[i] += loss * part
                if _trains(one):
                    objective += loss * (share * one.scale)
                if i == training[0]:
                    correct += _correct(logits, batch[1])
        return StepResult(losses, objective, correct)

    def update(self, plan: StepPlan) -> None:
        """Move the weights by the gradients that the plan's passes left."""
        update(
            self.model, self.optimizer, self.scaler,
            [one.subnet for one in plan.passes if _trains(one)],
            lr_scale=plan.lr_scale, clip_grad=self.optim.clip_grad,
        )  # fmt: skip

    def notes(self) -> list[str]:
        """Why steps run without a graph that was to be had, a line for each reason, once."""
        found, self._notes = self._notes, []
        return found

    @functools.cached_property
    def _wrapped(self) -> nn.Module:
        """The model, in DistributedDataParallel if there are several processes."""
        if self.process.world_size == 1:
            return self.model
        device = self.process.device
        return nn.parallel.DistributedDataParallel(
            self.model,
            device_ids=[device] if device.type == "cuda" else None,
            find_unused_parameters=True,  # each step uses other blocks; DDP has to find out which
        )

    def _pass(
        self, one: Pass, batch: Batch, tags: dict[str, Tensor], share: float, sync: bool
    ) -> tuple[Tensor, Tensor]:
        """Logits and loss of a pass; if it trains, its gradients are added."""
        images, targets = batch
        device = self.process.device
        self.model.train(one.regularise and _trains(one))
        try:
            if not _trains(one):
                with torch.no_grad(), autocast(self.dtype, device):
                    logits = self.model(images, one.subnet).float()
                loss = nn.functional.cross_entropy(logits, targets)
            else:
                with self._no_sync(sync):
                    with autocast(self.dtype, device):
                        logits = self._wrapped(images, one.subnet, gradients=self._gradients)
                    logits = logits.float()
                    loss = self._loss(one, logits, targets, tags)
                    self.scaler.scale(loss * (share * one.scale)).backward()
        finally:
            self.model.train()
        if one.tag is not None:
            tags[one.tag] = logits.detach()
        return logits.detach(), loss.detach()

    def _loss(self, one: Pass, logits: Tensor, targets: Tensor, tags: dict[str, Tensor]) -> Tensor:
        loss = logits.new_zeros(())
        if one.uses_labels:
            smoothing = 0.0 if targets.dim() == 2 else self.data.augment.smoothing
            loss = nn.functional.cross_entropy(logits, targets, label_smoothing=smoothing)
        if one.teacher is not None:
            teacher = tags[one.teacher].softmax(1)
            loss = loss + nn.functional.cross_entropy(logits, teacher)
        return loss

    def _no_sync(self, sync: bool) -> contextlib.AbstractContextManager[None]:
        # Gradients of all passes meet in one exchange between processes, at the last backward.
        if sync or not isinstance(self._wrapped, nn.parallel.DistributedDataParallel):
            return contextlib.nullcontext()
        return self._wrapped.no_sync()

    def _zero_grad(self) -> None:
        if self._graphed is not None:
            self._graphed.zero_()
        if self._gradients is not None:
            self._gradients.zero_()
        elif self._graphed is None:
            self.optimizer.zero_grad(set_to_none=True)

    def _replay(self, plan: StepPlan, images: Tensor, labels: Tensor, step: int) -> StepResult:
        targets = labels
        if self.mix is not None:
            images, targets = self.mix(images, labels)
        if self._graphed is None:
            self._graphed = GraphedStep(
                self.model, self.optimizer, images, targets,
                loss=functools.partial(
                    nn.functional.cross_entropy,
                    label_smoothing=0.0 if self.mix is not None else self.data.augment.smoothing,
                ),
                clip_grad=self.optim.clip_grad, dtype=self.dtype, scaler=self.scaler,
                average=None if self.average is None else self.average.module,
            )  # fmt: skip
        decay = 0.0 if self.average is None else self.average.get_decay(step + 1)
        subnet = plan.passes[0].subnet
        loss, logits = self._graphed(images, targets, subnet, plan.lr_scale, decay)
        for reason in (self._graphed.reason, self._graphed.update_reason):
            if reason is not None:
                self._tell(reason)
        loss = loss.clone()  # the next step overwrites it
        return StepResult(loss.view(1), loss, _correct(logits, targets))

    def _tell(self, reason: str) -> None:
        if reason not in self._told:
            self._told.add(reason)
            self._notes.append(f"not in one CUDA graph: {reason}")


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


def check_plan(plan: StepPlan) -> None:
    """Refuse what this trainer cannot execute.

    Raises:
        ValueError: naming the value and what is allowed.
    """
    if not any(map(_trains, plan.passes)):
        raise ValueError("every pass of the plan has loss 'eval': nothing would be trained")
    splits = {one.tag: one.split for one in plan.passes}
    for one in plan.passes:
        if one.teacher is not None and splits.get(one.teacher) != one.split:
            raise ValueError(
                f"loss is {one.loss!r} on split {one.split!r}; the pass tagged {one.teacher!r} "
                f"ran on {splits.get(one.teacher)!r}, so the images differ"
            )
        if one.split == "search" and _trains(one):
            raise ValueError(
                f"split is 'search' with loss {one.loss!r}; weights never train on the search "
                "split, allowed there: 'eval'"
            )


def not_graphed(plan: StepPlan) -> str | None:
    """Why a plan runs without a graph; None if one graph holds it."""
    if len(plan.passes) > 1:
        return f"a plan of {len(plan.passes)} passes; a graph holds one"
    (only,) = plan.passes
    if only.loss != "ce" or only.split != "train":
        return f"a pass with loss {only.loss!r} on split {only.split!r}; a graph trains on labels"
    if not only.regularise or only.scale != 1.0:
        return f"a pass with regularise={only.regularise}, scale={only.scale}; a graph has True, 1"
    return None


def _never_graphed(config: TrainConfig, model: Supernet) -> str | None:
    """Why no plan at all is graphed.

    Raises:
        ValueError: ``graph: on`` with settings that rule it out.
    """
    if config.graph == "off":
        return "train.graph is off"
    reason = None
    if config.compile:
        reason = "train.compile is on"
    elif config.accumulate > 1:
        reason = f"train.accumulate is {config.accumulate}"
    elif config.graph == "auto" and not model.reads_extents_on_device():
        reason = "the backend in use reads no extents on the device; Triton's does"
    if reason is not None and config.graph == "on":
        raise ValueError(f"train.graph is 'on', but {reason}; allowed: 'auto', 'off'")
    return reason


def _trains(one: Pass) -> bool:
    """Whether the pass has a backward."""
    return one.loss != "eval"


def _correct(logits: Tensor, targets: Tensor) -> Tensor:
    """Images classified as their label, or as the main one of soft targets."""
    return (logits.argmax(1) == (targets.argmax(1) if targets.dim() == 2 else targets)).sum()


def _mixing_passes(plan: StepPlan) -> list[bool]:
    """Which passes see mixed images."""
    by_tag: dict[str, bool] = {}
    mixing = []
    for one in plan.passes:
        own = one.split == "train" and one.regularise and _trains(one)
        mixed = by_tag[one.teacher] if one.teacher is not None else own
        if one.tag is not None:
            by_tag[one.tag] = mixed
        mixing.append(mixed)
    return mixing
