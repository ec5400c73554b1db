"""Subnets inside a limit: what is reachable, how to draw one, how to move one inside."""

from __future__ import annotations

import random
from collections.abc import Callable

from growtas.search.config import Limit
from growtas.search.operators import step
from growtas.space import SearchSpace, Subnet
from growtas.space.cost import Cost, CostFunction, format_count
from growtas.space.size_table import Selection, SizeTable

# Every loop is bounded by one of these.
DRAWS = 200  # random subnets tried before something else is
LISTED = 20_000  # windows with up to this many subnets are listed when draws find no new one
WALKS = 20
STEPS = 200  # per walk


class Window:
    """The subnets of `space` that `limit` admits.

    Args:
        space: the search space; sizes grow along each of its axes.
        limit: bounds on parameters and MACs.
        cost: size of a subnet.
        table: sizes of `space`, if it has a table.

    Raises:
        ValueError: no subnet is inside; the message states the reachable range and, if that does
            not explain it, the closest sizes.
    """

    def __init__(
        self, space: SearchSpace, limit: Limit, cost: CostFunction, table: SizeTable | None = None
    ) -> None:
        self.space = space
        self.limit = limit
        self._cost = cost
        # How far the closest sizes found on either side are outside, for `empty_error`.
        self._closest: dict[str, tuple[float, Cost]] = {}
        self._smallest, self._largest = cost(space.smallest()), cost(space.largest())
        for axis in ("params", "macs"):
            low, high = limit.window(axis)
            if high < getattr(self._smallest, axis) or low > getattr(self._largest, axis):
                raise self.empty_error()
        self._selection: Selection | None = None
        if table is not None and limit.is_bounded:
            self._selection = table.inside(limit)
            if self._selection.count == 0:
                for size in table.sizes():
                    self._note(size, limit.excess(*size))
                raise self.empty_error()

    def excess(self, subnet: Subnet) -> float:
        """0 inside the window, else how far outside `subnet` is (`Limit.excess`)."""
        size = self._cost(subnet)
        excess = self.limit.excess(*size)
        self._note(size, excess)
        return excess

    def draw(self, rng: random.Random, is_new: Callable[[Subnet], bool]) -> Subnet | None:
        """A random subnet inside the window for which `is_new` holds, or None if none is left.

        With a size table subnets are drawn as ``space.sample`` draws them, given that they are
        inside, and None is exact for windows of at most `LISTED` subnets. Without one, draws that
        miss the window are followed by random walks into it, and None is what bounded tries could
        find.
        """
        sample = self.space.sample if self._selection is None else self._selection.sample
        for _ in range(DRAWS):
            subnet = sample(rng)
            if is_new(subnet) and self.excess(subnet) == 0:
                return subnet
        if self._selection is not None:
            if self._selection.count > LISTED:
                return None
            left = [subnet for subnet in self._selection if is_new(subnet)]
            return rng.choice(left) if left else None
        for _ in range(WALKS):
            walked = self.repair(self.space.sample(rng), rng, is_new)
            if walked is not None:
                return walked
        return None

    def draw_many(
        self,
        rng: random.Random,
        count: int,
        is_new: Callable[[Subnet], bool] = lambda subnet: True,
    ) -> list[Subnet]:
        """`count` different random subnets inside the window for which `is_new` holds; all that can
        be found where that is fewer."""
        drawn: dict[Subnet, None] = {}
        while len(drawn) < count:
            subnet = self.draw(rng, lambda subnet: subnet not in drawn and is_new(subnet))
            if subnet is None:
                break
            drawn[subnet] = None
        return list(drawn)

    def repair(
        self, subnet: Subnet, rng: random.Random, is_new: Callable[[Subnet], bool]
    ) -> Subnet | None:
        """Walks from `subnet` into the window, never away, to a subnet for which `is_new` holds.

        None if `STEPS` steps did not get there. A step changes up to three choices at once, because
        some sizes are only reached by one choice going up and another going down.
        """
        here, excess = subnet, self.excess(subnet)
        for _ in range(STEPS):
            if excess == 0 and is_new(here):
                return here
            there = here
            for _ in range(rng.choice((1, 2, 3))):
                there = step(there, self.space, rng)
            if there != here and (outside := self.excess(there)) <= excess:
                here, excess = there, outside
        return here if excess == 0 and is_new(here) else None

    def empty_error(self) -> ValueError:
        """The error for a window in which nothing was found."""
        sides = [side for side in ("below", "above") if side in self._closest]
        closest = [_size(self._closest[side][1]) for side in sides]
        return ValueError(
            f"found no subnet of space {self.space.name!r} inside limit {self.limit.name!r}; "
            f"reachable are {_size(self._smallest)} to {_size(self._largest)}"
            + (f"; closest are {' and '.join(closest)}" if closest else "")
        )

    def _note(self, size: Cost, excess: float) -> None:
        if excess == 0:
            return
        small = any(getattr(size, axis) < self.limit.window(axis)[0] for axis in ("params", "macs"))
        side = "below" if small else "above"
        if side not in self._closest or excess < self._closest[side][0]:
            self._closest[side] = (excess, size)


def _size(cost: Cost) -> str:
    return f"{format_count(cost.params)} parameters with {format_count(cost.macs)} MACs"
