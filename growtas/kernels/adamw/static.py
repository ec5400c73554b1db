"""AdamW in one fixed sequence of launches, whatever a step samples: what changes from step to step
lies in tensors on the parameters' device.

The boxes of a step come from a table of extents (:class:`growtas.kernels.Extents`), so a CUDA graph
of :func:`adamw_static_` serves every subnet, every learning rate and everything that is frozen.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence
from itertools import chain
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from growtas.kernels import native_library
from growtas.kernels.adamw import static_launch, static_reference
from growtas.kernels.dispatch import BackendUnavailable, requested_backend
from growtas.kernels.extents import COLUMNS, copy_from_host
from growtas.kernels.triton import support as triton_support

INACTIVE = ("dense", "skip", "masked")
SIDES = 4  # dimensions of a parameter, at most
SHELLS = 8  # nested boxes of a parameter that count their steps on their own, at most
TILE = 4096  # weights of a task
Shells = Sequence[tuple[Sequence[int], int]]


class Sides(NamedTuple):
    """The leading box of a parameter that a subnet reads, in terms of a table of extents.

    Attributes:
        columns: for each dimension the name of a column and a factor, or None for all of it.
        row: of the table; the box is empty where the row is inactive.
    """

    columns: tuple[tuple[str, int] | None, ...]
    row: int = 0


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


class Rates(NamedTuple):
    """Hyperparameters, as for :func:`growtas.kernels.adamw_`."""

    lr: float
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0


class StaticTable:
    """What :func:`adamw_static_` reads on the device. Every write goes to the same memory.

    Args:
        rows: the parameters, at least one, all on one device.
        inactive: what happens to weights that a step does not sample, see
            :class:`growtas.training.AdamW`.
        rate_count: how many sets of hyperparameters there are.

    Attributes:
        steps: updates of each shell so far, ``[rows, SHELLS]``; :func:`adamw_static_` counts on.
        norm: of all gradients that are not frozen, ``[]``; written where it is needed.
        found_inf: ``[]``: 1 if the last step was left out.

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

        self.targets = zeros(count, 24, dtype=torch.int64)
        self.tiles = torch.tensor(owners, dtype=torch.int32, device=self.device)
        self.frozen = zeros(count, SIDES, dtype=torch.int32)
        self.edges = zeros(count, SHELLS, SIDES, dtype=torch.int32)
        self.steps = zeros(count, SHELLS)
        self.active = zeros(count, SHELLS, dtype=torch.int32)
        self.partials = zeros(sum(tiles), dtype=torch.float64)
        self.norm, self.found_inf, self.factor = zeros(), zeros(), zeros()
        self._numbers = zeros(1 + 8 * rate_count)
        self.blend, self.rates = self._numbers[0], self._numbers[1:].view(rate_count, 8)
        self.write_rows(rows)

    def write_rows(self, rows: Sequence[StaticRow]) -> None:
        """Other arrays for the same parameters, such as the moments of a loaded state."""
        for row in rows:
            _check(row, self.inactive)
        self.rows = list(rows)
        copy_from_host(self.targets, [*map(self._fields, self.rows, self._first_tiles)])

    def _fields(self, row: StaticRow, first_tile: int) -> list[int]:
        p = row.parameter
        addresses = [0 if array is None else array.data_ptr() for array in row.arrays]
        sizes = padded(p.shape, 1)
        aligned = sizes[-1] % 4 == 0 and not any(address % 16 for address in addresses)
        columns = [-1 if side is None else COLUMNS.index(side[0]) for side in row.sides.columns]
        factors = [1 if side is None else side[1] for side in row.sides.columns]
        return [
            *addresses, p.numel(), first_tile, aligned, *sizes, *padded(columns, -1),
            *padded(factors, 1), row.sides.row, row.rates,
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
        copy_from_host(self._numbers, [blend, *chain.from_iterable(map(_fields_of_rates, rates))])


@torch.no_grad()
def adamw_static_(
    table: StaticTable,
    extents: Tensor,
    *,
    largest: float | None = None,
    scale: Tensor | None = None,
) -> None:
    """One AdamW update of what the subnets in `extents` sampled, by ``table.inactive``.

    As :class:`growtas.training.AdamW` does it on the host: "dense" moves all of a shell from the
    first step on that samples any of it, "skip" only in such steps, "masked" moves the sampled
    weights, each with a step count of its own; frozen boxes stay as they are. Averages become
    ``lerp(average, parameter, table.blend)`` everywhere, with the new parameter.

    Args:
        table: parameters, state and settings.
        extents: int32 ``[groups, depth, 5]``, `Extents.table`; the sampled boxes are united.
        largest: norm that the gradient is clipped to; None for no clipping.
        scale: float32 ``[]``, what the loss was multiplied by. Then a gradient that is not finite
            leaves the step out: nothing moves or counts but the averages.

    Raises:
        BackendUnavailable: there is no implementation for the parameters' device here.
    """
    if largest is not None and not largest > 0:
        raise ValueError(f"the largest norm must be above 0, got {largest}")
    implementation(table.rows[0].parameter).step_(table, extents, largest, scale)


def unavailable(parameter: Tensor) -> str | None:
    """Why :func:`adamw_static_` cannot move such parameters; None if it can."""
    try:
        implementation(parameter)
    except BackendUnavailable as error:
        return str(error)
    return None


def implementation(parameter: Tensor) -> ModuleType:
    """The module whose ``step_`` moves such parameters: on CUDA devices the library in CUDA C++,
    else Triton; on the CPU the core, else the reference. "triton" by name on the CPU: interpreted.

    Raises:
        BackendUnavailable: neither.
    """
    request = requested_backend()
    if request == "reference":
        return static_reference
    cuda = parameter.device.type == "cuda"
    reason = native_library.cuda_unavailable() if cuda else native_library.unavailable()
    if parameter.dtype != torch.float32:
        reason = f"it updates float32 parameters, not {parameter.dtype}"
    elif reason is None and (cuda or request != "triton"):
        return static_launch
    elif cuda or request == "triton":
        reason = triton_support.unavailable() or triton_support.unsupported(parameter)
        if reason is None:
            return importlib.import_module("growtas.kernels.adamw.gpu_static")
    if cuda or request != "auto":
        raise BackendUnavailable(f"adamw with extents on {parameter.device.type}: {reason}")
    return static_reference


def padded(values: Sequence[int], fill: int) -> list[int]:
    """As many as the largest number of dimensions; what is missing stands first."""
    return [fill] * (SIDES - len(values)) + list(values)


def _fields_of_rates(rates: Rates) -> tuple[float, ...]:
    logarithms = [math.log(beta) if beta else -math.inf for beta in rates.betas]
    return (
        rates.lr, rates.weight_decay, 1.0 - rates.betas[0], rates.betas[1], 1.0 - rates.betas[1],
        *logarithms, rates.eps,
    )  # fmt: skip


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
