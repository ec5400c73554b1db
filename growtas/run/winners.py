"""The winners of a search, the best subnet inside each limit, and their one test."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from growtas.base.config import content_of, read_text
from growtas.space import Subnet

if TYPE_CHECKING:
    from growtas.search import Evaluator, LimitResult, Score, SearchResult


@dataclass(frozen=True)
class Winner:
    """The best subnet inside one limit, with its one result on the test images."""

    limit: str
    subnet: Subnet
    num_params: int
    macs: int  # multiply-adds for one image
    search_accuracy: float  # 0 to 1
    test_accuracy: float  # 0 to 1
    test_loss: float
    test_images: int

    @property
    def test_score(self) -> Score:
        """Its result on the test images."""
        from growtas.search import Score

        return Score(self.test_accuracy, self.test_loss, self.test_images)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON; `from_dict` reads them back."""
        return {**vars(self), "subnet": self.subnet.to_dict()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Winner:
        """Reads `to_dict`'s form."""
        return cls(**{**values, "subnet": Subnet.from_dict(values["subnet"])})


def tested_winners(result: SearchResult, evaluator: Evaluator) -> list[Winner]:
    """Each limit's winner, scored by an evaluator of the test images."""
    winners = []
    for entry in result.limits:
        score = evaluator.score(entry.subnet)
        winners.append(
            Winner(
                limit=entry.limit.name,
                subnet=entry.subnet,
                num_params=entry.params,
                macs=entry.macs,
                search_accuracy=entry.score.accuracy,
                test_accuracy=score.accuracy,
                test_loss=score.loss,
                test_images=score.count,
            )
        )
    return winners


def stored_winners(summary: Path, result: SearchResult) -> list[Winner] | None:
    """The tested winners in a ``summary.json``; None without one, or if they are not `result`'s."""
    if not summary.is_file():
        return None
    text = read_text(summary)
    with content_of(summary, "the summary of a run"):
        winners = [Winner.from_dict(values) for values in json.loads(text)["winners"]]
    wanted = [(entry.limit.name, entry.subnet) for entry in result.limits]
    return winners if [(winner.limit, winner.subnet) for winner in winners] == wanted else None


def best_limit(result: SearchResult) -> LimitResult:
    """The limit whose winner has the best search result by the search's own objective."""
    from growtas.search import rank_key

    return min(result.limits, key=lambda entry: rank_key(entry.best, result.config.objective))
