"""The study of the demo compares what it says, and its table says what the runs gave."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from benchmarks.studies import growtas_mnist as study


def test_methods_differ_in_the_strategy_only() -> None:
    recipes = [study.recipe(method, 2, Path("r")).to_dict() for method in study.METHODS]
    strategies = [values.pop("strategy") for values in recipes]
    assert strategies[0] == {"name": "uniform"}
    assert strategies[1]["name"] == "growtas"
    assert "plus" not in strategies[1]
    for values in recipes:
        assert values["train"]["seed"] == values["data"]["split_seed"] == 2
        values.pop("output")
    assert recipes[0] == recipes[1]


def test_the_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page, rows = tmp_path / "page.md", tmp_path / "rows.csv"
    page.write_text("before\n<!-- growtas_mnist -->\nold\n<!-- /growtas_mnist -->\nafter\n")
    monkeypatch.setattr(study, "PAGE", page)
    monkeypatch.setattr(study, "CSV", rows)
    where = {"commit": "abc", "torch": "2.14", "hardware": "a CPU"}
    study.report(
        [
            {
                "method": method,
                "seed": seed,
                "epochs": 3,
                "provenance": where,
                "measures": [
                    {"group": "8K", "subnet": name, "params": 1, "accuracy": value, "images": 9}
                    for name, value in (("a", accuracy), ("b", accuracy + 0.02))
                ],
            }
            for method, accuracies in (("uniform", (0.5, 0.6)), ("growtas", (0.6, 0.69)))
            for seed, accuracy in enumerate(accuracies)
        ]
    )
    text = page.read_text()
    assert "| 8K | 56.00 ± 7.07 | 65.50 ± 6.36 | **+9.50 ± 6.35 (2/2)** |" in text
    assert "old" not in text
    assert text.startswith("before\n")
    lines = list(csv.DictReader(rows.open()))
    assert len(lines) == 8
    assert {line["commit"] for line in lines} == {"abc"}
