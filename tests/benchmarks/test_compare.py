"""Rows of two commits beside each other."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import compare, rows
from benchmarks.runner import Rows


def write(path: Path, seconds: dict[str, list[float]]) -> Path:
    """A file with a row for each number: the runs of each variant."""
    book = rows.Book("cpu", path)
    table = Rows(book, dtype="float32", batch=1, space="", subnet="", task="call-linear")
    for variant, runs in seconds.items():
        for run in runs:
            table.add(variant, "wall_time", "s", [run])
        table.add(variant, "rate", "1/s", [1.0])
    return path


def test_the_fastest_runs_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = write(tmp_path / "before.csv", {"dense": [3e-5, 1e-5], "forward": [4e-5], "old": [1]})
    after = write(tmp_path / "after.csv", {"dense": [9e-5, 2e-5], "forward": [4e-5], "new": [1]})
    found = compare.ratios(rows.read(before), rows.read(after))
    assert [(case[1], ratio) for case, ratio in found.items()] == [("dense", 2.0), ("forward", 1.0)]
    assert compare.main([str(before), str(after)]) == 1
    said = capsys.readouterr().out
    assert said.startswith("2.000        10.0 us  call-linear dense")
    assert "1 of 2 cases" in said
    assert compare.main([str(before), str(after), "--allowed", "2"]) == 0


def test_files_without_a_common_case(tmp_path: Path) -> None:
    files = [write(tmp_path / name, {name: [1.0]}) for name in ("before", "after")]
    with pytest.raises(SystemExit):
        compare.main([str(file) for file in files])
