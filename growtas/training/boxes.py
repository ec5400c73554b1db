"""Leading boxes ``[:b0, :b1, ...]`` of a tensor, and what is left when some are taken out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor

from growtas.kernels.adamw.row import Slices

Box = Sequence[int]  # how far a leading box reaches in every dimension


def _without(part: Slices, box: Box) -> list[Slices]:
    """`part` without the leading box, as disjoint parts: at most one per dimension."""
    if any(side.start >= end for side, end in zip(part, box, strict=True)):
        return [part]
    inner = [slice(side.start, min(side.stop, end)) for side, end in zip(part, box, strict=True)]
    # Before the axis: inside the removed box. On it: beyond. After it: all of `part`.
    rest = [
        (*inner[:axis], slice(inner[axis].stop, side.stop), *part[axis + 1 :])
        for axis, side in enumerate(part)
    ]
    return [part for part in rest if all(side.start < side.stop for side in part)]


def boxes_outside(active: Iterable[Box], removed: Iterable[Box] = ()) -> list[Slices]:
    """The union of leading boxes without the leading boxes `removed`, as disjoint parts. Boxes may
    overlap, and the removed ones reach beyond the others."""
    found: list[Slices] = []
    seen = list(removed)
    for box in active:
        parts = [tuple(slice(0, end) for end in box)] if all(box) else []
        for other in seen:
            parts = [piece for part in parts for piece in _without(part, other)]
        found += parts
        seen.append(box)
    return found


def within(inner: Box, outer: Box) -> bool:
    """Whether one leading box lies in another."""
    return all(i <= o for i, o in zip(inner, outer, strict=True))


def check_box(tensor: Tensor, box: Box) -> None:
    """ValueError unless the leading box lies in the tensor and has its number of dimensions."""
    shape = tuple(tensor.shape)
    if len(box) != len(shape) or not (min(box, default=0) >= 0 and within(box, shape)):
        raise ValueError(f"box {tuple(box)} does not fit a parameter of shape {shape}")
