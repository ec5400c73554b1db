"""AdamW on the GPU: a launch for all boxes of all parameters, nothing waits for the host."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from growtas.kernels.adamw.gpu_kernels import (
    adamw_kernel,
    gradient_norm_kernel,
    gradient_norm_partial_kernel,
)
from growtas.kernels.adamw.gpu_static import (
    decision_kernel,
    square_sum_kernel,
    update_kernel,
)
from growtas.kernels.adamw.gpu_table import Table, table_of
from growtas.kernels.adamw.row import Clip, Rates, Row, Tables
from growtas.kernels.adamw.static_table import TILE, StaticTable
from growtas.kernels.triton import support as triton_support
from growtas.kernels.triton.configs import Config, architecture, choose
from growtas.kernels.triton.launch import launch

__all__ = ["gradient_norm", "step_", "step_static_", "takes", "unsupported"]


FOLD = Config((4096,), 8, 1)  # of the kernel that adds the partial sums of squares
STATIC = Config((TILE,), 8, 1)
DECISION = Config((256,), 4, 1)


def takes(row: Row, contiguous: bool) -> bool:
    """What is contiguous."""
    return contiguous


def unsupported(*tensors: Tensor) -> str | None:
    """Master weights are float32."""
    reason = triton_support.unsupported(*tensors)
    if reason is None and any(t.dtype != torch.float32 for t in tensors):
        reason = "it updates float32 parameters with float32 gradients"
    return reason


def step_(rows: Sequence[Row], rates: Rates, clip: Clip | None, tables: Tables) -> None:
    """See :func:`growtas.kernels.adamw.api.adamw_`: one launch. Nothing is copied to the device but
    rows and steps that have changed since the call before."""
    counts, shadows = rows[0].counts is not None, rows[0].shadow is not None
    config = _config(rows)
    table = table_of(tables, ("step", counts, shadows), rows, config.blocks)
    if table.tasks == 0:
        return
    norm, largest = (table.first, 0.0) if clip is None else clip
    on_device = isinstance(rates.lr, Tensor)
    lr, *numbers = rates.numbers
    arguments = (
        table.first, table.table, lr if on_device else table.first, norm, float(largest),
        0.0 if on_device else float(lr), *map(float, numbers),
    )  # fmt: skip
    constants = {
        "COUNTS": counts,
        "SHADOWS": shadows,
        "CLIP": clip is not None,
        "DEVICE_LR": on_device,
        **_constants(table, config),
    }
    launch(adamw_kernel, table.tasks, arguments, constants, config)


def gradient_norm(rows: Sequence[Row], tables: Tables) -> Tensor:
    """See :func:`growtas.kernels.adamw.api.gradient_norm`: two launches, summed in one order."""
    device, config = rows[0].parameter.device, _config(rows)
    table = table_of(tables, "norm", rows, config.blocks)
    partials = torch.empty(table.tasks, device=device)
    norm = torch.empty((), device=device)
    if table.tasks:
        launch(
            gradient_norm_partial_kernel, table.tasks, (table.first, table.table, partials),
            _constants(table, config), config,
        )  # fmt: skip
    launch(gradient_norm_kernel, 1, (partials, norm, table.tasks), {"BLOCK": FOLD.blocks[0]}, FOLD)
    return norm


def step_static_(
    table: StaticTable, extents: Tensor, largest: float | None, scale: Tensor | None
) -> None:
    """See :func:`growtas.kernels.adamw.api.adamw_static_`."""
    subnets, extent_rows, columns = extents.shape
    tiles, measure = len(table.tiles), largest is not None or scale is not None
    if measure:
        launch(
            square_sum_kernel, tiles, (table.targets, table.tiles, table.frozen, table.partials),
            {}, STATIC,
        )  # fmt: skip
    deciding = (
        table.targets, table.edges, table.steps, table.active, extents,
        table.factor if scale is None else scale, table.partials, table.norm, table.found_inf,
        table.factor, len(table.targets), tiles, subnets, extent_rows, columns,
        math.inf if largest is None else float(largest),
    )  # fmt: skip
    constants: dict[str, bool | int] = {
        "DENSE": table.inactive == "dense",
        "MEASURE": measure,
        "SCALED": scale is not None,
        "BLOCK": DECISION.blocks[0],
    }
    launch(decision_kernel, 1, deciding, constants, DECISION)
    updating = (
        table.targets, table.tiles, table.frozen, table.edges, table.steps, table.active,
        table.rates, extents, table.blend, table.factor, subnets, extent_rows, columns,
    )  # fmt: skip
    constants = {"MASKED": table.inactive == "masked", "AVERAGES": table.averages}
    launch(update_kernel, tiles, updating, constants, STATIC)


def _config(rows: Sequence[Row]) -> Config:
    """One for all that share a table: it holds how weights are cut into tasks."""
    return choose(architecture(rows[0].parameter.device), "adamw_kernel", torch.float32, ())


def _constants(table: Table, config: Config) -> dict[str, int]:
    return {"ENTRIES": table.entries, "BLOCK_R": config.blocks[0], "BLOCK_C": config.blocks[1]}
