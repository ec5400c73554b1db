"""What of AdamW is compiled ahead: see `growtas.kernels.precompile`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import product

import torch
from torch import Tensor

from growtas.kernels.adamw import gpu
from growtas.kernels.adamw.row import Rates, Row
from growtas.kernels.adamw.static_table import INACTIVE, Sides, StaticRow, StaticTable


def calls() -> Iterator[tuple[str, Callable[[], None]]]:
    """With and without counts, shadows, clipping and a learning rate on the device, for up to 64,
    128, ... and 1024 boxes, more than AutoFormer-B's parameters are cut into; and the fixed
    launches in every form."""
    for boxes in (200, 50, 100, 500, 1000):
        yield f"norm of {boxes} boxes", partial(_norm, boxes)
        names: tuple[str, ...] = ("counts", "shadows", "clip", "rate on the device")
        for flags in product((False, True), repeat=len(names)):
            on = (name for name, flag in zip(names, flags, strict=True) if flag)
            yield ", ".join((f"{boxes} boxes", *on)), partial(_step, boxes, *flags)
    names = ("clip", "scale", "average")
    for inactive, flags in product(INACTIVE, product((False, True), repeat=len(names))):
        on = (name for name, flag in zip(names, flags, strict=True) if flag)
        yield " ".join(("fixed", inactive, *on)), partial(_fixed, inactive, *flags)


def _empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _rows(boxes: int, counts: bool = False, shadows: bool = False) -> list[Row]:
    """Every box a row of its own, of a matrix."""
    matrix = _empty(16, 16)
    return [
        Row(
            *(matrix,) * 4,
            [(slice(0, 8), slice(0, 8))],
            counts=matrix if counts else None,
            shadow=matrix.bfloat16() if shadows else None,
        )
    ] * boxes


def _norm(boxes: int) -> None:
    gpu.gradient_norm(_rows(boxes), {})


def _step(boxes: int, counts: bool, shadows: bool, clip: bool, on_device: bool) -> None:
    rates = Rates(_empty() if on_device else 1e-3)
    gpu.step_(_rows(boxes, counts, shadows), rates, (_empty(), 1.0) if clip else None, {})


def _fixed(inactive: str, clip: bool, scaled: bool, averages: bool) -> None:
    matrix = _empty(16, 16)
    row = StaticRow(
        *(matrix,) * 4,
        Sides((None, None)),
        counts=matrix if inactive == "masked" else None,
        average=matrix if averages else None,
    )
    table = StaticTable([row], inactive)
    extents = _empty(1, 1, 1, dtype=torch.int32)
    gpu.step_static_(table, extents, 1.0 if clip else None, _empty() if scaled else None)
