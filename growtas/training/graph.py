"""One CUDA graph for every subnet: a training step that is captured once.

A step is then: copy the batch, the subnet's extents and a few numbers, replay. See
docs/one-graph.md. Where there is no graph the same functions run eagerly, and `reason` says why.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from growtas.kernels import AdamWRow, GradientAccumulator, adamw_, gradient_norm
from growtas.kernels.dispatch import select
from growtas.kernels.extents import copy_from_host
from growtas.precision import autocast
from growtas.space import Subnet
from growtas.supernet import Supernet
from growtas.supernet.graph import Graph, check_batch, logits_buffer
from growtas.training.boxes import leading_box
from growtas.training.optimizer import AdamW

# Whose numbers the update kernels' tables on the device are made for: one step per optimizer.
_holders: weakref.WeakKeyDictionary[AdamW, weakref.ref[GraphedStep]] = weakref.WeakKeyDictionary()


class StepOutput(NamedTuple):
    """What a step computed; both are overwritten by the next one.

    Attributes:
        loss: float32 ``[]``.
        logits: float32 ``[B, classes]``.
    """

    loss: Tensor
    logits: Tensor


class _Part(NamedTuple):
    """Parameters that begin together and share settings."""

    group: dict[str, Any]
    first_depth: int  # of the smallest subnet that reads them
    states: list[dict[str, Any]]
    rows: list[AdamWRow]
    lr: Tensor  # float32 [1]


class GraphedStep:
    """A whole training step - forward, loss, backward, clipping, AdamW - for any subnet, from one
    CUDA graph.

    The update is part of the graph where it moves whole parameters (``inactive="dense"``, nothing
    frozen, nothing reset). Otherwise its boxes depend on the subnet: then it follows the replay as
    an ordinary step of the optimizer, and `update_reason` says why.

    Weights and optimizer state are the model's and the optimizer's own. An ordinary step of the
    optimizer in between (zero the gradients before it), another graphed step over it, a loaded
    state or a change of what is frozen cost a new capture.

    Args:
        model: trained in place, in training mode, on one process.
        optimizer: over its parameters.
        images, targets: a batch like those to come; copied.
        loss: of float32 logits and targets; a function that does not look at numbers on the host.
        clip_grad: largest norm of the gradient; None for no clipping.
        dtype: of autocast: bfloat16, or None for none.
        generator: of drop path, on the model's device; None: the default one.

    Attributes:
        reason: why there is no graph; None if there is or will be one.
        update_reason: why the update is not part of it; None if it is.

    Raises:
        ValueError: float16, which needs a loss scale, or several processes.
    """

    def __init__(
        self,
        model: Supernet,
        optimizer: AdamW,
        images: Tensor,
        targets: Tensor,
        *,
        loss: Callable[[Tensor, Tensor], Tensor] = nn.functional.cross_entropy,
        clip_grad: float | None = None,
        dtype: torch.dtype | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        if dtype not in (None, torch.bfloat16):
            raise ValueError(f"dtype is {dtype}, allowed: None, torch.bfloat16")
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        if distributed and torch.distributed.get_world_size() > 1:
            raise ValueError("a graphed step does not exchange gradients: one process only")
        self.model = model
        self.optimizer = optimizer
        self.loss_of = loss
        self.clip_grad = clip_grad
        self.dtype = dtype
        self.generator = generator
        self.device = model.head.weight.device
        self._parameters = dict(model.named_parameters())
        trained = [p for p in model.parameters() if p.requires_grad]
        self._gradients = GradientAccumulator(trained)
        self._buffers: dict[Tensor, Tensor] = {p: p.grad for p in trained if p.grad is not None}
        self._images = images.to(self.device, copy=True)
        self._targets = targets.to(self.device, copy=True)
        self._extents = model.new_extents()
        self._output = StepOutput(
            torch.zeros((), device=self.device), logits_buffer(model, self._images)
        )
        optimizer.register_step_post_hook(_ordinary_step)
        self._prepare()

    def _prepare(self) -> None:
        """Start anew, with the optimizer as it is now."""
        _holders[self.optimizer] = weakref.ref(self)
        self.update_reason = self.optimizer.in_parts() or self._update_on_host()
        self._parts: list[_Part] = []
        if self.update_reason is None:
            self._make_parts()
        generators = () if self.generator is None else (self.generator,)
        self._graph = Graph(self._step, self.device, generators)

    @property
    def reason(self) -> str | None:
        return self._graph.reason

    def __call__(
        self, images: Tensor, targets: Tensor, subnet: Subnet, lr_scale: float = 1.0
    ) -> StepOutput:
        """One step of `subnet`. The learning rates are those of the optimizer's groups now.

        Args:
            images, targets: the batch, shaped as the first one.
            subnet: what to train.
            lr_scale: factor on every group's learning rate, for this step.

        Raises:
            ValueError: a batch of another shape, or a subnet that extents on the device cannot
                hold, or one of less depth than the model's space has.
        """
        check_batch("images", images, self._images)
        check_batch("targets", targets, self._targets)
        least = self.model.space.depth[0]
        if subnet.depth < least:
            raise ValueError(f"depth is {subnet.depth}; the model's space has {least} or more")
        if not self._current():
            self._prepare()
        for parameter, buffer in self._buffers.items():
            if parameter.grad is not buffer:  # zero_grad(set_to_none=True)
                parameter.grad = buffer
        self._extents.write(subnet)
        self._images.copy_(images, non_blocking=True)
        self._targets.copy_(targets, non_blocking=True)
        if self.update_reason is None:
            self._write_scalars(subnet, lr_scale)
        self._graph()
        if self.update_reason is not None:
            self._update_by_boxes(subnet, lr_scale)
        return self._output

    def _step(self) -> None:
        if not self.model.training:
            self.model.train()
        torch._foreach_zero_(list(self._buffers.values()))
        with autocast(self.dtype, self.device):
            logits = self.model.forward_static(
                self._images, self._extents, gradients=self._gradients, generator=self.generator
            )
        logits = logits.float()
        loss = self.loss_of(logits, self._targets)
        loss.backward()
        self._output.loss.copy_(loss.detach())
        self._output.logits.copy_(logits.detach())
        if self.update_reason is None:
            self._update()

    def _update(self) -> None:
        clip = None
        if self.clip_grad is not None:
            clip = (gradient_norm([row for p in self._parts for row in p.rows]), self.clip_grad)
        for part in self._parts:
            adamw_(
                part.rows, lr=part.lr, betas=part.group["betas"], eps=part.group["eps"],
                weight_decay=part.group["weight_decay"], clip=clip,
            )  # fmt: skip

    def _make_parts(self) -> None:
        """Parameters of one group that are always sampled, or lie in one block that is not."""
        least = self.model.space.depth[0]
        first = dict.fromkeys(self._parameters.values(), 1)
        for index, block in enumerate(self.model.blocks):
            first.update(dict.fromkeys(block.parameters(), index + 1 if index >= least else 1))
        found: dict[tuple[int, int], list[Tensor]] = {}
        for number, group in enumerate(self.optimizer.param_groups):
            for parameter in group["params"]:
                if parameter in self._buffers:
                    found.setdefault((number, first[parameter]), []).append(parameter)
        count = sum(map(len, found.values()))
        self._scalars = torch.zeros(len(found) + count, device=self.device)
        rates, steps = self._scalars.split([len(found), count])
        step_of = iter(steps.split(1))
        for lr, ((number, depth), parameters) in zip(rates.split(1), found.items(), strict=True):
            states = [self.optimizer.begin(p) for p in parameters]
            rows = [
                AdamWRow(
                    p,
                    self._buffers[p],
                    state["exp_avg"],
                    state["exp_avg_sq"],
                    [leading_box(p.shape)],
                    next(step_of),
                )
                for p, state in zip(parameters, states, strict=True)
            ]
            self._parts.append(_Part(self.optimizer.param_groups[number], depth, states, rows, lr))

    def _current(self) -> bool:
        """Whether the optimizer is what it was: its ways, its state, and nobody stepped since."""
        if (self.optimizer.in_parts() or self._update_on_host()) != self.update_reason:
            return False
        if self.update_reason is not None:
            return True
        holder, part = _holders.get(self.optimizer), self._parts[0]
        state = self.optimizer.state.get(part.rows[0].parameter)
        return holder is not None and holder() is self and state is part.states[0]

    def _write_scalars(self, subnet: Subnet, lr_scale: float) -> None:
        """Learning rates and step counts to the device, in one copy. Parameters that no step has
        sampled yet have a learning rate of 0: their moments stay 0 and no bit of them changes."""
        rates, steps = [], []
        for part in self._parts:
            begun = part.first_depth <= subnet.depth or part.states[0]["shells"][0][1] > 0
            rates.append(float(part.group["lr"]) * lr_scale if begun else 0.0)
            for state in part.states:
                [(shape, count)] = state["shells"]
                if begun:
                    count += 1
                    state["shells"] = [(shape, count)]
                steps.append(float(max(count, 1)))
        copy_from_host(self._scalars, rates + steps)

    def _update_on_host(self) -> str | None:
        sample = self._parameters["head.weight"]
        backend = select("adamw", sample, sample)
        if self.device.type == "cuda" and not backend.__name__.endswith(".gpu"):
            return "only the triton AdamW takes its learning rate from the device"
        return None

    def _update_by_boxes(self, subnet: Subnet, lr_scale: float) -> None:
        """As a trainer updates: the host knows the subnet."""
        self.optimizer.zero_frozen_grad()
        if self.clip_grad is not None:
            nn.utils.clip_grad_norm_(self._parameters.values(), self.clip_grad)
        boxes = self.model.extents(subnet)
        active: dict[Tensor, Sequence[int]] = {
            self._parameters[name]: box for name, box in boxes.items()
        }
        self.optimizer.step(active=[active], lr_scale=lr_scale)


def _ordinary_step(optimizer: Any, *arguments: Any) -> None:
    _holders.pop(optimizer, None)
