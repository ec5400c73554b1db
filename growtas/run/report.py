"""The outcome of a run for people: pictures of the search and the training, winners as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from growtas.base.atomic import replacing
from growtas.base.optional import require
from growtas.run.winners import Winner
from growtas.search.candidate import Axis, Candidate, Score
from growtas.search.result import SearchResult
from growtas.space.cost import format_count

_AXIS_LABEL = {"params": "parameters", "macs": "multiply-adds per image"}
_PROPOSED, _RANDOM, _BEST, _TEST = "#bcd4ee", "#c4c7cc", "#1f6fb4", "#c8324b"
# Sizes further apart than by this factor are drawn on a logarithmic axis.
_LINEAR_SPAN = 5


def plot_front(
    result: SearchResult,
    path: str | Path,
    *,
    winners: Sequence[Winner] = (),
    random_subnets: Sequence[Candidate] = (),
    axis: Axis = "params",
) -> None:
    """Draws what the search ranked by (accuracy or loss) against size, and writes it to `path`.

    Shown are all subnets that were evaluated on the search images, random ones apart from those
    that the search proposed, the Pareto front of them all, the best inside each limit, and what
    the winners had in the test (an accuracy with its 95 % interval). Where `path` ends in another
    suffix than ``.png``, matplotlib's format for it.

    Args:
        result: of the search.
        path: picture to write; its folder is created.
        winners: the limits' winners with their results on the test images.
        random_subnets: evaluated random subnets, see `growtas.search.score_random`.
        axis: "params" or "macs".

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: `axis` is neither "params" nor "macs".
    """
    result = result.including(random_subnets)
    front = result.front(axis)
    by_loss = result.config.objective == "loss"

    def measure(score: Score) -> float:
        return score.loss if by_loss else 100 * score.accuracy

    def points(candidates: Sequence[Candidate]) -> tuple[list[int], list[float]]:
        return [getattr(c, axis) for c in candidates], [measure(c.score) for c in candidates]

    figure, axes = _axes()
    sizes = [getattr(c, axis) for c in result.candidates]
    if max(sizes) > _LINEAR_SPAN * min(sizes):
        axes.set_xscale("log", subs=[2, 5])
    drawn = {candidate.subnet for candidate in random_subnets}
    proposed = [c for c in result.candidates if c.subnet not in drawn]
    dots = {"marker": "o", "ls": "", "ms": 4, "mew": 0}
    axes.plot(*points(proposed), color=_PROPOSED, label=f"{len(proposed)} of the search", **dots)
    if random_subnets:
        label = f"{len(random_subnets)} random subnets"
        axes.plot(*points(random_subnets), color=_RANDOM, label=label, **dots)
    label = f"Pareto front of all {len(result.candidates)}"
    axes.plot(*points(front), color=_BEST, lw=1.2, drawstyle="steps-post", label=label)
    best = [outcome.best for outcome in result.limits]
    images = best[0].score.count
    label = f"best inside each limit, on {images:,} search images"
    axes.plot(*points(best), "*", color=_BEST, ms=12, label=label)
    tested = {w.limit: f"{w.limit}: {w.test_accuracy:.1%}" for w in winners}
    if winners:
        label = f"the same on {winners[0].test_images:,} test images"
        tests = [winner.test_score for winner in winners]
        around = None
        if not by_loss:
            label += ", 95 % interval"
            below = [100 * (score.accuracy - score.interval[0]) for score in tests]
            above = [100 * (score.interval[1] - score.accuracy) for score in tests]
            around = [below, above]
        x = [winner.num_params if axis == "params" else winner.macs for winner in winners]
        y = [measure(score) for score in tests]
        bars = {"capsize": 3, "lw": 1.5, "ms": 5, "zorder": 4}
        axes.errorbar(x, y, around, fmt="o", color=_TEST, label=label, **bars)
    for entry, place in zip(result.limits, zip(*points(best), strict=True), strict=True):
        colour = _TEST if winners else "black"
        text = {"fontsize": 9, "color": colour, "textcoords": "offset points", "xytext": (7, -22)}
        plate = {"boxstyle": "round,pad=0.1", "fc": "white", "ec": "none", "alpha": 0.8}
        name = entry.limit.name
        axes.annotate(tested.get(name, name), place, bbox=plate, **text)
    axes.set_xlabel(_AXIS_LABEL[axis])
    axes.set_ylabel("mean loss" if by_loss else "top-1 accuracy [%]")
    axes.margins(x=0.09)  # room for the text beside the last winner
    count_ticks(axes)
    axes.legend(loc="upper right" if by_loss else "lower right", fontsize=8)
    save_figure(figure, path)


def plot_training(rows: Sequence[Mapping[str, Any]], path: str | Path) -> None:
    """Draws how the smallest and the largest subnet learned, stage by stage, and writes it, as
    `plot_front` does; `rows` are those of `growtas.training.metrics.read_metrics`."""
    figure, axes = _axes()
    seen = [row for row in rows if "smallest_accuracy" in row]
    epochs = [row["epoch"] for row in seen]
    for which, colour in (("smallest", _TEST), ("largest", _BEST)):
        values = [100 * row[f"{which}_accuracy"] for row in seen]
        axes.plot(epochs, values, ".-", color=colour, label=f"{which} subnet")
    phases = [row["phase"] for row in rows]
    starts = [i for i, phase in enumerate(phases) if i == 0 or phase != phases[i - 1]]
    for number, (start, end) in enumerate(zip(starts, [*starts[1:], len(rows)], strict=True)):
        axes.axvspan(start, end, color="#000000", alpha=0.07 if number % 2 else 0.02, lw=0)
        place = axes.get_xaxis_transform()
        axes.text((start + end) / 2, 1.01, phases[start], transform=place, ha="center", fontsize=8)
    axes.set_xlim(0, len(rows))
    axes.set_xlabel("epoch")
    axes.set_ylabel("top-1 accuracy [%] on the search images")
    axes.legend(loc="lower right", fontsize=8)
    save_figure(figure, path)


def winners_table(result: SearchResult, winners: Sequence[Winner] = ()) -> str:
    """A table with one line per limit: parameters, MACs, accuracy on the search images, with
    `winners` also on the test images, subnet.

    Accuracies of winners have their 95 % interval, in percent. The column ``random`` is the mean of
    the limit's first generation: random subnets inside it, on the search images.

    Raises:
        KeyError: `winners` lacks a limit.
    """
    header = ["limit", "parameters", "MACs", "random", "search acc."]
    header += ["test acc.", "subnet"] if winners else ["subnet"]
    tests = {winner.limit: winner.test_score for winner in winners}
    rows = []
    for outcome in result.limits:
        random = outcome.random_accuracy
        row = [outcome.limit.name, _short(outcome.params), _short(outcome.macs)]
        row += ["" if random is None else f"{random:.2%}", _with_interval(outcome.score)]
        row += [_with_interval(tests[outcome.limit.name])] if winners else []
        rows.append([*row, str(outcome.subnet)])
    return table(header, rows)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns of text, aligned: the first and the last to the left, those between (numbers) to the
    right.

    Raises:
        ValueError: a row has not as many cells as the header.
    """
    for row in rows:
        if len(row) != len(header):
            raise ValueError(f"expected {len(header)} cells ({', '.join(header)}), got {list(row)}")
    widths = [max(len(line[i]) for line in (header, *rows)) for i in range(len(header))]
    last = len(header) - 1

    def line(cells: Sequence[str]) -> str:
        padded = (
            cell.rjust(width) if 0 < i < last else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        return "  ".join(padded).rstrip()

    return "\n".join([line(header), "  ".join("-" * width for width in widths), *map(line, rows)])


def _short(count: int) -> str:
    """Four significant digits and a unit; exact counts are in the result."""
    digits = max(0, len(str(count)) - 4)
    return format_count(round(count, -digits))


def _with_interval(score: Score) -> str:
    low, high = (100 * end for end in score.interval)
    return f"{score.accuracy:.2%} ({low:.1f}-{high:.1f})"


def _axes() -> tuple[Any, Any]:
    """An empty figure and its axes."""
    figure = require("matplotlib.figure", "train").Figure(figsize=(7.0, 4.5), layout="constrained")
    axes = figure.add_subplot()
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def count_ticks(axes: Any) -> None:
    """Ticks of the sizes as 20K or 1.5M, on a logarithmic axis those between the powers too."""
    formatter = require("matplotlib.ticker", "train").FuncFormatter
    label = formatter(lambda value, _: format_count(round(value)))
    axes.xaxis.set_major_formatter(label)
    if axes.get_xscale() == "log":
        axes.xaxis.set_minor_formatter(label)


def save_figure(figure: Any, path: str | Path) -> None:
    """Writes a figure in one piece: PNG, or what the ending of its name says."""
    with replacing(path) as file:
        figure.savefig(file, format=Path(path).suffix[1:] or "png", dpi=150)
