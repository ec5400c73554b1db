"""One parameter of an AdamW step and what of it moves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

Box = tuple[slice, ...]


class Row(NamedTuple):
    """A parameter, its state, and the boxes of it that move.

    Attributes:
        parameter: the whole parameter.
        gradient: of the parameter's shape and dtype.
        exp_avg: first moment, likewise.
        exp_avg_sq: second moment, likewise.
        boxes: disjoint boxes, one slice with explicit bounds per dimension.
        step: updates of this parameter so far, this one included; not used where `counts` is given.
        counts: updates of every weight before this one, float32; those in the boxes go up by one.
        shadow: bfloat16 copy of the parameter, rewritten inside the boxes.
    """

    parameter: Tensor
    gradient: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor
    boxes: Sequence[Box]
    step: float = 0.0
    counts: Tensor | None = None
    shadow: Tensor | None = None

    @property
    def arrays(self) -> tuple[Tensor | None, ...]:
        """Everything of the parameter's shape."""
        return (
            self.parameter, self.gradient, self.exp_avg, self.exp_avg_sq, self.counts, self.shadow,
        )  # fmt: skip
