"""AdamW on boxes of max-size parameters, in place."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from growtas.kernels.adamw.row import Clip, Row
from growtas.kernels.dispatch import select


@torch.no_grad()
def adamw_(
    rows: Sequence[Row],
    *,
    lr: float | Tensor,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    clip: Clip | None = None,
) -> None:
    """One AdamW update of the weights inside each row's boxes; nothing outside them is touched.

    Loshchilov and Hutter, "Decoupled Weight Decay Regularization", algorithm 2, in
    `torch.optim.AdamW`'s terms. With `Row.counts`, every weight has its own number of updates and
    so its own bias correction.

    Args:
        rows: parameters with state and boxes.
        lr: learning rate; a number, or a float32 tensor of one on the parameters' device. With
            that and such steps in the rows, Triton kernels take everything that changes from step
            to step from the device, and a CUDA graph of the call can be replayed; other backends
            read tensors on the host.
        betas: decay of the first and second moment.
        eps: added to the root of the second moment.
        weight_decay: decoupled, times lr.
        clip: ``(norm, largest)``: gradients count times ``min(1, largest / (norm + 1e-6))``, as
            after `torch.nn.utils.clip_grad_norm_`, but are not written. `norm` is one number on the
            device, for instance of :func:`gradient_norm`; nothing waits for it.

    Raises:
        ValueError: an array without its parameter's shape, a box outside of it, a row with neither
            counts nor step, or a `largest` that is not above 0.
    """
    if clip is not None and not clip[1] > 0:
        raise ValueError(f"the largest norm must be above 0, got {clip[1]}")
    for group in _groups(rows):
        backend = select("adamw", group[0].parameter, group[0].gradient)
        backend.step_(group, lr, betas, eps, weight_decay, clip)


@torch.no_grad()
def gradient_norm(rows: Sequence[Row]) -> Tensor:
    """The 2-norm of all gradients inside the rows' boxes, those of one weight counted once.

    Args:
        rows: as for :func:`adamw_`, on one device; those of all parameter groups, for the norm of
            the whole gradient.

    Returns:
        One number of the gradients' dtype on their device, without waiting for it. Bit-equal on
        repetition.

    Raises:
        ValueError: as for :func:`adamw_`, or there are no rows.
    """
    groups = _groups(rows)
    if not groups:
        raise ValueError("gradient_norm needs at least one row")
    norms = [select("adamw", g[0].parameter, g[0].gradient).gradient_norm(g) for g in groups]
    return norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms))


def _groups(rows: Sequence[Row]) -> list[list[Row]]:
    """The rows, checked, by what decides on the backend."""
    groups: dict[tuple, list[Row]] = {}
    for row in rows:
        _check(row)
        key = (row.parameter.device, row.parameter.dtype, row.gradient.dtype)
        groups.setdefault(key, []).append(row)
    return list(groups.values())


def _check(row: Row) -> None:
    shape = row.parameter.shape
    for array in row.arrays:
        if array is not None and array.shape != shape:
            raise ValueError(
                f"state of shape {tuple(array.shape)} for a parameter of shape {tuple(shape)}"
            )
    if row.counts is None and not isinstance(row.step, Tensor) and not row.step >= 1:
        raise ValueError(f"step must be 1 or more, got {row.step}")
    for box in row.boxes:
        inside = len(box) == len(shape) and all(
            0 <= side.start <= side.stop <= size for side, size in zip(box, shape, strict=True)
        )
        if not inside:
            raise ValueError(f"box {box} is not inside a parameter of shape {tuple(shape)}")
