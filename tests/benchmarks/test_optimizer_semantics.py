"""The study of `optim.inactive`: what it computes, and that it runs."""

import csv
import math
import sys
from dataclasses import replace

import pytest

from benchmarks.studies import optimizer_semantics as study


def test_published_factors_are_the_sums_of_the_recipes():
    """Against the closed form: a linear warm-up, then the cosine, constant within an epoch."""
    computed = {v: y for v, q, _, y in study.published() if q.startswith("log")}
    for name, transition in zip(study.PUBLISHED, (250, 225, 200), strict=True):
        low = 1e-7 if name.endswith("base") else 1e-5
        warm = sum(1e-6 + e * (1e-3 - 1e-6) / 20 for e in range(20))
        cosine = sum(
            low + (1e-3 - low) * (1 + math.cos(math.pi * e / 500)) / 2
            for e in range(20, transition)
        )
        expected = -(warm + cosine) * 1251 * 0.05
        # One epoch at the peak rate makes 0.06; the original's rates come an epoch late.
        assert computed[name] == pytest.approx(expected, abs=0.07)
        assert -12.3 < computed[name] < -10.2


def test_the_study_writes_its_numbers_and_its_figure(tmp_path, monkeypatch):
    short = ("optim.warmup_epochs=0", "data.batch_size=128", "optim.betas=[0.5, 0.999]")
    dense, _, reset, _ = study.VARIANTS
    variants = [replace(v, overrides=(*v.overrides, *short)) for v in (dense, reset)]
    monkeypatch.setattr(study, "VARIANTS", variants)
    monkeypatch.setattr(study, "AFTER", 1)
    monkeypatch.setattr(sys, "argv", ["study", "--epochs", "4", "--out", str(tmp_path)])
    study.main()
    with open(tmp_path / "optimizer_semantics.csv") as file:
        rows = list(csv.DictReader(file))
    first = {}
    for row in rows:
        first.setdefault((row["variant"], row["quantity"]), float(row["value"]))
    assert first["dense", "rms over initial rms"] == 1.0
    # Nothing is new to a fresh AdamW's first step; the kept step count makes it larger.
    assert first["dense, reset_moments", "update over lr"] == pytest.approx(1.0, abs=0.01)
    assert first["dense", "update over lr"] > 1.5
    assert "<svg" in (tmp_path / "optimizer_semantics.svg").read_text()
