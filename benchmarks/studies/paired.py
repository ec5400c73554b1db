"""What the runs of a study say: means, paired differences, a chart. Nothing is left out."""

from __future__ import annotations

import csv
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.studies.page import fill

METHODS = ("uniform", "growtas", "growtas+")
NAMES = {"uniform": "uniform", "growtas": "GrowTAS", "growtas+": "GrowTAS+"}
PAIRS = (("growtas", "uniform"), ("growtas+", "uniform"), ("growtas+", "growtas"))
COLOURS = {"growtas": "#1f6fb4", "growtas+": "#d1495b"}

# Rows of the tables: measure, window, and which images count.
ROWS = (
    ("smallest", "", "held_out_accuracy"),
    ("random", "40K-65K", "held_out_accuracy"),
    ("random", "110K-150K", "held_out_accuracy"),
    ("random", "220K-300K", "held_out_accuracy"),
    ("largest", "", "held_out_accuracy"),
    ("searched", "40K-65K", "test_accuracy"),
    ("searched", "110K-150K", "test_accuracy"),
    ("searched", "220K-300K", "test_accuracy"),
)

# Two-sided 95 % quantiles of Student's t by degrees of freedom.
_T = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}


class Difference(NamedTuple):
    """Of two methods on the same seeds, in the unit of the values."""

    mean: float
    half_width: float  # of the 95 % t interval; NaN for one seed
    positive: int  # seeds on which the first method is better
    seeds: int


def paired(first: dict[int, float], second: dict[int, float]) -> Difference:
    """`first` minus `second`, seed by seed, over the seeds that both have (1 to 10 of them).

    Raises:
        ValueError: there is no common seed, or there are more than 10.
    """
    seeds = sorted(first.keys() & second.keys())
    if not 1 <= len(seeds) <= 10:
        raise ValueError(f"1 to 10 common seeds are needed, got {len(seeds)}")
    values = [first[seed] - second[seed] for seed in seeds]
    half = math.nan
    if len(values) > 1:
        half = _T[len(values) - 1] * statistics.stdev(values) / math.sqrt(len(values))
    return Difference(statistics.fmean(values), half, sum(v > 0 for v in values), len(values))


def by_seed(
    documents: Sequence[dict[str, Any]], setting: str, method: str, row: tuple[str, str, str]
) -> dict[int, float]:
    """Percent accuracy of each seed; the mean over the subnets where a measure has several."""
    measure, window, images = row
    return {
        document["seed"]: 100
        * statistics.fmean(
            m[images]
            for m in document["measures"]
            if (m["measure"], m["window"]) == (measure, window)
        )
        for document in documents
        if (document["setting"], document["method"]) == (setting, method)
    }


def report(documents: Sequence[dict[str, Any]], docs: Path) -> None:
    """Writes the CSV and the chart under ``docs/evidence`` and the tables into docs/evidence.md."""
    folder = docs / "evidence"
    folder.mkdir(parents=True, exist_ok=True)
    _write_csv(documents, folder / "growtas_digits.csv")
    _draw(documents, folder / "growtas_digits.png")
    fill(docs / "evidence.md", "growtas_digits", tables(documents))


def tables(documents: Sequence[dict[str, Any]]) -> str:
    """Markdown: for each setting the means, and the paired differences."""
    parts = []
    for setting in dict.fromkeys(document["setting"] for document in documents):
        some = [document for document in documents if document["setting"] == setting]
        steps = sorted({document["steps"] for document in some})
        seeds = len({document["seed"] for document in some})
        lines = [
            f"**{setting}**: {some[0]['epochs']} epochs, {steps[0]:,} to {steps[-1]:,} steps, "
            f"{seeds} seeds",
            "",
            "| accuracy in % | uniform | GrowTAS | GrowTAS+ | "
            + " | ".join(f"{NAMES[a]} - {NAMES[b]}" for a, b in PAIRS)
            + " |",
            "|---" * 7 + "|",
        ]
        for row in ROWS:
            values = {method: by_seed(some, setting, method, row) for method in METHODS}
            cells = [spread(values[method]) for method in METHODS]
            cells += [shown(paired(values[a], values[b])) for a, b in PAIRS]
            lines.append(f"| {' '.join(row[:2]).strip()} | {' | '.join(cells)} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def spread(values: dict[int, float]) -> str:
    """Mean and standard deviation over seeds."""
    deviation = statistics.stdev(values.values()) if len(values) > 1 else math.nan
    return f"{statistics.fmean(values.values()):.2f} ± {deviation:.2f}"


def shown(difference: Difference) -> str:
    """A difference with its interval, bold where that leaves zero out."""
    mean, half, positive, count = difference
    text = f"{mean:+.2f} ± {half:.2f} ({positive}/{count})"
    return f"**{text}**" if abs(mean) > half else text


def _write_csv(documents: Sequence[dict[str, Any]], path: Path) -> None:
    lines = []
    for document in documents:
        facts = {key: document[key] for key in ("setting", "method", "seed", "epochs", "steps")}
        where = {key: document["provenance"][key] for key in ("commit", "torch", "hardware")}
        lines += [{**facts, **measure, **where} for measure in document["measures"]]
    write_rows(lines, path)


def write_rows(lines: Sequence[dict[str, Any]], path: Path) -> None:
    """A CSV file of rows with the same columns; numbers with six digits."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(lines[0]), lineterminator="\n")
        writer.writeheader()
        for line in lines:
            rounded = {k: f"{v:.6g}" if isinstance(v, float) else v for k, v in line.items()}
            writer.writerow(rounded)


def _draw(documents: Sequence[dict[str, Any]], path: Path) -> None:
    """Differences to uniform sampling: one dot per seed, the mean and its 95 % interval."""
    from matplotlib.figure import Figure

    settings = list(dict.fromkeys(document["setting"] for document in documents))
    figure = Figure(figsize=(5.2 * len(settings), 4.6), layout="constrained")
    axes = figure.subplots(1, len(settings), sharey=True, squeeze=False)[0]
    for axis, setting in zip(axes, settings, strict=True):
        base = {row: by_seed(documents, setting, "uniform", row) for row in ROWS}
        for offset, (method, colour) in zip((-0.15, 0.15), COLOURS.items(), strict=True):
            for place, row in enumerate(ROWS):
                values = by_seed(documents, setting, method, row)
                mean, half, _, _ = paired(values, base[row])
                dots = [values[seed] - base[row][seed] for seed in values.keys() & base[row].keys()]
                label = NAMES[method] if place == 0 else None
                axis.plot(dots, [place + offset] * len(dots), ".", color=colour, alpha=0.4)
                axis.errorbar(
                    mean, place + offset, xerr=half, fmt="o", color=colour, capsize=3, label=label
                )
        axis.axvline(0, color="#555555", lw=0.8)
        axis.set_yticks(range(len(ROWS)), [" ".join(row[:2]).strip() for row in ROWS])
        axis.set_xlabel("accuracy minus that of uniform sampling [points]")
        axis.set_title(setting)
        axis.grid(axis="x", alpha=0.25)
    axes[0].invert_yaxis()
    axes[0].legend(fontsize=8)
    figure.savefig(path, dpi=130)
