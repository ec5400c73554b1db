"""Stratified sampling: all sizes of a window get the same share of the steps.

Uniform sampling draws mid-sized subnets most of the time: 1 % of AutoFormer-T's draws are below
5.74M parameters, where the space begins at 5.37M.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

from growtas.base.checks import at_least, check, listed
from growtas.schedule.plan import Phase, StepContext
from growtas.schedule.sequence import Space
from growtas.space import Subnet
from growtas.space.cost import Axis, CostFunction, Count, format_count, parse_count
from growtas.space.size_table import MAX_PAIRS, Family, Selection, SizeTable


@dataclass(frozen=True)
class Stratify:
    """A window on the size, cut into bins of equal width.

    Args:
        axis: "params" or "macs", the size that is meant; of the extracted model, exact.
        min: smallest size, a number or a text such as "5M"; None for the smallest of the phase.
        max: largest size, likewise; sizes equal to an end are inside.
        bins: number of bins.

    Raises:
        TypeError, ValueError: an end is not a count, the window ends before it begins, or there is
            no bin.
    """

    axis: Axis = "params"
    min: Count = None
    max: Count = None
    bins: int = 8

    def __post_init__(self) -> None:
        check(self.axis in get_args(Axis), "stratify axis", self.axis, listed(get_args(Axis)))
        for end in ("min", "max"):
            value = getattr(self, end)
            if value is not None:
                object.__setattr__(self, end, parse_count(value, f"stratify {end}"))
        low, high = self.window()
        if low > high:
            raise ValueError(
                f"stratify ends before it begins, got min {format_count(low)}, "
                f"max {format_count(high)}"
            )
        at_least("stratify bins", self.bins, 1)

    def window(self) -> tuple[float, float]:
        """Smallest and largest size, 0 and infinity where none is given."""
        return (
            0 if self.min is None else int(self.min),
            math.inf if self.max is None else int(self.max),
        )


class StratifiedDraws:
    """Draws a bin, each equally likely, then a subnet of it, each equally likely. Both exact.

    Args:
        stratify: the bins.
        cost: size of a subnet, as `growtas.space.cost.model_cost` gives it.
    """

    def __init__(self, stratify: Stratify, cost: CostFunction) -> None:
        self._stratify = stratify
        self._cost = cost
        self._bins: dict[Space, list[Selection]] = {}
        self._notes: list[str] = []

    def prepare(self, phases: Sequence[Phase]) -> None:
        """Fill the bins of every phase.

        Raises:
            ValueError: a phase has no subnet in the window (the message states what it reaches), or
                its space is too large for exact draws.
        """
        for phase in phases:
            if phase.space not in self._bins:
                self._bins[phase.space] = self._fill(phase)

    def __call__(self, context: StepContext) -> Subnet:
        """The draw of this step."""
        self.prepare([context.phase])
        return context.rng.choice(self._bins[context.phase.space]).sample(context.rng)

    def notes(self) -> list[str]:
        """How many bins of a phase are empty; each said once."""
        notes, self._notes = self._notes, []
        return notes

    def _fill(self, phase: Phase) -> list[Selection]:
        table = SizeTable.build(phase.space, self._cost)
        if table is None:
            raise ValueError(
                f"{phase.name}: stratify needs a table of all sizes, which holds at most "
                f"{MAX_PAIRS:,} pairs of heads and MLP ratios of all blocks; this space has more"
            )
        axis, count = self._stratify.axis, self._stratify.bins
        families = [(getattr(family.size, axis), family) for family in table.families()]
        sizes = [size for size, _ in families]
        reachable = (min(sizes), max(sizes))
        low, high = self._stratify.window()
        bins: list[list[Family]] = [[] for _ in range(count)]
        first = reachable[0] if self._stratify.min is None else int(low)
        last = reachable[1] if self._stratify.max is None else int(high)
        for size, family in families:
            if first <= size <= last:
                index = (size - first) * count // max(last - first, 1)
                bins[min(index, count - 1)].append(family)
        filled = [Selection(part, equal=True) for part in bins if part]
        unit = "parameters" if axis == "params" else "MACs"
        if not filled:
            ends = ((low, "at least"), (high, "at most"))
            asked = " and ".join(f"{t} {format_count(v)}" for v, t in ends if 0 < v < math.inf)
            raise ValueError(
                f"{phase.name}: stratify finds no subnet with {asked} {unit}; reachable are "
                f"{format_count(reachable[0])} to {format_count(reachable[1])}"
            )
        if len(filled) < count:
            self._notes.append(
                f"{phase.name}: {count - len(filled)} of {count} bins from {format_count(first)} "
                f"to {format_count(last)} {unit} are empty and left out"
            )
        return filled
