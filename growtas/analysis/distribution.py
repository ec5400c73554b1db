"""GrowTAS Fig. 6: the accuracies of random subnets inside one window of sizes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

from growtas.analysis.figures import COLOURS, STYLES, legend_below, new_figure
from growtas.analysis.sampling import random_subnets
from growtas.analysis.subject import Subject, cells
from growtas.search import Limit

Kind = Literal["histogram", "box", "violin"]
BINS = 20


class DistributionRow(NamedTuple):
    """One random subnet of one supernet."""

    supernet: str
    window: str
    subnet: str  # JSON
    params: int
    macs_per_image: int
    accuracy_percent: float  # top-1
    loss_nats: float  # mean cross-entropy
    images: int
    split: str


def score_window(
    subject: Subject, window: Limit, *, count: int = 200, seed: int = 0
) -> list[DistributionRow]:
    """Scores `count` different random subnets inside a window, one row for each.

    Supernets of equal spaces get equal subnets, in the same order.

    Args:
        subject: the supernet and its images.
        window: which sizes; ``Limit()`` for all.
        count: how many subnets; all of them where the window has fewer.
        seed: of the draws.

    Raises:
        ValueError: see `random_subnets`.
    """
    subnets = random_subnets(subject.space, window, subject.cost, count=count, seed=seed)
    return [
        DistributionRow(
            supernet=subject.name, window=window.name, split=subject.split, **cells(candidate)
        )
        for candidate in subject.score(subnets)
    ]


def plot(rows: Sequence[DistributionRow], kind: Kind = "histogram") -> Any:
    """A matplotlib figure: the accuracies of each supernet as a histogram, box plots or violins.

    Raises:
        ValueError: another kind.
    """
    if kind not in get_args(Kind):
        raise ValueError(f"kind must be one of {', '.join(get_args(Kind))}, got {kind!r}")
    values: dict[str, list[float]] = {}
    for row in rows:
        values.setdefault(row.supernet, []).append(row.accuracy_percent)
    counts = "/".join(str(n) for n in dict.fromkeys(map(len, values.values())))
    figure = new_figure(
        1,
        f"{counts} random subnets ({rows[0].window})\n"
        f"top-1 accuracy on {rows[0].images:,} {rows[0].split} images",
    )
    axes = figure.axes[0]
    if kind == "histogram":
        _histogram(axes, values, rows[0].images)
        legend_below(figure, columns=2)
    else:
        _boxes(axes, values, kind)
    return figure


def _histogram(axes: Any, values: dict[str, list[float]], images: int) -> None:
    edges = _edges([value for group in values.values() for value in group], images)
    for index, (name, group) in enumerate(values.items()):
        axes.hist(
            group,
            bins=edges,
            histtype="stepfilled",
            facecolor=(COLOURS[index % len(COLOURS)], 0.2),
            edgecolor=COLOURS[index % len(COLOURS)],
            ls=STYLES[index % len(STYLES)],
            lw=1.8,
            label=f"{name} (mean {sum(group) / len(group):.1f} %, lowest {min(group):.1f} %)",
        )
    axes.set_xlabel("top-1 accuracy [%]")
    axes.set_ylabel("subnets")


def _edges(accuracies: list[float], images: int) -> list[float]:
    """Bins that hold a whole number of the accuracies that `images` images allow: others would
    hold now one more of them, now one fewer, and draw a comb."""
    step = 100 / images
    low = min(accuracies)
    levels = round((max(accuracies) - low) / step) + 1
    width = math.ceil(levels / BINS)
    return [low + step * (width * i - 0.5) for i in range(math.ceil(levels / width) + 1)]


def _boxes(axes: Any, values: dict[str, list[float]], kind: str) -> None:
    positions = range(1, len(values) + 1)
    if kind == "box":
        axes.boxplot(list(values.values()), positions=positions, widths=0.5)
    else:
        for index, body in enumerate(
            axes.violinplot(list(values.values()), positions, showmedians=True)["bodies"]
        ):
            body.set_facecolor(COLOURS[index % len(COLOURS)])
    axes.set_xticks(positions, list(values))
    axes.set_ylabel("top-1 accuracy [%]")
