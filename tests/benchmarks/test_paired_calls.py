"""Two checkouts take turns, and what comes out is stored."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import paired_calls, rows


def test_a_checkout_beside_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    here = str(rows.ROOT)
    options = ["--cases", "layer_norm, dense", "gradient_norm", "--launches", "2", "--turns", "4"]
    paired_calls.main([here, here, *options, "--out", str(tmp_path)])
    (file,) = tmp_path.glob("cpu-*.csv")
    found = rows.read(file)
    assert [row.task for row in found] == ["call-layer_norm, dense", "call-gradient_norm"]
    commit = rows.git_state()[0]
    for row in found:
        assert (row.variant, row.metric, row.n) == (f"{commit} / {commit}", "ratio", 2)
        assert row.threads == 1
        assert 0.2 < row.median < 5.0
    assert "layer_norm, dense" in capsys.readouterr().out


def test_a_slower_checkout_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    class Worker:
        names = ("one", "other")

        def __init__(self, checkout: Path) -> None:
            self.cost = 3e-3 if checkout.name == "after" else 2e-3

        def seconds(self, name: str, calls: int) -> float:
            return self.cost * calls

        def close(self) -> None:
            pass

    monkeypatch.setattr(paired_calls, "Worker", Worker)
    checkouts = [Path("before"), Path("after")]
    assert paired_calls.ratios(checkouts, ["on*"], turns=3) == {"one": pytest.approx(1.5)}


def test_a_checkout_without_growtas_is_told(tmp_path: Path) -> None:
    # Not the growtas that is installed, in its place.
    with pytest.raises(RuntimeError, match=f"the process on {tmp_path} ended"):
        paired_calls.Worker(tmp_path)
