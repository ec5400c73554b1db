"""adamw_ on the GPU: one launch for all boxes of all parameters, nothing waits for the host."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from growtas.kernels.adamw import reference
from growtas.kernels.adamw.gpu_kernels import (
    adamw_kernel,
    gradient_norm_kernel,
    gradient_norm_partial_kernel,
)
from growtas.kernels.adamw.gpu_table import Table, table_of
from growtas.kernels.adamw.row import Clip, Row, packed
from growtas.kernels.triton import support as triton_support
from growtas.kernels.triton.configs import Config, architecture, choose
from growtas.kernels.triton.launch import launch

__all__ = ["gradient_norm", "step_", "unsupported"]


FOLD = Config((4096,), 8, 1)  # of the kernel that adds the partial sums of squares


def unsupported(*tensors: Tensor) -> str | None:
    """Master weights are float32."""
    reason = triton_support.unsupported(*tensors)
    if reason is None and any(t.dtype != torch.float32 for t in tensors):
        reason = "it updates float32 parameters with float32 gradients"
    return reason


def step_(
    rows: Sequence[Row],
    lr: float | Tensor,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    clip: Clip | None,
) -> None:
    """See :func:`growtas.kernels.adamw.api.adamw_`. Rows that are not contiguous go the plain way.

    Two launches at most, for rows with counts and without, or with a shadow and without. Nothing
    is copied to the device but rows and steps that have changed since the call before.
    """
    plain = [row for row in rows if not packed(row)]
    if plain:
        reference.step_(plain, lr, betas, eps, weight_decay, clip)
    kinds: dict[tuple[bool, bool], list[Row]] = {}
    for row in rows:
        if packed(row):
            kinds.setdefault((row.counts is not None, row.shadow is not None), []).append(row)
    for (counts, shadows), kind in kinds.items():
        device = kind[0].parameter.device
        config = _config(architecture(device))
        table = table_of(kind, f"step {counts} {shadows}", config.blocks)
        if table.tasks == 0:
            continue
        norm, largest = (table.first, 0.0) if clip is None else clip
        arguments = (
            table.first, table.table, lr if isinstance(lr, Tensor) else table.first, norm,
            0.0 if isinstance(lr, Tensor) else float(lr), float(largest), *_decays(betas),
            float(eps), float(weight_decay),
        )  # fmt: skip
        constants = {
            "COUNTS": counts,
            "SHADOWS": shadows,
            "CLIP": clip is not None,
            "DEVICE_LR": isinstance(lr, Tensor),
            **_constants(table, config),
        }
        launch(adamw_kernel, table.tasks, arguments, constants, config)


def gradient_norm(rows: Sequence[Row]) -> Tensor:
    """See :func:`growtas.kernels.adamw.api.gradient_norm`: two launches, summed in one order."""
    if not all(row.gradient.is_contiguous() for row in rows):
        return reference.gradient_norm(rows)
    device = rows[0].parameter.device
    config = _config(architecture(device))
    table = table_of(rows, "norm", config.blocks)
    partials = torch.empty(table.tasks, device=device)
    norm = torch.empty((), device=device)
    if table.tasks:
        launch(
            gradient_norm_partial_kernel, table.tasks, (table.first, table.table, partials),
            _constants(table, config), config,
        )  # fmt: skip
    launch(gradient_norm_kernel, 1, (partials, norm, table.tasks), {"BLOCK": FOLD.blocks[0]}, FOLD)
    return norm


def _config(architecture: int) -> Config:
    """One for all that share a table: it holds how weights are cut into tasks."""
    return choose(architecture, "adamw_kernel", torch.float32, ())


def _constants(table: Table, config: Config) -> dict[str, int]:
    return {"ENTRIES": table.entries, "BLOCK_R": config.blocks[0], "BLOCK_C": config.blocks[1]}


def _decays(betas: tuple[float, float]) -> tuple[float, ...]:
    """Arguments of the kernel from blend_1 to log_beta_2."""
    logarithms = [math.log(beta) if beta else -math.inf for beta in betas]
    return 1.0 - betas[0], float(betas[1]), 1.0 - betas[1], *logarithms
