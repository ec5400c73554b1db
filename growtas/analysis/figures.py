"""The one place where an analysis writes: rows as CSV, figures as PNG, in one look."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from growtas.base.atomic import write_atomically
from growtas.base.config import ConfigError
from growtas.base.optional import require
from growtas.run.report import count_ticks

# Okabe and Ito's colours, distinguishable with every common colour blindness; the yellow, too pale
# for lines on white, is left out. Markers and line styles repeat what colour says.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
STYLES = ("-", "--", "-.", ":")


class Output(NamedTuple):
    """Where one analysis leaves its CSV and its PNG."""

    csv: Path
    png: Path

    @classmethod
    def prepare(cls, folder: str | Path, stem: str, *, overwrite: bool) -> Output:
        """The two paths in `folder`, checked before any work.

        Raises:
            ConfigError: they hold an earlier result and `overwrite` is False, or `folder` is no
                folder.
            ImportError: matplotlib is missing.
        """
        require("matplotlib.figure", "train")
        if Path(folder).exists() and not Path(folder).is_dir():
            raise ConfigError(f"--output {str(folder)!r} is not a folder")
        output = cls(Path(folder) / f"{stem}.csv", Path(folder) / f"{stem}.png")
        found = [str(path) for path in output if path.exists()]
        if found and not overwrite:
            raise ConfigError(
                f"{' and '.join(found)} exist: add --overwrite, or --output FOLDER to write "
                "elsewhere"
            )
        return output


def write_csv(rows: Sequence[Any], path: str | Path) -> None:
    """Writes named tuples of one type: a header of their field names, then one line for each.

    Raises:
        ValueError: there are no rows.
    """
    if not rows:
        raise ValueError("there are no rows to write")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(rows[0]._fields)
    writer.writerows(rows)
    write_atomically(path, text.getvalue())


def new_figure(panels: int, title: str, *, width: float = 6.0, height: float = 4.5) -> Any:
    """A figure with `panels` panels side by side on a common y axis; the title says n and split."""
    figure = require("matplotlib.figure", "train").Figure(
        figsize=(width * (0.25 + 0.75 * panels), height), layout="constrained"
    )
    figure.suptitle(title, fontsize=10)
    for axes in figure.subplots(1, panels, sharey=True, squeeze=False)[0]:
        axes.grid(alpha=0.25)
    return figure


def legend_below(figure: Any, columns: int) -> None:
    """One legend for all panels, below them: it hides no data."""
    handles: dict[str, Any] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=columns, fontsize=8)


def count_axis(axes: Any, label: str) -> None:
    """Labels an x axis of parameters or multiply-adds, its ticks with a unit of 1000."""
    axes.set_xlabel(label)
    axes.xaxis.set_major_locator(require("matplotlib.ticker", "train").MaxNLocator(6))
    count_ticks(axes)
