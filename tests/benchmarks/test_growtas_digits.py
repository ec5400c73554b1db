"""The study compares what it says it compares, and its report says what the runs gave."""

from __future__ import annotations

import csv
import json
from dataclasses import asdict
from pathlib import Path

import pytest

from benchmarks.studies import growtas_digits as study
from benchmarks.studies import paired
from growtas.schedule import total_epochs
from growtas.search import model_cost


@pytest.mark.parametrize("setting", study.STUDY)
def test_methods_differ_in_the_strategy_only(setting: str) -> None:
    seen = []
    for method in paired.METHODS:
        recipe = study.Job(setting, method, 3).recipe(Path("runs"))
        space = recipe.build_space()
        strategy = recipe.build_strategy(space)
        assert total_epochs(strategy, recipe.train.epochs) == study.SETTINGS[setting].epochs
        assert recipe.train.seed == recipe.data.split_seed == recipe.search.seed == 3
        phases = strategy.phases(space, recipe.train.epochs)
        seen.append([(phase.space.size < space.size, phase.freeze is not None) for phase in phases])
    assert seen == [
        [(False, False)],
        [(True, False), (False, False)],
        [(True, False), (False, False), (True, True)],
    ]
    others = [
        study.Job(setting, method, 3).recipe(Path("r")).to_dict() for method in paired.METHODS
    ]
    for values in others:
        values.pop("strategy"), values.pop("output"), values["train"].pop("epochs")
    assert others[0] == others[1] == others[2]


def test_the_fixed_subnets_are_in_their_window_and_the_same_every_time() -> None:
    model = study.Job("full", "uniform", 0).recipe(Path("r"))
    model = model.build_model(in_chans=1, image_size=8, num_classes=10)
    cost = model_cost(model)
    for window in study.WINDOWS:
        subnets = study.fixed_subnets(model.space, window, cost)
        assert len(set(subnets)) == study.RANDOM_SUBNETS
        assert all(window.admits(*cost(subnet)) for subnet in subnets)
        assert subnets == study.fixed_subnets(model.space, window, cost)


def result(folder: Path, job: study.Job, accuracy: float) -> None:
    """A finished run in which every accuracy is `accuracy`."""
    measures = [
        {
            "measure": measure,
            "window": window,
            "subnet": "a",
            "params": 1,
            "test_accuracy": accuracy + shift,
            "held_out_accuracy": None if measure == "searched" else accuracy + shift,
        }
        for measure, window, _ in paired.ROWS
        for shift in ((-0.01, 0.01) if measure == "random" else (0.0,))
    ]
    document = {
        **asdict(job),
        "epochs": 36,
        "steps": 100 + job.seed,
        "provenance": {"commit": "c", "torch": "t", "hardware": "h"},
        "measures": measures,
        "recipe": job.recipe(folder).to_dict(),
    }
    (folder / f"{job.name}.json").write_text(json.dumps(document))


def test_a_paired_difference_has_the_t_interval() -> None:
    first, second = {0: 5.0, 1: 7.0, 2: 9.0, 9: 0.0}, {0: 4.0, 1: 5.0, 2: 6.0, 8: 1.0}
    difference = paired.paired(first, second)
    # Differences 1, 2, 3: standard deviation 1, t(2) = 4.303.
    assert difference == pytest.approx((2.0, 4.303 / 3**0.5, 3, 3))
    with pytest.raises(ValueError, match="common seeds are needed, got 0"):
        paired.paired({0: 1.0}, {1: 1.0})


def test_the_report_holds_every_run_and_leaves_the_page_around_it(tmp_path: Path) -> None:
    jobs = study.wanted(["short"], (0, 1))
    by_method = {"uniform": (0.80, 0.82), "growtas": (0.81, 0.83), "growtas+": (0.90, 0.80)}
    for job in jobs:
        result(tmp_path, job, by_method[job.method][job.seed])
    (tmp_path / "evidence.md").write_text(
        "before\n<!-- growtas_digits -->\nold\n<!-- /growtas_digits -->\nafter\n"
    )
    documents = study.finished(tmp_path, jobs)
    paired.report(documents, tmp_path)
    page = (tmp_path / "evidence.md").read_text()
    assert page.startswith("before\n")
    assert page.endswith("\nafter\n")
    assert "old" not in page
    assert "36 epochs, 100 to 101 steps, 2 seeds" in page
    line = next(line for line in page.splitlines() if line.startswith("| random 40K-65K"))
    cells = [cell.strip() for cell in line.split("|")[2:-1]]
    assert cells[:3] == ["81.00 ± 1.41", "82.00 ± 1.41", "85.00 ± 7.07"]
    assert cells[3] == "**+1.00 ± 0.00 (2/2)**"
    assert cells[4].startswith("+4.00 ± ")
    assert cells[4].endswith("(1/2)")
    rows = list(csv.DictReader((tmp_path / "evidence/growtas_digits.csv").open()))
    assert len(rows) == 6 * (5 + 3 * 2)
    assert {row["commit"] for row in rows} == {"c"}
    assert (tmp_path / "evidence/growtas_digits.png").read_bytes().startswith(b"\x89PNG")


def test_results_of_other_settings_are_not_mixed_in(tmp_path: Path) -> None:
    job = study.Job("short", "uniform", 0)
    assert study.finished(tmp_path, [job]) == []
    result(tmp_path, job, 0.9)
    assert len(study.finished(tmp_path, [job])) == 1
    path = tmp_path / f"{job.name}.json"
    document = json.loads(path.read_text())
    document["recipe"]["optim"]["lr"] = 1.0
    path.write_text(json.dumps(document))
    with pytest.raises(ValueError, match="is of other settings"):
        study.finished(tmp_path, [job])
