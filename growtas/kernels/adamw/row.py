"""One parameter of an AdamW step and what of it moves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

Box = tuple[slice, ...]
# Norm of the gradients, on their device, and the largest it may have: gradients count as scaled
# down to that, in the way of `torch.nn.utils.clip_grad_norm_`; they are not written.
Clip = tuple[Tensor, float]


class Row(NamedTuple):
    """A parameter, its state, and the boxes of it that move.

    Attributes:
        parameter: the whole parameter.
        gradient: of the parameter's shape and dtype.
        exp_avg: first moment, likewise.
        exp_avg_sq: second moment, likewise.
        boxes: disjoint boxes, one slice with explicit bounds per dimension.
        step: updates of this parameter so far, this one included; not used where `counts` is given.
            A number, or a float32 tensor of one on the parameter's device.
        counts: updates of every weight before this one, float32; those in the boxes go up by one.
        shadow: bfloat16 copy of the parameter, rewritten inside the boxes.
    """

    parameter: Tensor
    gradient: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor
    boxes: Sequence[Box]
    step: float | Tensor = 0.0
    counts: Tensor | None = None
    shadow: Tensor | None = None

    @property
    def arrays(self) -> tuple[Tensor | None, ...]:
        """Everything of the parameter's shape."""
        return (
            self.parameter, self.gradient, self.exp_avg, self.exp_avg_sq, self.counts, self.shadow,
        )  # fmt: skip


def packed(row: Row) -> bool:
    """Whether all arrays of the row are contiguous."""
    return all(array is None or array.is_contiguous() for array in row.arrays)


def clip_factor(norm: Tensor, largest: float) -> Tensor:
    """What gradients count times; NaN stays."""
    return (largest / (norm + 1e-6)).clamp(max=1.0)


def clipped(rows: Sequence[Row], clip: Clip | None) -> Sequence[Row]:
    """The rows with gradients scaled as `clip` asks, in memory of their own."""
    if clip is None:
        return rows
    factor = clip_factor(*clip)
    return [row._replace(gradient=row.gradient * factor) for row in rows]
