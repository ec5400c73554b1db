"""AdamW on boxes of max-size parameters, in place."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from growtas.kernels.adamw.row import Box, Clip, Row
from growtas.kernels.arguments import FLOATING
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
        ValueError: an array without its parameter's shape or in the memory of another one, a box
            outside of it or with a step between its entries, boxes that overlap, a row with neither
            counts nor step, or a setting out of its range: betas in [0, 1), the others finite and
            0 or more, `largest` above 0. What is on the device is not looked at.
        TypeError: parameters, gradients or moments that are not floats, or a step that is neither
            number nor tensor.
    """
    _check_settings(lr, betas, eps, weight_decay)
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
    boxes: dict[int, list[Box]] = {}  # of each parameter, which may have several rows
    for row in rows:
        _check(row, boxes.setdefault(id(row.parameter), []))
        key = (row.parameter.device, row.parameter.dtype, row.gradient.dtype)
        groups.setdefault(key, []).append(row)
    return list(groups.values())


def _check_settings(
    lr: float | Tensor, betas: tuple[float, float], eps: float, weight_decay: float
) -> None:
    for name, value in (("lr", lr), ("eps", eps), ("weight_decay", weight_decay)):
        if not isinstance(value, Tensor) and not 0.0 <= value < math.inf:
            raise ValueError(f"{name} must be 0 or more and finite, got {value}")
    if len(betas) != 2 or not all(0.0 <= beta < 1.0 for beta in betas):
        raise ValueError(f"betas must be two numbers in [0, 1), got {betas}")


def _check(row: Row, taken: list[Box]) -> None:
    """`taken`: boxes of the same parameter so far; the row's are added."""
    shape = row.parameter.shape
    places = set()
    arrays = [array for array in row.arrays if array is not None]
    for array in arrays:
        if array.shape != shape:
            raise ValueError(
                f"state of shape {tuple(array.shape)} for a parameter of shape {tuple(shape)}"
            )
        if array.dtype not in FLOATING:
            raise TypeError(
                f"parameter, gradient and state must be floats, got {array.dtype} for a parameter "
                f"of shape {tuple(shape)}"
            )
        places.add(array.data_ptr())
    if len(places) < len(arrays) and row.parameter.numel():
        raise ValueError(
            f"parameter, gradient and state of a parameter of shape {tuple(shape)} must each have "
            "memory of their own; two of them share it"
        )
    if row.counts is None and not isinstance(row.step, Tensor):
        if not isinstance(row.step, (int, float)):
            raise TypeError(f"step must be a number or a tensor, got {row.step!r}")
        if not row.step >= 1:
            raise ValueError(f"step must be 1 or more, got {row.step}")
    for box in row.boxes:
        inside = len(box) == len(shape) and all(
            side.step in (None, 1) and 0 <= side.start <= side.stop <= size
            for side, size in zip(box, shape, strict=True)
        )
        if not inside:
            raise ValueError(
                f"box {box} is not inside a parameter of shape {tuple(shape)}, or skips entries"
            )
        for other in taken:
            if _overlap(box, other):
                raise ValueError(
                    f"boxes {other} and {box} of a parameter of shape {tuple(shape)} overlap"
                )
        taken.append(box)


def _overlap(one: Box, other: Box) -> bool:
    return all(max(a.start, b.start) < min(a.stop, b.stop) for a, b in zip(one, other, strict=True))
