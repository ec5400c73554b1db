"""adamw_ on the CPU: one compiled pass over all boxes of all parameters."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from growtas.kernels import native_library
from growtas.kernels.adamw import reference
from growtas.kernels.adamw.row import Clip, Row, clip_factor, packed

__all__ = ["available", "gradient_norm", "step_", "unsupported"]

available = native_library.unavailable
MAX_DIMS = 4


def unsupported(*tensors: Tensor) -> str | None:
    """Master weights are float32 (float64 in tests)."""
    reason = native_library.unsupported(*tensors)
    dtypes = {t.dtype for t in tensors}
    if reason is None and not (len(dtypes) == 1 and dtypes <= {torch.float32, torch.float64}):
        reason = "it updates float32 and float64 parameters with gradients of their dtype"
    return reason


def step_(
    rows: Sequence[Row],
    lr: float | Tensor,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    clip: Clip | None,
) -> None:
    """See :func:`growtas.kernels.adamw.api.adamw_`. Rows that are not contiguous, or have more
    dimensions than the core takes, go the plain way."""
    lr = float(lr)
    factor = 1.0 if clip is None else float(clip_factor(*clip))
    plain = [row for row in rows if not _packed(row)]
    if plain:
        reference.step_(plain, lr, betas, eps, weight_decay, clip)
    kinds: dict[tuple[bool, bool], list[Row]] = {}
    for row in rows:
        if _packed(row):
            kinds.setdefault((row.counts is None, row.shadow is None), []).append(row)
    for kind in kinds.values():
        _launch(kind, lr, betas, eps, weight_decay, factor)


def gradient_norm(rows: Sequence[Row]) -> Tensor:
    """See :func:`growtas.kernels.adamw.api.gradient_norm`."""
    if not all(row.gradient.is_contiguous() and row.gradient.dim() <= MAX_DIMS for row in rows):
        return reference.gradient_norm(rows)
    norm = torch.empty((), dtype=torch.float64)
    gradients = [row.gradient for row in rows]
    native_library.operators().gradient_norm_(gradients, _boxes(rows), norm)
    return norm.to(gradients[0].dtype)


def _launch(
    rows: list[Row],
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    factor: float,
) -> None:
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
            boxes, lr, *betas, eps, weight_decay, factor,
        )  # fmt: skip


def _boxes(rows: Sequence[Row]) -> list[int]:
    """The number of its row, starts and extents of every box."""
    boxes: list[int] = []
    for index, row in enumerate(rows):
        fill = MAX_DIMS - row.parameter.dim()
        for box in row.boxes:
            boxes += [index, *[0] * fill, *(side.start for side in box)]
            boxes += [*[1] * fill, *(side.stop - side.start for side in box)]
    return boxes


def _packed(row: Row) -> bool:
    return row.parameter.dim() <= MAX_DIMS and packed(row)
