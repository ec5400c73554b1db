"""The subnet sequences of other projects' code, draw for draw.

AutoFormer, PreNAS and the GrowTAS authors' code seed Python's random generator with the number of
the epoch, whatever the seed of the run, and draw one subnet per step, so every run of theirs sees
the same subnets. They differ in the order of the draws.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Literal

from growtas.schedule.plan import StepContext
from growtas.space import SearchSpace, SpaceDifference, Subnet
from growtas.space.subnet import AXES, SUBNET_AXES

Space = SearchSpace | SpaceDifference
SequenceName = Literal["autoformer", "prenas", "growtas"]


class EpochDraws:
    """One generator per epoch, ``random.Random(epoch)``, and one draw per step from it.

    A pure function of the position in the run: at a position other than the next one, such as after
    a resume, the epoch's earlier draws are repeated. They are those of the current phase, so phases
    must begin at whole epochs.

    Args:
        draw: one draw from the space of a phase.
    """

    def __init__(self, draw: Callable[[Space, random.Random], Subnet]) -> None:
        self._draw = draw
        self._next = (-1, -1)
        self._rng = random.Random(0)

    def __call__(self, context: StepContext) -> Subnet:
        """The draw of this step."""
        here, space = (context.epoch_index, context.position), context.phase.space
        if here != self._next:
            self._rng = random.Random(context.epoch_index)
            for _ in range(context.position):
                self._draw(space, self._rng)
        self._next = (here[0], here[1] + 1)
        return self._draw(space, self._rng)


def _prenas(space: SearchSpace, rng: random.Random) -> Subnet:
    embed_dim, depth = rng.choice(space.embed_dim), rng.choice(space.depth)
    return _with_blocks(space, rng, embed_dim, depth)


def _growtas(space: SearchSpace, rng: random.Random) -> Subnet:
    depth = rng.choice(space.depth)
    # Not `choice`: with weights one random() is drawn, and other bits of the generator are used.
    (embed_dim,) = rng.choices(space.embed_dim, weights=[1] * len(space.embed_dim))
    return _with_blocks(space, rng, embed_dim, depth)


def _with_blocks(space: SearchSpace, rng: random.Random, embed_dim: int, depth: int) -> Subnet:
    ratios = tuple(rng.choice(space.mlp_ratio) for _ in range(depth))
    heads = tuple(rng.choice(space.num_heads) for _ in range(depth))
    return Subnet(embed_dim, heads, ratios)


# AutoFormer: depth, the MLP ratio of every block, the heads of every block, embedding dim.
# PreNAS without candidates: embedding dim, depth, all MLP ratios, all heads.
# The GrowTAS authors' code: depth, embedding dim by its weights (all equal), ratios, heads.
SEQUENCES: dict[str, Callable[[SearchSpace, random.Random], Subnet]] = {
    "autoformer": SearchSpace.sample,
    "prenas": _prenas,
    "growtas": _growtas,
}


def draw(sequence: str, space: Space, rng: random.Random) -> Subnet:
    """A subnet of `space` as the code that `sequence` names draws it."""
    choices = _choices(space)
    # Ends: `choices` has a subnet of `space`, else drawing from an empty difference has failed.
    while (subnet := SEQUENCES[sequence](choices, rng)) not in space:
        pass
    return subnet


@lru_cache(maxsize=32)
def _choices(space: Space) -> SearchSpace:
    """The lists that the draws are made from.

    A difference is a space of its own where what was removed lacks choices on one axis only, and a
    subnet has one value on that axis: the wider embedding dims of GrowTAS+. Other differences are
    drawn from their base until a subnet is outside what was removed.
    """
    if isinstance(space, SearchSpace):
        return space
    if not space:
        raise ValueError(f"nothing is left of space {space.base.name!r} after the removal")
    left: dict[str, Any] = {
        axis: tuple(v for v in getattr(space.base, axis) if v not in getattr(space.removed, axis))
        for axis in AXES
    }
    lacking = [axis for axis in AXES if left[axis]]
    if len(lacking) == 1 and lacking[0] in SUBNET_AXES:
        return space.base.restrict(**{lacking[0]: left[lacking[0]]})
    return space.base
