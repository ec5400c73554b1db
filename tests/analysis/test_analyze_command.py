"""``growtas analyze``: what each command leaves, and what it refuses."""

from __future__ import annotations

import csv
import json
import shutil
import sys

import pytest
import tiny_recipe

from growtas.analysis.distribution import DistributionRow
from growtas.analysis.extend_vs_crop import ExtendCropRow
from growtas.analysis.limits import LimitRow
from growtas.analysis.similarity import SimilarityRow
from growtas.cli import main
from growtas.run.folder import Run
from growtas.search import SearchResult
from growtas.space import Subnet

pytest.importorskip("timm")
pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two trained and searched runs; not to be changed."""
    folder = tmp_path_factory.mktemp("analysis")
    for name, *overrides in (("growtas",), ("uniform", "strategy={name: uniform}")):
        run = Run.start(tiny_recipe.load(folder / name, *overrides), say=str)
        run.train()
        run.search()
    return [str(folder / "growtas"), str(folder / "uniform")]


@pytest.fixture
def copy(runs, tmp_path):
    """A copy of the first run that a test may change."""
    shutil.copytree(runs[0], tmp_path / "growtas")
    return tmp_path / "growtas"


def read(path, row_type) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        reader = csv.DictReader(file)
        rows = list(reader)
    assert tuple(reader.fieldnames) == row_type._fields
    assert all(None not in row.values() for row in rows)
    return rows


def subnet_of(row: dict[str, str]) -> Subnet:
    return Subnet.from_dict(json.loads(row["subnet"]))


def fails(arguments: list[str], capsys) -> str:
    capsys.readouterr()
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert captured.err.startswith(f"growtas analyze {arguments[1]}: ")
    return captured.err


class TestResults:
    def test_distribution(self, runs, tmp_path, capsys, png_size):
        arguments = ["analyze", "distribution", *runs, "--window", "1500-2500", "--count", "6"]
        assert main([*arguments, "--output", str(tmp_path), "--kind", "box"]) == 0
        assert str(tmp_path / "distribution.csv") in capsys.readouterr().out
        png_size(tmp_path / "distribution.png")
        rows = read(tmp_path / "distribution.csv", DistributionRow)
        assert [row["supernet"] for row in rows] == ["growtas"] * 6 + ["uniform"] * 6
        for folder in runs:
            run = Run.open(folder, say=str)
            evaluator = run.evaluator("search")
            for row in (row for row in rows if row["supernet"] == run.folder.name):
                score = evaluator.score(subnet_of(row))
                assert float(row["accuracy_percent"]) == 100 * score.accuracy
                assert 1500 <= int(row["params"]) <= 2500

    def test_limits_of_the_search(self, runs, tmp_path, png_size):
        assert main(["analyze", "limits", *runs, "--split", "test", "--output", str(tmp_path)]) == 0
        png_size(tmp_path / "limits.png")
        rows = read(tmp_path / "limits.csv", LimitRow)
        expected = [
            (folder, entry.limit.name, entry.subnet)
            for folder in runs
            for entry in SearchResult.load(f"{folder}/search.json").limits
        ]
        assert [(row["limit"], subnet_of(row)) for row in rows] == [e[1:] for e in expected]
        scorers = {folder: Run.open(folder, say=str).evaluator("test") for folder in runs}
        for row, (folder, _, subnet) in zip(rows, expected, strict=True):
            score = scorers[folder].score(subnet)
            assert float(row["accuracy_percent"]) == 100 * score.accuracy
            assert (row["chosen_by"], row["split"]) == ("search", "test")

    def test_limits_by_random_subnets_are_chosen_on_search_images(self, runs, tmp_path):
        arguments = ["analyze", "limits", *runs, "--limits", "1800,2000-3000", "--count", "7"]
        chosen = []
        for split in ("search", "test"):
            folder = tmp_path / split
            assert main([*arguments, "--split", split, "--output", str(folder)]) == 0
            rows = read(folder / "limits.csv", LimitRow)
            assert {row["split"] for row in rows} == {split}
            assert {row["chosen_by"] for row in rows} == {"best of 7 random subnets"}
            chosen.append([row["subnet"] for row in rows])
        assert chosen[0] == chosen[1]

    def test_similarity_of_supernets(self, runs, tmp_path, png_size):
        arguments = ["analyze", "similarity", *runs, "--count", "3", "--images", "20"]
        assert main([*arguments, "--output", str(tmp_path)]) == 0
        png_size(tmp_path / "similarity.png")
        rows = read(tmp_path / "similarity.csv", SimilarityRow)
        assert {(row["supernet"], row["relation"]) for row in rows} == {
            (name, relation)
            for name in ("growtas", "uniform")
            for relation in ("larger", "smaller")
        }
        assert {row["token_pairs"] for row in rows} == {str(20 * 4)}
        assert all(-1 <= float(row["cosine_mean"]) <= 1 + 1e-6 for row in rows)

    def test_extend_vs_crop_and_its_similarity(self, copy, capsys, png_size):
        arguments = ["analyze", "extend-vs-crop", str(copy), "--count", "5", "train.epochs=1"]
        assert main(arguments) == 0
        folder = copy / "extend-vs-crop"
        png_size(folder / "extend-vs-crop.png")
        rows = read(folder / "extend-vs-crop.csv", ExtendCropRow)
        assert [row["role"] for row in rows] == (["trained"] + ["derived"] * 5) * 2
        for row, part in ((rows[3], "small"), (rows[6], "large")):
            score = Run.open(folder / part, say=str).evaluate(subnet_of(row), "search")
            assert float(row["accuracy_percent"]) == 100 * score.accuracy

        (copy / "supernet.safetensors").unlink()  # plays no part
        similarity = ["analyze", "similarity", str(copy), "--source", "extend-vs-crop"]
        assert main([*similarity, "--images", "10"]) == 0
        compared = read(copy / "analysis" / "similarity.csv", SimilarityRow)
        for panel, relation in (("extend", "larger"), ("crop", "smaller")):
            trained, *derived = (row["subnet"] for row in rows if row["panel"] == panel)
            mine = [row for row in compared if row["relation"] == relation]
            assert {row["reference"] for row in mine} == {trained}
            assert {row["subnet"] for row in mine} == set(derived)

        # Trainings are work: neither repeated nor deleted unless told.
        assert "--resume" in fails(arguments, capsys)
        weights = (folder / "small" / "checkpoint.pt").stat().st_mtime_ns
        assert main([*arguments[:-1], "train.epochs=1", "--resume", "--seed", "1"]) == 0
        assert (folder / "small" / "checkpoint.pt").stat().st_mtime_ns == weights
        assert read(folder / "extend-vs-crop.csv", ExtendCropRow)[1] != rows[1]

    def test_training_again_removes_what_was_drawn_of_the_old_supernet(self, copy):
        assert main(["analyze", "distribution", str(copy), "--count", "2"]) == 0
        assert (copy / "analysis" / "distribution.png").is_file()
        Run.start(Run.open(copy, say=str).recipe, overwrite=True, say=str)
        assert not (copy / "analysis").exists()


class TestErrors:
    def test_an_earlier_result_is_replaced_only_when_told(self, runs, tmp_path, capsys):
        arguments = ["analyze", "distribution", runs[0], "--output", str(tmp_path)]
        assert main([*arguments, "--count", "2"]) == 0
        before = (tmp_path / "distribution.csv").read_text()
        assert "--overwrite" in fails([*arguments, "--count", "3"], capsys)
        assert (tmp_path / "distribution.csv").read_text() == before
        assert main([*arguments, "--count", "3", "--overwrite"]) == 0
        assert (tmp_path / "distribution.csv").read_text().count("\n") == 4

    @pytest.mark.parametrize("kind", ["similarity", "limits", "distribution"])
    def test_no_run(self, kind, capsys):
        assert "nowhere is not the folder of a run" in fails(["analyze", kind, "nowhere"], capsys)
        assert "no run is given" in fails(["analyze", kind, "train.threads=1"], capsys)

    def test_place_that_is_no_folder(self, runs, tmp_path, capsys):
        (tmp_path / "file").touch()
        arguments = ["analyze", "limits", runs[0], "--output", str(tmp_path / "file")]
        assert "file' is not a folder" in fails(arguments, capsys)

    @pytest.mark.parametrize("content", [b"\x89PNG\xff", b"panel,subnet\nextend,{\n", b"panel\n"])
    def test_damaged_result(self, runs, tmp_path, capsys, content):
        (tmp_path / "extend-vs-crop.csv").write_bytes(content)
        arguments = ["analyze", "similarity", str(tmp_path), "--source", "extend-vs-crop"]
        assert "extend-vs-crop.csv" in fails(arguments, capsys)

    def test_given_twice(self, runs, capsys):
        assert "given twice" in fails(["analyze", "limits", runs[0], runs[0] + "/"], capsys)

    def test_no_supernet(self, copy, capsys):
        (copy / "supernet.safetensors").unlink()
        assert "no trained supernet" in fails(["analyze", "distribution", str(copy)], capsys)

    def test_no_search_result(self, copy, capsys):
        (copy / "search.json").unlink()
        line = fails(["analyze", "limits", str(copy)], capsys)
        assert "no search result" in line
        assert "--limits" in line

    def test_other_limits(self, runs, copy, tmp_path, capsys):
        shutil.move(copy, tmp_path / "other")
        arguments = ["search", str(tmp_path / "other"), "search.limits=[{name: any}]"]
        assert main([*arguments, "--overwrite"]) == 0
        line = fails(["analyze", "limits", runs[0], str(tmp_path / "other")], capsys)
        assert "inside small, any, other inside any" in line

    def test_other_images(self, runs, copy, tmp_path, capsys):
        shutil.move(copy, tmp_path / "other")
        config = tmp_path / "other" / "config.yaml"
        config.write_text(config.read_text().replace("split_seed: 0", "split_seed: 5"))
        line = fails(["analyze", "distribution", runs[0], str(tmp_path / "other")], capsys)
        assert "data.split_seed: 0 -> 5" in line

    def test_other_classes(self, runs, tmp_path, capsys):
        recipe = tiny_recipe.load(tmp_path / "other", "data.num_classes=12", "train.epochs=1",
                                  "strategy={name: uniform}")  # fmt: skip
        Run.start(recipe, say=str).train()
        line = fails(["analyze", "distribution", runs[0], str(tmp_path / "other")], capsys)
        assert "10 classes" in line
        assert "12" in line

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["distribution", "--window", "tiny"], "5.5M-6.5M or 6M, got 'tiny'"),
            (["distribution", "--window", "10"], "reachable are"),
            (["distribution", "--count", "0"], "count must be at least 1, got 0"),
            (["limits", "--limits", "9K-8K"], "got '9K-8K'"),
            (["similarity", "--images", "0"], "images must be at least 1, got 0"),
            (["similarity", "--tokens", "class"], "no class token"),
            (["similarity", "--source", "extend-vs-crop"], "growtas analyze extend-vs-crop"),
            (["extend-vs-crop", "--small", "medium"], "--small 'medium' is no subnet"),
            (["extend-vs-crop", "--small", "largest"], "no subnet larger than"),
            (["distribution", "data.split_seed=4"], "data.split_seed"),
        ],
    )
    def test_bad_input(self, runs, arguments, message, tmp_path, capsys):
        name, *rest = arguments
        line = fails(["analyze", name, runs[0], *rest, "--output", str(tmp_path / "new")], capsys)
        assert message in line
        assert not (tmp_path / "new").exists()

    def test_matplotlib_is_missing(self, runs, monkeypatch, capsys):
        monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
        line = fails(["analyze", "distribution", runs[0]], capsys)
        assert "pip install 'growtas[train]'" in line

    @pytest.mark.parametrize(
        "arguments", [[], ["pie"], ["limits"], ["limits", "a", "--split", "x"]]
    )
    def test_usage(self, arguments, capsys):
        with pytest.raises(SystemExit) as stop:
            main(["analyze", *arguments])
        assert stop.value.code == 2
        assert "usage: growtas analyze" in capsys.readouterr().err

    @pytest.mark.parametrize("name", ["extend-vs-crop", "similarity", "limits", "distribution"])
    def test_help(self, name, capsys):
        with pytest.raises(SystemExit) as stop:
            main(["analyze", name, "--help"])
        assert stop.value.code == 0
        assert f"  growtas analyze {name}" in capsys.readouterr().out
