"""GrowTAS Fig. 5: the accuracy that each supernet offers under varying limits on the model's size.

What stands for a supernet inside a limit was chosen on the search split: the winner of its stored
search, or the best of some random subnets. Its accuracy may then be read on another split.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from growtas.analysis.figures import COLOURS, MARKERS, legend_below, new_figure
from growtas.analysis.sampling import random_subnets
from growtas.analysis.subject import Subject, cells
from growtas.search import Candidate, Limit, SearchResult, rank_key
from growtas.search.candidate import Objective


class LimitRow(NamedTuple):
    """What one supernet offers inside one limit."""

    supernet: str
    limit: str
    chosen_by: str  # "search", or "best of N random subnets"
    subnet: str  # JSON
    params: int
    macs_per_image: int
    accuracy_percent: float  # top-1
    standard_error_percent: float  # of that accuracy, as the share of `images` right
    loss_nats: float  # mean cross-entropy
    images: int
    split: str


class Choice(NamedTuple):
    """The subnet that stands for a supernet inside a limit, and how it was chosen."""

    limit: Limit
    candidate: Candidate
    chosen_by: str


def search_winners(result: SearchResult) -> list[Choice]:
    """The winner inside each limit of a finished search."""
    return [Choice(entry.limit, entry.best, "search") for entry in result.limits]


def best_of_random(
    subject: Subject,
    limits: Sequence[Limit],
    *,
    count: int = 100,
    seed: int = 0,
    objective: Objective = "accuracy",
) -> list[Choice]:
    """The best of `count` random subnets inside each limit, by the subject's evaluator.

    Supernets of equal spaces get equal subnets: a difference between them is not one of luck.

    Args:
        subject: its evaluator chooses, so it should be one of the search split.
        limits: windows on the size.
        count: subnets scored inside each; all of them where a window has fewer.
        seed: of the draws.
        objective: what makes a subnet the best.

    Raises:
        ValueError: see `random_subnets`.
    """
    choices = []
    for limit in limits:
        subnets = random_subnets(subject.space, limit, subject.cost, count=count, seed=seed)
        best = min(subject.score(subnets), key=lambda c: rank_key(c, objective))
        choices.append(Choice(limit, best, f"best of {len(subnets)} random subnets"))
    return choices


def score_choices(subject: Subject, choices: Sequence[Choice]) -> list[LimitRow]:
    """The accuracy of chosen subnets on the subject's images, one row for each limit."""
    rows = []
    for choice, candidate in zip(
        choices, subject.score([choice.candidate.subnet for choice in choices]), strict=True
    ):
        score = candidate.score
        error = (score.accuracy * (1 - score.accuracy) / score.count) ** 0.5
        rows.append(
            LimitRow(
                supernet=subject.name,
                limit=choice.limit.name,
                chosen_by=choice.chosen_by,
                standard_error_percent=100 * error,
                split=subject.split,
                **cells(candidate),
            )
        )
    return rows


def plot(rows: Sequence[LimitRow]) -> Any:
    """A matplotlib figure: accuracy inside each limit, a line for each supernet; bars are one
    standard error."""
    names = list(dict.fromkeys(row.supernet for row in rows))
    order = list(dict.fromkeys(row.limit for row in rows))
    how = "winners of the search" if rows[0].chosen_by == "search" else rows[0].chosen_by
    figure = new_figure(
        1,
        f"{how}\ntop-1 accuracy on {rows[0].images:,} {rows[0].split} images, bars of one standard "
        "error",
    )
    axes = figure.axes[0]
    for index, name in enumerate(names):
        mine = [row for row in rows if row.supernet == name]
        # Bars stand side by side, or those of one supernet would hide those of another.
        shift = 0.06 * (index - (len(names) - 1) / 2)
        axes.errorbar(
            [order.index(row.limit) + shift for row in mine],
            [row.accuracy_percent for row in mine],
            yerr=[row.standard_error_percent for row in mine],
            color=COLOURS[index % len(COLOURS)],
            marker=MARKERS[index % len(MARKERS)],
            capsize=3,
            label=name,
        )
    axes.set_xticks(range(len(order)), order)
    axes.set_xlabel("limit on the size of the model")
    axes.set_ylabel("top-1 accuracy [%]")
    legend_below(figure, columns=3)
    return figure
