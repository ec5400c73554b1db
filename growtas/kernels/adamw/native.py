"""AdamW in the compiled libraries: the CPU's, and for steps with extents the CUDA devices'."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from growtas.kernels import native_library
from growtas.kernels.adamw.row import Clip, Rates, Row, Tables, clip_factor
from growtas.kernels.adamw.static_table import INACTIVE, SIDES, StaticTable

__all__ = ["available", "gradient_norm", "step_", "step_static_", "takes", "unsupported"]

available = native_library.unavailable


def unsupported(*tensors: Tensor) -> str | None:
    """Master weights are float32 (float64 in tests)."""
    reason = native_library.unsupported(*tensors)
    dtypes = {t.dtype for t in tensors}
    if reason is None and not (len(dtypes) == 1 and dtypes <= {torch.float32, torch.float64}):
        reason = "it updates float32 and float64 parameters with gradients of their dtype"
    return reason


def takes(row: Row, contiguous: bool) -> bool:
    """What is contiguous and has no more dimensions than the core knows."""
    return contiguous and row.parameter.dim() <= SIDES


def step_(rows: Sequence[Row], rates: Rates, clip: Clip | None, tables: Tables) -> None:
    """See :func:`growtas.kernels.adamw.api.adamw_`: one pass over all boxes of all parameters."""
    boxes = _boxes(rows)
    if boxes:
        native_library.operators().adamw_(
            [row.parameter.detach() for row in rows],
            [row.gradient for row in rows],
            [row.exp_avg for row in rows],
            [row.exp_avg_sq for row in rows],
            [row.counts for row in rows if row.counts is not None],
            [row.shadow for row in rows if row.shadow is not None],
            [] if rows[0].counts is not None else [float(row.step) for row in rows],
            boxes,
            list(rates._replace(lr=float(rates.lr)).numbers),
            1.0 if clip is None else float(clip_factor(*clip)),
        )


def gradient_norm(rows: Sequence[Row], tables: Tables) -> Tensor:
    """See :func:`growtas.kernels.adamw.api.gradient_norm`."""
    norm = torch.empty((), dtype=torch.float64)
    gradients = [row.gradient for row in rows]
    native_library.operators().gradient_norm_(gradients, _boxes(rows), norm)
    return norm.to(gradients[0].dtype)


def step_static_(
    table: StaticTable, extents: Tensor, largest: float | None, scale: Tensor | None
) -> None:
    """See :func:`growtas.kernels.adamw.api.adamw_static_`: two launches, three where the norm is
    needed."""
    native_library.operators().adamw_static_(
        table.targets, table.tiles, table.frozen, table.edges, table.steps, table.active,
        table.rates, extents, scale, table.blend if table.averages else None, table.partials,
        table.norm, table.found_inf, table.factor, math.inf if largest is None else largest,
        largest is not None or scale is not None, INACTIVE.index(table.inactive),
    )  # fmt: skip


def _boxes(rows: Sequence[Row]) -> list[int]:
    """The number of its row, starts and lengths of every box."""
    boxes: list[int] = []
    for index, row in enumerate(rows):
        fill = SIDES - row.parameter.dim()
        for box in row.boxes:
            boxes += [index, *[0] * fill, *(side.start for side in box)]
            boxes += [*[1] * fill, *(side.stop - side.start for side in box)]
    return boxes
