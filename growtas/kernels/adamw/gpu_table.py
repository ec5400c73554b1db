"""The table on the device through which one launch reaches the boxes of many tensors."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from itertools import accumulate

import torch
from torch import Tensor

from growtas.kernels.adamw.gpu_kernels import FIELDS
from growtas.kernels.adamw.gpu_pieces import Piece, pieces
from growtas.kernels.adamw.row import Row, Tables
from growtas.kernels.extents import copy_from_host

BEYOND = 2**31 - 1  # more than any task
ALIGNMENT = 4  # weights in 16 bytes


def table_of(tables: Tables, use: Hashable, rows: Sequence[Row], blocks: tuple[int, ...]) -> Table:
    """The table of these rows, at least one: the one that `tables` has for such a use on their
    device, written again only where rows have changed."""
    device = rows[0].parameter.device
    table = tables.get((use, device))
    if table is None:
        table = tables[use, device] = Table(device, blocks)
    table.refresh(rows)
    return table


class Table:
    """Rows on the device. What changes is copied into the same memory as long as it fits, so a
    captured CUDA graph may be replayed with other rows.

    Attributes:
        first: int32 ``[entries]`` and
        table: int64 ``[entries, FIELDS]``: see `gpu_kernels`.
        entries: a power of two.
        tasks: programs that have work.
    """

    def __init__(self, device: torch.device, blocks: tuple[int, ...]) -> None:
        self.device = device
        self.block_runs, self.block_weights = blocks
        self.entries = self.tasks = 0
        self.first = self.table = self._steps = torch.empty(0)
        self._rows: list[tuple] = []
        self._host_steps: list[float] = []

    def refresh(self, rows: Sequence[Row]) -> None:
        """Make it the table of these rows."""
        seen = [(_addresses(row), row.parameter.shape, list(row.boxes)) for row in rows]
        if seen != self._rows:
            if len(rows) > len(self._steps):
                self._steps = torch.empty(_room(len(rows)), device=self.device)
            self._write(rows)
            self._rows, self._host_steps = seen, []
        steps = [0.0 if isinstance(row.step, Tensor) else float(row.step) for row in rows]
        if steps != self._host_steps:
            copy_from_host(self._steps[: len(steps)], steps)
            self._host_steps = steps

    def _write(self, rows: Sequence[Row]) -> None:
        fields: list[list[int]] = []
        tasks: list[int] = []
        for row, own_step in zip(rows, self._steps.unbind(), strict=False):
            addresses = _addresses(row)
            aligned = not any(address % 16 for address in addresses[:-1])
            if not addresses[-1]:
                addresses = (*addresses[:-1], own_step.data_ptr())
            for piece in _pieces(row, self.block_weights):
                regular = aligned and _aligned(piece)
                start, run, runs, sizes, strides = piece
                fields.append([*addresses, regular, start, run, runs, *sizes, *strides])
                tasks.append(-(-runs // self.block_runs) * -(-run // self.block_weights))
        if len(fields) >= self.entries:
            self.entries = _room(len(fields) + 1)
            self.first = torch.empty(self.entries, dtype=torch.int32, device=self.device)
            self.table = torch.empty(
                self.entries, FIELDS.value, dtype=torch.int64, device=self.device
            )
        fields.append([0] * 7 + [0, 0, 0, 0, 1, 1, 0, 0, 0])  # no runs
        first = list(accumulate(tasks, initial=0))
        self.tasks = first[-1]
        copy_from_host(self.first, first + [BEYOND] * (self.entries - len(first)))
        copy_from_host(self.table[: len(fields)], fields)


def _room(count: int) -> int:
    """A power of two, large enough to grow a little without new memory."""
    return max(64, 1 << (count - 1).bit_length())


def _addresses(row: Row) -> tuple[int, ...]:
    """Of the row's arrays and, if it is on the device, of its number of updates; 0 for none."""
    step = row.step if isinstance(row.step, Tensor) else None
    return tuple(0 if array is None else array.data_ptr() for array in (*row.arrays, step))


def _pieces(row: Row, width: int) -> list[Piece]:
    shape = tuple(row.parameter.shape)
    return [
        piece
        for box in row.boxes
        for piece in pieces(shape, tuple((side.start, side.stop) for side in box), width)
    ]


def _aligned(piece: Piece) -> bool:
    return all(n % ALIGNMENT == 0 for n in (piece.start, piece.run, *piece.strides))
