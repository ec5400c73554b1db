"""adamw_static_ in the compiled libraries: the CPU's, and the one for CUDA devices."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from torch import Tensor

from growtas.kernels import native_library

if TYPE_CHECKING:
    from growtas.kernels.adamw.static import StaticTable

CODES = {"dense": 0, "skip": 1, "masked": 2}


def step_(table: StaticTable, extents: Tensor, largest: float | None, scale: Tensor | None) -> None:
    """See :func:`growtas.kernels.adamw.static.adamw_static_`: two launches, three where the norm is
    needed."""
    averages = any(row.average is not None for row in table.rows)
    native_library.operators().adamw_static_(
        table.targets, table.tiles, table.frozen, table.edges, table.steps, table.active,
        table.rates, extents, scale, table.blend if averages else None, table.partials, table.norm,
        table.found_inf, table.factor, math.inf if largest is None else largest,
        largest is not None or scale is not None, CODES[table.inactive],
    )  # fmt: skip
