"""One row of figures per epoch, as CSV, as JSON lines and (if asked) for TensorBoard."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

from growtas.base.atomic import naming, write_atomically
from growtas.base.optional import require

FIELDS = (
    "epoch",  # epochs finished
    "step",  # optimizer steps finished
    "phase",  # name of the phase the epoch ended in
    "lr",  # learning rate of the last step
    "train_loss",  # mean objective
    "train_accuracy",  # of the sampled subnets, on augmented images, in [0, 1]
    "smallest_accuracy",  # of the smallest subnet of the space on the search split, in [0, 1]
    "smallest_loss",  # its mean cross-entropy there
    "largest_accuracy",  # likewise of the largest subnet
    "largest_loss",
    "images_per_second",  # training only, over all processes
    "unreadable",  # different training images that could not be read and were replaced
    "seconds",  # of the epoch, evaluation included; of an interrupted one, since it goes on
    "note",  # what the strategy had to tell at its end, such as why a stage begins
)


class MetricsLog:
    """Writes `metrics.csv` and `metrics.jsonl` of a run; figures without a value stay empty.

    Args:
        folder: where the files go.
        finished: epochs that a resumed run has behind it; later rows, of epochs that are trained
            again, are dropped. 0 starts new files.
        tensorboard: also write TensorBoard event files to `folder`/tensorboard.
    """

    def __init__(self, folder: Path, finished: int = 0, tensorboard: bool = False) -> None:
        self._csv = folder / "metrics.csv"
        self._jsonl = folder / "metrics.jsonl"
        rows = [row for row in read_metrics(self._jsonl) if row["epoch"] <= finished]
        for path, text in self._texts(rows, header=True):
            write_atomically(path, text)
        self._board = None
        if tensorboard:
            self._board = board_writer()(str(folder / "tensorboard"), purge_step=finished + 1)

    def write(self, row: dict[str, Any]) -> None:
        """Append one row; ValueError for a figure that is not in `FIELDS`."""
        unknown = set(row) - set(FIELDS)
        if unknown:
            raise ValueError(f"unknown figures {sorted(unknown)}; known: {', '.join(FIELDS)}")
        for path, text in self._texts([row], header=False):
            with naming(path), open(path, "a", newline="") as file:
                file.write(text)
        if self._board is not None:
            for name, value in row.items():
                if isinstance(value, (int, float)) and name != "epoch":
                    self._board.add_scalar(name, value, row["epoch"])
            self._board.flush()

    def close(self) -> None:
        """Close the TensorBoard file."""
        if self._board is not None:
            self._board.close()

    def _texts(self, rows: list[dict[str, Any]], header: bool) -> list[tuple[Path, str]]:
        """Rows in the form of each file."""
        table = io.StringIO()
        writer = csv.DictWriter(table, FIELDS, restval="", lineterminator="\n")
        if header:
            writer.writeheader()
        writer.writerows(rows)
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        return [(self._jsonl, lines), (self._csv, table.getvalue())]


def board_writer() -> Any:
    """TensorBoard's writer; ImportError without the package."""
    return require("torch.utils.tensorboard", "dev").SummaryWriter


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Rows of a `metrics.jsonl`; none if the file is missing. A last line that a crash cut short
    (it lacks its end of line) is left out."""
    if not path.exists():
        return []
    lines = path.read_text().splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]
