"""What the dimensions of a family's parameters follow, said once. Pure Python.

From it alone come the boxes that a subnet reads, its parameters and multiply-adds, the columns of
the table on the device, what is new in a larger space, and the shapes of the module itself.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import repeat
from typing import Any, NamedTuple

_MOST_KEPT = 4096  # combinations of sizes whose boxes are remembered


@dataclass(frozen=True)
class Axis:
    """A size that subnets choose.

    Args:
        name: of its column in the table on the device.
        field: attribute of a subnet: the size, or one size for each block if `per_block`.
        per_block: whether the blocks of a subnet choose on their own.
        factor: entries of a dimension for each unit of the size.
    """

    name: str
    field: str
    per_block: bool = False
    factor: int = 1

    def __mul__(self, factor: int) -> Axis:
        return replace(self, factor=self.factor * factor)


Dims = tuple[int | Axis, ...]  # an int is the same in all subnets
Box = tuple[int, ...]


class SizeReader:
    """Reads the sizes of subnets off them: those of the axes that a subnet chooses once, and of
    the others for each block."""

    def __init__(self, axes: Iterable[Axis]) -> None:
        self._outer, self._blocks = (
            [operator.attrgetter(axis.field) for axis in axes if axis.per_block is per_block]
            for per_block in (False, True)
        )

    def __call__(self, subnet: Any) -> tuple[tuple[int, ...], list[tuple[int, ...]]]:
        outer = tuple([size(subnet) for size in self._outer])
        return outer, list(zip(*[sizes(subnet) for sizes in self._blocks], strict=True))


class Geometry:
    """The sizes of every subnet of a family.

    Args:
        axes: all that vary.
        parameters: dimensions of each parameter; a name with ``{i}`` is one of every block i, and
            those stand together.
        matrices: the parameters that multiply vectors, their last dimension being what is read,
            and how many vectors of an image they multiply.
        products: other matrix products of a block, as the factors of their multiply-adds.
    """

    def __init__(
        self,
        axes: Iterable[Axis],
        parameters: Mapping[str, Dims],
        matrices: Mapping[str, int],
        products: Iterable[Dims] = (),
    ) -> None:
        axes = sorted(axes, key=lambda axis: axis.per_block)
        self._sizes = SizeReader(axes)
        self._parameters = dict(parameters)
        self._matrices = dict(matrices)
        names = list(parameters)
        inside = [place for place, name in enumerate(names) if "{i}" in name] or [len(names)]
        before, after = names[: inside[0]], names[inside[-1] + 1 :]

        def part(names: list[str], products: Iterable[Dims] = ()) -> _Part:
            return _Part(axes, {name: parameters[name] for name in names}, matrices, products)

        self._before, self._after = part(before), part(after)
        self._inside = part(names[inside[0] : inside[-1] + 1], products)

    def boxes(self, subnet: Any) -> dict[str, Box]:
        """For each parameter that a subnet reads, the leading box that it reads.

        Boxes nest: those of a subnet with the largest sizes hold all others.
        """
        found: dict[str, Box] = {}
        for part, block, sizes in self._parts(subnet):
            found.update(zip(part.named(block), part(sizes).boxes, strict=True))
        return found

    def num_params(self, subnet: Any) -> int:
        """Weights of the subnet on its own."""
        return sum([part(sizes).params for part, _, sizes in self._parts(subnet)])

    def macs(self, subnet: Any) -> int:
        """Multiply-adds of its matrix products for one image."""
        return sum([part(sizes).macs for part, _, sizes in self._parts(subnet)])

    def parameters(self, depth: int) -> Iterator[tuple[str, Dims, int | None]]:
        """Those of a model of so many blocks: name, dimensions, and index of the block if any."""
        yield from self._before.declared(None)
        for block in range(depth):
            yield from self._inside.declared(block)
        yield from self._after.declared(None)

    def _parts(self, subnet: Any) -> list[tuple[_Part, int | None, tuple[int, ...]]]:
        """What a subnet consists of: parameters, their block if any, and sizes."""
        outer, blocks = self._sizes(subnet)
        inside = [(self._inside, i, outer + sizes) for i, sizes in enumerate(blocks)]
        return [(self._before, None, outer), *inside, (self._after, None, outer)]

    def known_inputs(self, name: str, old: Mapping[str, Sequence[int]]) -> int | None:
        """How many of its inputs a matrix, there or not, would have had within the boxes `old`: 0
        if they are a new block's own; None for what is no matrix, or none that can read more."""
        pattern = re.sub(r"\.\d+\.", ".{i}.", name)
        read = self._parameters[pattern][-1]
        if pattern not in self._matrices or isinstance(read, int):
            return None
        if name in old:
            return old[name][-1]
        return 0 if read.per_block else self._old_size(read, old)

    def _old_size(self, axis: Axis, boxes: Mapping[str, Sequence[int]]) -> int:
        """Of an axis that a subnet chooses once."""
        return next(
            boxes[name][place] // dim.factor * axis.factor
            for name, dims, _ in self.parameters(0)
            for place, dim in enumerate(dims)
            if isinstance(dim, Axis) and dim.field == axis.field
        )


class _Measured(NamedTuple):
    boxes: list[Box]
    params: int
    macs: int


class _Part:
    """The parameters before the blocks, in any of them, or after them."""

    def __init__(
        self,
        axes: Iterable[Axis],
        parameters: Mapping[str, Dims],
        matrices: Mapping[str, int],
        products: Iterable[Dims] = (),
    ) -> None:
        places = {axis.field: place for place, axis in enumerate(axes)}

        def located(dims: Dims) -> list[tuple[int, int]]:
            """Place among the sizes (-1 for none) and factor of each dimension."""
            return [(-1, d) if isinstance(d, int) else (places[d.field], d.factor) for d in dims]

        self._parameters = parameters
        self._dims = [located(dims) for dims in parameters.values()]
        self._vectors = [matrices.get(name, 0) for name in parameters]
        self._products = [located(dims) for dims in products]
        self._named: dict[int | None, list[str]] = {}
        self._measured: dict[tuple[int, ...], _Measured] = {}

    def named(self, block: int | None) -> list[str]:
        """The names, in one block."""
        if block not in self._named:
            self._named[block] = [name.replace("{i}", str(block)) for name in self._parameters]
        return self._named[block]

    def declared(self, block: int | None) -> Iterator[tuple[str, Dims, int | None]]:
        """Those names, dimensions and the block."""
        return zip(self.named(block), self._parameters.values(), repeat(block), strict=False)

    def __call__(self, sizes: tuple[int, ...]) -> _Measured:
        """Boxes, parameters and multiply-adds at these sizes of the axes."""
        found = self._measured.get(sizes)
        if found is None:
            if len(self._measured) == _MOST_KEPT:
                self._measured.clear()
            found = self._measured[sizes] = self._measure((*sizes, 1))
        return found

    def _measure(self, sizes: tuple[int, ...]) -> _Measured:
        """The last of the sizes is 1: that of what does not vary."""
        boxes = [tuple([sizes[at] * factor for at, factor in dims]) for dims in self._dims]
        weights = [math.prod(box) for box in boxes]
        macs = sum(map(operator.mul, weights, self._vectors))
        for dims in self._products:
            macs += math.prod([sizes[at] * factor for at, factor in dims])
        return _Measured(boxes, sum(weights), macs)
