"""The ordinary update: what follows the gradients of a step where the host knows its subnets."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from growtas.space import Subnet
from growtas.supernet import Supernet
from growtas.training.optimizer import AdamW


def update(
    model: Supernet,
    optimizer: AdamW,
    scaler: torch.amp.GradScaler,
    subnets: Iterable[Subnet],
    *,
    lr_scale: float = 1.0,
    clip_grad: float | None = None,
) -> None:
    """Unscale, clip, step and adapt the scale.

    Args:
        model: whose gradients are there.
        optimizer: over its parameters.
        scaler: of the loss; it may be disabled.
        subnets: what the step sampled.
        lr_scale, clip_grad: as for :meth:`AdamW.step`.
    """
    parameters = dict(model.named_parameters())
    active = [
        {
            parameters[name]: extent
            for name, extent in model.extents(subnet).items()
            if parameters[name].requires_grad
        }
        for subnet in dict.fromkeys(subnets)
    ]
    scaler.unscale_(optimizer)
    scaler.step(optimizer, active=active, lr_scale=lr_scale, clip_grad=clip_grad)
    scaler.update()
