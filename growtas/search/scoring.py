"""Scoring a list of subnets: several at a time where the scorer can, in parts that end soon."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from growtas.base import distributed
from growtas.search.candidate import Score, Scorer
from growtas.space import Subnet

PART_SECONDS = 30.0


class Scoring:
    """Scores of subnets, in the order given, as they become known.

    A scorer with ``score_many`` gets parts of the list that it takes about `PART_SECONDS` for, by
    the pace of the part before, one subnet to begin with: whoever saves what comes out loses little
    when the process is killed. Under torch.distributed the pace is that of rank 0, so that all
    ranks score the same parts.
    """

    def __init__(self, scorer: Scorer) -> None:
        self.scorer = scorer
        self._part = 1

    def __call__(self, subnets: Sequence[Subnet]) -> Iterator[Score]:
        score_many = getattr(self.scorer, "score_many", None)
        if score_many is None:
            yield from map(self.scorer.score, subnets)
            return
        done = 0
        while done < len(subnets):
            some = subnets[done : done + self._part]
            start = time.monotonic()
            scores = score_many(some)
            pace = (time.monotonic() - start) / len(some)
            part = max(1, int(PART_SECONDS / max(pace, 1e-6)))
            self._part = int(distributed.current().broadcast_text(str(part)) or part)
            done += len(some)
            yield from scores
