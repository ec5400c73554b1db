"""The outcome of a search for people: accuracy against size as a picture, winners as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from growtas.atomic import replacing
from growtas.cost import format_count
from growtas.search.candidate import Axis, Candidate, pareto_front
from growtas.search.result import SearchResult

_AXIS_LABEL = {"params": "parameters", "macs": "multiply-adds per image"}


def plot_front(
    result: SearchResult,
    path: str | Path,
    *,
    random_subnets: Sequence[Candidate] = (),
    axis: Axis = "params",
) -> None:
    """Draws what the search ranked by (accuracy or loss) against size, and writes it to `path`.

    Shown are the Pareto front of everything the search evaluated, the winner inside each limit, and
    random subnets for comparison. Where `path` ends in another suffix than ``.png``, matplotlib's
    format for it.

    Args:
        result: of the search.
        path: picture to write; its folder is created.
        random_subnets: evaluated random subnets, see `growtas.search.score_random`.
        axis: "params" or "macs".

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: `axis` is neither "params" nor "macs".
    """
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import FuncFormatter
    except ImportError:
        raise ImportError("drawing a front needs matplotlib: pip install matplotlib") from None
    objective = result.config.objective
    front = pareto_front(result.candidates, axis, objective)

    def points(candidates: Sequence[Candidate]) -> tuple[list[int], list[float]]:
        values = [
            c.score.loss if objective == "loss" else 100 * c.score.accuracy for c in candidates
        ]
        return [getattr(c, axis) for c in candidates], values

    figure = Figure(figsize=(7.0, 4.5), layout="constrained")
    axes = figure.add_subplot()
    if random_subnets:
        label = f"{len(random_subnets)} random subnets"
        axes.plot(*points(random_subnets), "o", color="#9aa0a6", ms=4, label=label)
    label = f"Pareto front of {len(result.candidates)} evaluated subnets"
    axes.plot(*points(front), ".-", color="#1f6fb4", drawstyle="steps-post", label=label)
    winners = [outcome.best for outcome in result.limits]
    axes.plot(*points(winners), "*", color="#d1495b", ms=13, label="best inside each limit")
    for outcome, x, y in zip(result.limits, *points(winners), strict=True):
        axes.annotate(
            outcome.limit.name, (x, y), xytext=(4, -12), textcoords="offset points", fontsize=8
        )
    axes.set_xlabel(_AXIS_LABEL[axis])
    measure = "mean loss" if objective == "loss" else "top-1 accuracy [%]"
    axes.set_ylabel(f"{measure} on {winners[0].score.count:,} search images")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: format_count(round(value))))
    axes.grid(alpha=0.25)
    axes.legend(loc="upper right" if objective == "loss" else "lower right", fontsize=8)
    with replacing(path) as file:
        figure.savefig(file, format=Path(path).suffix[1:] or "png", dpi=150)


def winners_table(result: SearchResult, test_accuracy: Mapping[str, float] | None = None) -> str:
    """A table with one line per limit: parameters, MACs, accuracy on the search images, subnet.

    Args:
        result: of the search.
        test_accuracy: accuracy (0 to 1) on the test images by name of the limit, for a column of
            its own.

    Raises:
        KeyError: `test_accuracy` lacks a limit.
    """
    header = ["limit", "parameters", "MACs", "search acc."]
    header += ["subnet"] if test_accuracy is None else ["test acc.", "subnet"]
    rows = []
    for outcome in result.limits:
        row = [outcome.limit.name, _short(outcome.params), _short(outcome.macs)]
        row.append(f"{outcome.score.accuracy:.2%}")
        if test_accuracy is not None:
            row.append(f"{test_accuracy[outcome.limit.name]:.2%}")
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
