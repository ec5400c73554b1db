"""What AdamW reads on the device when it does not know which subnets a step samples: everything
that changes from step to step lies in tensors on the parameters' device.

The boxes of a step come from a table of the subnets' sizes (:class:`growtas.kernels.Extents`).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor

from growtas.kernels.adamw.row import RATES, Rates
from growtas.kernels.extents import copy_from_host

# What happens to weights that a step did not sample, see `growtas.training.AdamW`.
INACTIVE = ("dense", "skip", "masked")
SIDES = 4  # dimensions of a parameter, at most
SHELLS = 8  # nested boxes of a parameter that count their steps on their own, at most
TILE = 4096  # weights of a task
FIELDS = 25  # of a row of `StaticTable.targets`: `Target` of csrc/cuda/adamw_static.h
Shells = Sequence[tuple[Sequence[int], int]]


class Sides(NamedTuple):
    """The leading box of a parameter that a subnet reads, in terms of a table of extents, int32
    ``[S, rows, columns]``; how many columns it has and what they stand for is its owner's matter.

    Attributes:
        columns: for each dimension of the parameter None, for all of it, or the index of a column
            and a factor: the box then ends at the column's value times the factor, or with the
            dimension.
        row: of the table, in which all columns are looked up.
        active: index of the column that says whether the row counts: where it holds 0, the subnet
            reads nothing of the parameter. None: every subnet reads it.
    """

    columns: tuple[tuple[int, int] | None, ...]
    row: int = 0
    active: int | None = None


class StaticRow(NamedTuple):
    """A parameter and its state; all arrays contiguous, of one shape and of one dtype, but for
    `counts` (float32) and `shadow` (bfloat16).

    Attributes:
        parameter, gradient, exp_avg, exp_avg_sq: as in :class:`growtas.kernels.AdamWRow`.
        sides: what a subnet reads of it.
        rates: number of its hyperparameters, see :meth:`StaticTable.write_rates`.
        counts: updates of every weight, for "masked" only.
        shadow: bfloat16 copy of the parameter, rewritten where the parameter is.
        average: moving average of the parameter.
    """

    parameter: Tensor
    gradient: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor
    sides: Sides
    rates: int = 0
    counts: Tensor | None = None
    shadow: Tensor | None = None
    average: Tensor | None = None

    @property
    def arrays(self) -> tuple[Tensor | None, ...]:
        return (
            self.parameter, self.gradient, self.exp_avg, self.exp_avg_sq, self.counts, self.shadow,
            self.average,
        )  # fmt: skip


class StaticTable:
    """What :func:`growtas.kernels.adamw.api.adamw_static_` reads on the device; every write goes to
    the same memory.

    Args:
        rows: the parameters, at least one, all on one device.
        inactive: what happens to weights that a step does not sample, see
            :class:`growtas.training.AdamW`.
        rate_count: how many sets of hyperparameters there are.

    Attributes:
        steps: updates of each shell so far, ``[rows, SHELLS]``; `adamw_static_` counts on.
        norm: of all gradients that are not frozen, ``[]``; written where it is needed.
        found_inf: ``[]``: 1 if the last step was left out.
        averages: whether any row has an average.
        looks_in: how many rows and columns a table of extents must have.

    Raises:
        ValueError: arrays that do not fit their row.
    """

    def __init__(self, rows: Sequence[StaticRow], inactive: str, rate_count: int = 1) -> None:
        self.inactive = inactive
        first = rows[0].parameter
        self.device, self.dtype = first.device, first.dtype
        tiles = [-(-row.parameter.numel() // TILE) for row in rows]
        count = len(rows)
        owners = [p for p, n in enumerate(tiles) for _ in range(n)]
        self._first_tiles = [sum(tiles[:p]) for p in range(count)]

        def zeros(*shape: int, dtype: torch.dtype = self.dtype) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=self.device)

        self.targets = zeros(count, FIELDS, dtype=torch.int64)
        self.tiles = torch.tensor(owners, dtype=torch.int32, device=self.device)
        self.frozen = zeros(count, SIDES, dtype=torch.int32)
        self.edges = zeros(count, SHELLS, SIDES, dtype=torch.int32)
        self.steps = zeros(count, SHELLS)
        self.active = zeros(count, SHELLS, dtype=torch.int32)
        self.partials = zeros(sum(tiles), dtype=torch.float64)
        self.norm, self.found_inf, self.factor = zeros(), zeros(), zeros()
        self._numbers = zeros(1 + RATES * rate_count)
        self.blend, self.rates = self._numbers[0], self._numbers[1:].view(rate_count, RATES)
        self.write_rows(rows)

    def write_rows(self, rows: Sequence[StaticRow]) -> None:
        """Other arrays for the same parameters, such as the moments of a loaded state."""
        for row in rows:
            _check(row, self.inactive)
        self.rows = list(rows)
        self.averages = any(row.average is not None for row in rows)
        self.looks_in = (
            max(row.sides.row for row in rows) + 1,
            max(max(_columns(row.sides)) for row in rows) + 1,
        )
        copy_from_host(self.targets, [*map(self._fields, self.rows, self._first_tiles)])

    def _fields(self, row: StaticRow, first_tile: int) -> list[int]:
        p = row.parameter
        addresses = [0 if array is None else array.data_ptr() for array in row.arrays]
        sizes = padded(p.shape, 1)
        aligned = sizes[-1] % 4 == 0 and not any(address % 16 for address in addresses)
        *columns, active = _columns(row.sides)
        factors = [1 if side is None else side[1] for side in row.sides.columns]
        return [
            *addresses, p.numel(), first_tile, aligned, *sizes, *padded(columns, -1),
            *padded(factors, 1), row.sides.row, active, row.rates,
        ]  # fmt: skip

    def write_frozen(self, boxes: Sequence[Sequence[int] | None]) -> None:
        """The leading box of every row that does not move; None for none."""
        values = [[0] * SIDES if box is None else padded(box, 1) for box in boxes]
        copy_from_host(self.frozen, values)

    def write_shells(self, shells: Sequence[Shells]) -> None:
        """For every row nested leading boxes, smallest first and all of the parameter last: what
        each adds to the one before, and how often that was updated."""
        empty = ([0] * SIDES, 0)
        filled = [
            [empty] * (SHELLS - len(own)) + [(padded(edge, 1), steps) for edge, steps in own]
            for own in shells
        ]
        copy_from_host(self.edges, [[edge for edge, _ in own] for own in filled])
        copy_from_host(self.steps, [[steps for _, steps in own] for own in filled])

    def write_rates(self, rates: Sequence[Rates], blend: float = 0.0) -> None:
        """The hyperparameters, and the share of new weights in the averages, in one copy."""
        copy_from_host(self._numbers, [blend, *chain.from_iterable(own.numbers for own in rates)])


def padded(values: Sequence[int], fill: int) -> list[int]:
    """As many as the largest number of dimensions; what is missing stands first."""
    return [fill] * (SIDES - len(values)) + list(values)


def _columns(sides: Sides) -> list[int]:
    """The columns in which the sides look, then the active one; -1 for none."""
    columns = [-1 if side is None else side[0] for side in sides.columns]
    return [*columns, -1 if sides.active is None else sides.active]


def _check(row: StaticRow, inactive: str) -> None:
    shape = tuple(row.parameter.shape)
    if len(shape) > SIDES or len(row.sides.columns) != len(shape) or not row.parameter.numel():
        raise ValueError(
            f"a parameter of shape {shape} with {len(row.sides.columns)} sides; allowed: as many "
            f"sides as dimensions, at most {SIDES}, and at least one weight"
        )
    if (row.counts is None) == (inactive == "masked"):
        raise ValueError(
            f"inactive={inactive!r} {'without' if row.counts is None else 'with'} counts"
        )
    for array in row.arrays:
        if array is not None and (array.shape != shape or not array.is_contiguous()):
            raise ValueError(
                f"state of shape {tuple(array.shape)}, strides {array.stride()} for a parameter of "
                f"shape {shape}; allowed: contiguous, of that shape"
            )
    like = (row.parameter, row.gradient, row.exp_avg, row.exp_avg_sq, row.average)
    dtypes = {array.dtype for array in like if array is not None}
    if len(dtypes) != 1:
        raise ValueError(f"a parameter, its gradient, moments and average of {dtypes}: not of one")
