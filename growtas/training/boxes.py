"""Leading boxes ``[:e0, :e1, ...]`` of a tensor, and what is left when some are taken out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor

from growtas.kernels.adamw.row import Box

Extents = Sequence[int]


def leading_box(extents: Extents) -> Box:
    """The slices ``[:e0, :e1, ...]``."""
    return tuple(slice(0, extent) for extent in extents)


def subtract(box: Box, extents: Extents) -> list[Box]:
    """`box` without the leading box `extents`, as disjoint boxes: at most one per dimension."""
    if any(side.start >= extent for side, extent in zip(box, extents, strict=True)):
        return [box]
    inner = [
        slice(side.start, min(side.stop, extent)) for side, extent in zip(box, extents, strict=True)
    ]
    # Before the axis: inside the removed box. On it: beyond. After it: all of `box`.
    parts = [
        (*inner[:axis], slice(inner[axis].stop, side.stop), *box[axis + 1 :])
        for axis, side in enumerate(box)
    ]
    return [part for part in parts if all(side.start < side.stop for side in part)]


def boxes_outside(active: Iterable[Extents], removed: Iterable[Extents] = ()) -> list[Box]:
    """The union of leading boxes without the leading boxes `removed`, as disjoint boxes.

    Args:
        active: leading boxes; they may overlap.
        removed: leading boxes to leave out. They may reach beyond the active ones.
    """
    found: list[Box] = []
    seen = list(removed)
    for extents in active:
        parts = [leading_box(extents)] if all(extents) else []
        for other in seen:
            parts = [piece for part in parts for piece in subtract(part, other)]
        found += parts
        seen.append(extents)
    return found


def within(inner: Extents, outer: Extents) -> bool:
    """Whether one leading box lies in another."""
    return all(i <= o for i, o in zip(inner, outer, strict=True))


def check_extents(tensor: Tensor, extents: Extents) -> None:
    """ValueError unless the leading box lies in the tensor and has its number of dimensions."""
    shape = tuple(tensor.shape)
    if len(extents) != len(shape) or not (min(extents, default=0) >= 0 and within(extents, shape)):
        raise ValueError(f"box {tuple(extents)} does not fit a parameter of shape {shape}")
