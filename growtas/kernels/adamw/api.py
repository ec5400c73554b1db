"""AdamW on boxes of max-size parameters, in place."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from growtas.kernels.adamw.row import Row
from growtas.kernels.dispatch import select


@torch.no_grad()
def adamw_(
    rows: Sequence[Row],
    *,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
) -> None:
    """One AdamW update of the weights inside each row's boxes; nothing outside them is touched.

    Loshchilov and Hutter, "Decoupled Weight Decay Regularization", algorithm 2, in
    `torch.optim.AdamW`'s terms. With `Row.counts`, every weight has its own number of updates and
    so its own bias correction.

    Args:
        rows: parameters with state and boxes.
        lr: learning rate.
        betas: decay of the first and second moment.
        eps: added to the root of the second moment.
        weight_decay: decoupled, times lr.

    Raises:
        ValueError: an array without its parameter's shape, a box outside of it, or a row with
            neither counts nor step.
    """
    groups: dict[tuple, list[Row]] = {}
    for row in rows:
        _check(row)
        key = (row.parameter.device.type, row.parameter.dtype, row.gradient.dtype)
        groups.setdefault(key, []).append(row)
    for group in groups.values():
        backend = select("adamw", group[0].parameter, group[0].gradient)
        backend.step_(group, lr, betas, eps, weight_decay)


def _check(row: Row) -> None:
    shape = row.parameter.shape
    for array in row.arrays:
        if array is not None and array.shape != shape:
            raise ValueError(
                f"state of shape {tuple(array.shape)} for a parameter of shape {tuple(shape)}"
            )
    if row.counts is None and not row.step >= 1:
        raise ValueError(f"step must be 1 or more, got {row.step}")
    for box in row.boxes:
        inside = len(box) == len(shape) and all(
            0 <= side.start <= side.stop <= size for side, size in zip(box, shape, strict=True)
        )
        if not inside:
            raise ValueError(f"box {box} is not inside a parameter of shape {tuple(shape)}")
