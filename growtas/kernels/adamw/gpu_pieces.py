"""Boxes as runs of neighbouring weights, which is how the Triton kernels walk through them."""

from __future__ import annotations

import functools
import math
from itertools import product
from typing import NamedTuple

Bounds = tuple[tuple[int, int], ...]  # of a box: (start, stop) of every dimension


class Piece(NamedTuple):
    """Runs of neighbouring weights: run ``(i, j, k)`` starts at ``start + (i, j, k) . strides``.

    Attributes:
        start: offset of the first weight.
        run: weights of a run.
        runs: how many runs, the last dimension fastest.
        sizes: of the last two dimensions.
        strides: of the three dimensions.
    """

    start: int
    run: int
    runs: int
    sizes: tuple[int, int]
    strides: tuple[int, int, int]


@functools.lru_cache(maxsize=1 << 16)
def pieces(shape: tuple[int, ...], bounds: Bounds, width: int) -> list[Piece]:
    """The weights of a box of a contiguous tensor, each once. What is one single run is cut into
    runs of `width`, so that a tile of several runs is full."""
    sizes = [stop - start for start, stop in bounds]
    if not all(sizes):
        return []
    strides = [math.prod(shape[dim + 1 :]) for dim in range(len(shape))]
    start = sum(low * stride for (low, _), stride in zip(bounds, strides, strict=True))
    dims: list[tuple[int, int]] = []  # size and stride, outside in
    for size, stride in zip(sizes, strides, strict=True):
        if dims and dims[-1][1] == size * stride:  # it goes on where this one ends: they are one
            dims[-1] = (dims[-1][0] * size, stride)
        elif size > 1:
            dims.append((size, stride))
    run = dims.pop()[0] if dims and dims[-1][1] == 1 else 1
    if not dims:
        rows, rest = divmod(run, width)
        found = [Piece(start, width, rows, (1, 1), (width, 0, 0))] if rows else []
        return found + ([Piece(start + run - rest, rest, 1, (1, 1), (0, 0, 0))] if rest else [])
    outer, inner = dims[:-3], [(1, 0)] * (3 - len(dims)) + dims[-3:]
    (_, size_1, size_2), (stride_0, stride_1, stride_2) = zip(*inner, strict=True)
    return [
        Piece(
            start + sum(i * stride for i, (_, stride) in zip(index, outer, strict=True)),
            run,
            math.prod(size for size, _ in inner),
            (size_1, size_2),
            (stride_0, stride_1, stride_2),
        )
        for index in product(*(range(size) for size, _ in outer))
    ]
