"""One optimizer step of the training loop: a plan's gradients, the update, the average; from one
captured graph where the plan and the device allow it."""

from __future__ import annotations

import functools

import torch
import torch.distributed as dist
from torch import Tensor, nn

from growtas.base.precision import amp_dtype
from growtas.kernels import GradientAccumulator
from growtas.schedule import StepPlan
from growtas.supernet import Supernet
from growtas.training.config import OptimConfig, TrainConfig
from growtas.training.data import DataBundle
from growtas.training.distributed import Process
from growtas.training.graph import GraphedStep
from growtas.training.optimizer import AdamW
from growtas.training.parts import SearchBatches, build_average, build_mix, wrap
from growtas.training.passes import PassRunner, StepResult, check_plan, trains
from growtas.training.update import update


class TrainStep:
    """Executes plans on a model, its optimizer and its average.

    Args:
        model: on the process's device; trained in place.
        optimizer: over its parameters.
        data, config, optim: settings of the run.
        process: device and world.

    Attributes:
        scaler: of the loss; disabled unless float16 trains.
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
        self.config = config
        self.optim = optim
        self.process = process
        self.dtype = amp_dtype(config.amp, process.device)
        self.scaler = torch.amp.GradScaler(process.device.type, enabled=self.dtype is torch.float16)
        self.smoothing = data.augment.smoothing
        self.mix = build_mix(data, process.world_size)
        self._search_batch = SearchBatches(data, config.seed, process)
        # Gradients go straight into the sampled slices where nothing needs them at full size.
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
        if process.world_size > 1:  # before the average is copied from it
            for parameter in model.parameters():
                dist.broadcast(parameter.detach(), 0)
        self.average = build_average(model, config)
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
        if self._never is None:
            reason = not_graphed(plan)
            if reason is None:
                return self._replay(plan, images, labels, step)
            self._tell(reason)
        self._zero_grad()
        result = self.runner.run(plan, images, labels, step)
        self.update(plan)
        if self.average is not None:
            self.average.update(self.model, step + 1)
        return result

    def update(self, plan: StepPlan) -> None:
        """Move the weights by the gradients that the plan's passes left."""
        update(
            self.model, self.optimizer, self.scaler,
            [step_pass.subnet for step_pass in plan.passes if trains(step_pass)],
            lr_scale=plan.lr_scale, clip_grad=self.optim.clip_grad,
        )  # fmt: skip

    def notes(self) -> list[str]:
        """Why steps run without a graph that was to be had, a line for each reason, once."""
        found, self._notes = self._notes, []
        return found

    @functools.cached_property
    def runner(self) -> PassRunner:
        """Runs the passes of plans that are not graphed."""
        return PassRunner(
            wrap(self.model, self.process),
            self.model,
            self.process,
            dtype=self.dtype,
            smoothing=self.smoothing,
            mix=self.mix,
            scale_loss=self.scaler.scale,
            search_batch=self._search_batch,
            accumulate=self.config.accumulate,
            **({} if self._gradients is None else {"gradients": self._gradients}),
        )

    def _replay(self, plan: StepPlan, images: Tensor, labels: Tensor, step: int) -> StepResult:
        check_plan(plan)
        targets = labels
        if self.mix is not None:
            images, targets = self.mix(images, labels)
        if self._graphed is None:
            self._graphed = GraphedStep(
                self.model, self.optimizer, images, targets,
                loss=functools.partial(
                    nn.functional.cross_entropy,
                    label_smoothing=0.0 if self.mix is not None else self.smoothing,
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
        hard = targets.argmax(1) if targets.dim() == 2 else targets
        correct = (logits.argmax(1) == hard).sum()
        loss = loss.clone()  # the next step overwrites it
        return StepResult(loss.view(1), loss, correct)

    def _zero_grad(self) -> None:
        if self._graphed is not None:
            self._graphed.zero_()
        if self._gradients is not None:
            self._gradients.zero_()
        elif self._graphed is None:
            self.optimizer.zero_grad(set_to_none=True)

    def _tell(self, reason: str) -> None:
        if reason not in self._told:
            self._told.add(reason)
            self._notes.append(f"not in one CUDA graph: {reason}")


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
