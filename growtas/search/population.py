"""Many subnets on the same images, without doing again for each what serves several.

`SharedPrefixes` is for the ordinary path: subnets that begin alike share what they begin with.
`OneGraph` is for extents on the device: several subnets run in one launch of each kernel, all of
them from one CUDA graph.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise, takewhile
from typing import NamedTuple

import torch
from torch import Tensor

from growtas.base.precision import autocast
from growtas.space import Subnet
from growtas.supernet import Supernet
from growtas.supernet.graph import GraphedForward


class Turn(NamedTuple):
    """What one subnet takes from those before it and leaves to those after it."""

    which: int  # index among the subnets given
    shared: int  # number of blocks whose output it starts from; -1: it starts from the images
    keep: frozenset[int]  # numbers of blocks after which the residual stream is wanted again


class SharedPrefixes:
    """Logits of subnets, the blocks that they have in common from the first one on computed once.

    Same operators on same tensors in the same order: the logits have the bits of
    ``model(images, subnet)``.

    Beside what one subnet needs, the memory is at most one residual stream
    ``[batch, N, embed_dim]`` for each depth at which subnets of one embedding dim part.

    Args:
        model: in evaluation mode while it runs.
        subnets: in any order.
        dtype: of autocast; None for none.

    Raises:
        ValueError: a subnet larger than the supernet.
    """

    def __init__(
        self, model: Supernet, subnets: Sequence[Subnet], dtype: torch.dtype | None = None
    ) -> None:
        for subnet in subnets:
            model.space.supernet.validate(subnet)
        self.model = model
        self.subnets = subnets
        self.dtype = dtype
        self.turns = turns(subnets)

    def __call__(self, images: Tensor) -> Iterator[tuple[int, Tensor]]:
        """The index of every subnet and its logits ``[B, classes]``, in an order of our own."""
        model = self.model
        streams: dict[int, Tensor] = {}  # by the number of blocks that they come out of
        for turn in self.turns:
            subnet = self.subnets[turn.which]
            with autocast(self.dtype, images.device):
                if turn.shared < 0:
                    x = model.embed(images, subnet.embed_dim)
                else:
                    x = streams[turn.shared]
                streams = {depth: streams[depth] for depth in turn.keep & streams.keys()}
                for i in range(max(turn.shared, 0), subnet.depth):
                    if i in turn.keep:
                        streams[i] = x
                    x = model.block(i, x, subnet)
                if subnet.depth in turn.keep:
                    streams[subnet.depth] = x
                logits = model.classify(x)
            yield turn.which, logits


def turns(subnets: Sequence[Subnet]) -> list[Turn]:
    """An order in which every common beginning is computed once, and what is kept for it."""
    paths = [(s.embed_dim, *zip(s.num_heads, s.hidden_dims, strict=True)) for s in subnets]
    order = sorted(range(len(paths)), key=paths.__getitem__)
    shared = [-1] + [_common(paths[a], paths[b]) - 1 for a, b in pairwise(order)]
    found: list[Turn] = []
    wanted: frozenset[int] = frozenset()  # of a subnet's streams, by all after it
    for place in reversed(range(len(order))):
        found.append(Turn(order[place], shared[place], wanted))
        start = shared[place]
        wanted = frozenset(d for d in (*wanted, start) if 0 <= d <= start)
    return found[::-1]


def _common(a: tuple, b: tuple) -> int:
    """How many leading entries are equal."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))


class OneGraph:
    """Logits of subnets on batches of one shape, several subnets in each replay.

    The images are copied once for all subnets; of a subnet only its sizes are.

    Args:
        model: in evaluation mode while it runs.
        images: a batch like those to come, ``[B, channels, height, width]``.
        count: subnets of a replay, each on all B images: ``count * B`` rows.
        dtype: of autocast; None for none.
    """

    def __init__(
        self, model: Supernet, images: Tensor, count: int, dtype: torch.dtype | None = None
    ) -> None:
        batch = images.repeat(count, *(1,) * (images.dim() - 1))
        self.forward = GraphedForward(model, batch, dtype=dtype, groups=count)
        self.count = count
        self.size = len(images)

    def __call__(self, images: Tensor, subnets: Sequence[Subnet]) -> Iterator[tuple[slice, Tensor]]:
        """Which subnets, and their logits ``[subnets, B, classes]``, which the next step
        overwrites.

        Args:
            images: B or fewer.
            subnets: any number; the last replay is filled up with repetitions.
        """
        given: Tensor | None = images
        if len(images) < self.size:
            empty = images.new_zeros(self.size - len(images), *images.shape[1:])
            given = torch.cat((images, empty))
        count = self.count
        for start in range(0, len(subnets), count):
            some = list(subnets[start : start + count])
            logits = self.forward(given, some + some[-1:] * (count - len(some)))
            given = None  # the graph has its copy of them
            logits = logits.unflatten(0, (count, -1))[: len(some), : len(images)]
            yield slice(start, start + len(some)), logits
