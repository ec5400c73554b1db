"""One CUDA graph for every subnet: a training step that is captured once.

A step is then: copy the batch, the subnet's extents and a few numbers, replay. See
docs/one-graph.md. Where there is no graph the same functions run eagerly, and `reason` says why.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypedDict, Unpack

import torch
from torch import Tensor, nn

from growtas.base import distributed
from growtas.base.precision import autocast
from growtas.kernels import GradientAccumulator
from growtas.kernels.extents import check_groups
from growtas.space import Subnet
from growtas.supernet import Supernet
from growtas.supernet.graph import Graph, check_batch, logits_buffer
from growtas.training.optimizer import AdamW, update
from growtas.training.sides import sampled_sides
from growtas.training.static_update import StaticUpdate


class StepOutput(NamedTuple):
    """What a step computed; both are overwritten by the next one.

    Attributes:
        loss: float32 ``[]``, of this process's images.
        logits: float32 ``[B, classes]``.
    """

    loss: Tensor
    logits: Tensor


class StepOptions(TypedDict, total=False):
    """Keywords of :class:`GraphedStep`, which says what they are."""

    loss: Callable[[Tensor, Tensor], Tensor]
    clip_grad: float | None
    dtype: torch.dtype | None
    scaler: torch.amp.GradScaler | None
    average: Supernet | None
    generator: torch.Generator | None
    groups: int


class GraphedStep:
    """A whole training step - forward, loss, backward, exchange of gradients, clipping, AdamW,
    averaging, loss scale - for any subnet or several, from one CUDA graph.

    Learning rates, what is frozen, which state the optimizer has and how it counts are numbers on
    the device: stages and phases of a schedule, a loaded or forgotten state and ordinary steps of
    the optimizer in between cost a few copies. Weights, optimizer state and loss scale are the
    model's, the optimizer's and the scaler's own. The gradients' memory is allocated here.

    Where AdamW cannot step on the device (`update_reason` says why) it follows the replay as an
    ordinary step.

    With several processes each captures its own share of the batch; gradients become the mean over
    all of them, as with DistributedDataParallel, in one exchange of one buffer.

    Args:
        model: trained in place, in training mode. The first process's weights count.
        optimizer: over its parameters.
        images, targets: a batch like those to come; copied. Targets may be labels or, for mixed
            images, soft ones.
        loss: of float32 logits and targets; a function that does not look at numbers on the host.
            Cross entropy by default.
        clip_grad: largest norm of the gradient; None for no clipping.
        dtype: of autocast; None for none.
        scaler: of the loss, for float16; None for none.
        average: a copy of the model that follows it as timm's ModelEmaV3 does; None for none.
        generator: of drop path, on the model's device; None: the default one.
        groups: S, subnets of one step, 1 by default; each trains on its part of the batch, as in
            :meth:`growtas.Supernet.forward`, and AdamW takes what all of them sampled together.

    Attributes:
        reason: why there is no graph; None if there is or will be one.
        update_reason: why the update is not part of it; None if it is.

    Raises:
        ValueError: float16 without a scaler, or S does not divide the batch.
    """

    def __init__(
        self,
        model: Supernet,
        optimizer: AdamW,
        images: Tensor,
        targets: Tensor,
        **options: Unpack[StepOptions],
    ) -> None:
        self.device = model.head.weight.device
        self.model = model
        self.optimizer = optimizer
        self.loss_of = options.pop("loss", nn.functional.cross_entropy)
        self.clip_grad = options.pop("clip_grad", None)
        self.dtype = options.pop("dtype", None)
        scaler = options.pop("scaler", None)
        if scaler is None:
            scaler = torch.amp.GradScaler(self.device.type, enabled=False)
        self.scaler = scaler
        average = options.pop("average", None)
        self.generator = options.pop("generator", None)
        subnets = options.pop("groups", 1)
        if options:
            raise TypeError(f"GraphedStep has no option {', '.join(options)}")
        check_groups(images, subnets)
        if self.dtype is torch.float16 and not scaler.is_enabled():
            raise ValueError("dtype is torch.float16, which needs a loss scale: pass a GradScaler")
        self.process = distributed.current(self.device)
        self.process.share(model.parameters())
        trained = [p for p in model.parameters() if p.requires_grad]
        self._flat, self._buffers = _flat_gradients(trained)
        self._gradients = GradientAccumulator(trained)
        self._averages: dict[Tensor, Tensor] = {}
        if average is not None:
            pairs = zip(model.parameters(), average.parameters(), strict=True)
            self._averages = {p: a.detach() for p, a in pairs if p.requires_grad}
        sides = sampled_sides(model)
        self._static = StaticUpdate(
            optimizer,
            {p: sides[name] for name, p in model.named_parameters()},
            self._buffers,
            self._averages,
        )
        self._images = images.to(self.device, copy=True)
        self._targets = targets.to(self.device, copy=True)
        self._extents = model.new_extents(subnets)
        self._output = StepOutput(
            torch.zeros((), device=self.device), logits_buffer(model, self._images)
        )
        if scaler.is_enabled():
            scaler.scale(self._output.loss)  # makes the tensors that hold its state
        self._begin(self._static.unavailable())

    def _begin(self, update_reason: str | None) -> None:
        self.update_reason = update_reason
        generators = () if self.generator is None else (self.generator,)
        self._graph = Graph(self._step, self.device, generators)

    @property
    def reason(self) -> str | None:
        return self._graph.reason

    def __call__(
        self,
        images: Tensor,
        targets: Tensor,
        subnets: Subnet | Sequence[Subnet],
        lr_scale: float = 1.0,
        decay: float = 0.0,
    ) -> StepOutput:
        """One step. The learning rates are those of the optimizer's groups now.

        Args:
            images, targets: the batch, shaped as the first one.
            subnets: what to train: S of them; one will do where S is 1.
            lr_scale: factor on every group's learning rate, for this step.
            decay: of the average, for this step.

        Raises:
            ValueError: a batch of another shape, another number of subnets, or one that extents on
                the device cannot hold.
        """
        check_batch("images", images, self._images)
        check_batch("targets", targets, self._targets)
        update_reason = self._static.unavailable()
        if update_reason != self.update_reason:
            self._begin(update_reason)
        for parameter, buffer in self._buffers.items():
            if parameter.grad is not buffer:  # zero_grad(set_to_none=True)
                parameter.grad = buffer
        self._extents.write(subnets)
        self._images.copy_(images, non_blocking=True)
        self._targets.copy_(targets, non_blocking=True)
        if update_reason is None:
            self._static.prepare(lr_scale, 1.0 - decay)
        self._graph()
        if update_reason is not None:
            update(
                self.model, self.optimizer, self.scaler,
                subnets if isinstance(subnets, Sequence) else [subnets],
                lr_scale=lr_scale, clip_grad=self.clip_grad,
            )  # fmt: skip
            self._follow(1.0 - decay)
        return self._output

    def zero_(self) -> None:
        """Zero the gradients, for those who step in between without this object."""
        self._flat.zero_()

    def _step(self) -> None:
        if not self.model.training:
            self.model.train()
        self.zero_()
        with autocast(self.dtype, self.device):
            logits = self.model.forward_static(
                self._images, self._extents, gradients=self._gradients, generator=self.generator
            )
        logits = logits.float()
        loss = self.loss_of(logits, self._targets)
        self.scaler.scale(loss / self.process.world_size).backward()
        self.process.sum(self._flat)
        self._output.loss.copy_(loss.detach())
        self._output.logits.copy_(logits.detach())
        if self.update_reason is None:
            self._update()

    def _update(self) -> None:
        scaler = self.scaler
        scale = scaler._scale if scaler.is_enabled() else None
        found_inf = self._static(self._extents.table, self.clip_grad, scale)
        if scale is not None:
            assert scaler._growth_tracker is not None  # made together with the scale
            torch._amp_update_scale_(
                scale, scaler._growth_tracker, found_inf, scaler.get_growth_factor(),
                scaler.get_backoff_factor(), scaler.get_growth_interval(),
            )  # fmt: skip

    @torch.no_grad()
    def _follow(self, blend: float) -> None:
        if self._averages:
            torch._foreach_lerp_(list(self._averages.values()), list(self._averages), blend)


def _flat_gradients(parameters: list[nn.Parameter]) -> tuple[Tensor, dict[Tensor, Tensor]]:
    """One buffer of zeros, and each parameter's ``.grad`` as a part of it that starts at 16 bytes.

    Raises:
        ValueError: parameters of several dtypes.
    """
    dtypes = {p.dtype for p in parameters}
    if len(dtypes) != 1:
        raise ValueError(f"parameters that train are {dtypes}; allowed: one dtype")
    rooms = [-(-p.numel() // 4) * 4 for p in parameters]
    flat = torch.zeros(sum(rooms), dtype=dtypes.pop(), device=parameters[0].device)
    buffers: dict[Tensor, Tensor] = {}
    for parameter, part in zip(parameters, flat.split(rooms), strict=True):
        parameter.grad = part[: parameter.numel()].view(parameter.shape)
        buffers[parameter] = parameter.grad
    return flat, buffers
