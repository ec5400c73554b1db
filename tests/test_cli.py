"""The command line: what each command prints, what it refuses and with which exit code."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest
import tiny_recipe

from growtas import __version__, export, info, load_supernet
from growtas.cli import main
from growtas.config import load_yaml
from growtas.run_folder import SUPERNET, Winner

pytest.importorskip("timm")
pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A finished run, made by the command itself; not to be changed."""
    folder = tmp_path_factory.mktemp("cli") / "run"
    assert main(["run", str(tiny_recipe.write(folder))]) == 0
    return folder


def fails(arguments: list[str], capsys, code: int = 2) -> str:
    """The one line that the command prints on stderr when it fails with `code`; what it cannot use
    it says before anything else."""
    capsys.readouterr()
    assert main(arguments) == code
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert captured.out == "" or code != 2
    return captured.err


class TestCommands:
    def test_run_prints_the_table(self, tmp_path, capsys):
        path = tiny_recipe.write(tmp_path / "run")
        assert main(["run", str(path), "--overwrite", "search.generations=1"]) == 0
        out = capsys.readouterr().out
        summary = json.loads((tmp_path / "run" / "summary.json").read_text())
        for values in summary["winners"]:
            winner = Winner.from_dict(values)
            line = next(line for line in out.splitlines() if line.startswith(winner.limit))
            assert f"{winner.test_accuracy:.2%}" in line
        assert "tested once on" in out

    def test_train_then_search(self, tmp_path, capsys):
        path = str(tiny_recipe.write(tmp_path / "run"))
        assert main(["train", path]) == 0
        assert SUPERNET in capsys.readouterr().out
        assert not (tmp_path / "run" / "search.json").exists()
        assert main(["search", str(tmp_path / "run"), "search.population=3"]) == 0
        assert "search acc." in capsys.readouterr().out
        saved = load_yaml((tmp_path / "run" / "config.yaml").read_text())
        assert saved["search"]["population"] == 3

    def test_evaluate(self, folder, capsys):
        summary = json.loads((folder / "summary.json").read_text())
        for values in summary["winners"]:
            winner = Winner.from_dict(values)
            capsys.readouterr()
            assert main(["evaluate", str(folder), "--subnet", winner.limit, "--json"]) == 0
            facts = json.loads(capsys.readouterr().out)
            assert facts["accuracy"] == winner.search_accuracy
            assert facts["num_params"] == winner.num_params
            text = json.dumps(winner.subnet.to_dict())
            assert main(["evaluate", str(folder), f"--subnet={text}", "--split", "test"]) == 0
            out = capsys.readouterr().out
            assert f"{winner.test_accuracy:.2%} of {winner.test_images} test images" in out
            assert f"{winner.macs:,} multiply-adds" in out

    def test_extract(self, folder, tmp_path, capsys):
        target = tmp_path / "exported"
        assert main(["extract", str(folder), "--subnet", "largest", "--to", str(target)]) == 0
        model = load_supernet(folder / SUPERNET)
        count = sum(p.numel() for p in export.load(target).parameters())
        assert count == model.num_params(model.space.largest())
        assert f"{count:,} parameters" in capsys.readouterr().out

    def test_earlier_results_are_replaced_only_when_told(self, folder, capsys):
        before = {name: (folder / name).stat().st_mtime_ns for name in ("search.json", "best")}
        for arguments in (["search", str(folder)], ["extract", str(folder)]):
            assert main(arguments) == 2
            assert "--overwrite" in capsys.readouterr().err
        assert before == {name: (folder / name).stat().st_mtime_ns for name in before}

    def test_evaluate_refuses_settings_that_move_images_between_splits(self, folder, capsys):
        for change in ("data.split_seed=3", "data.test_fraction=0.5", "model.patch_size=8"):
            assert main(["evaluate", str(folder), change]) == 2
            assert change.partition("=")[0] in capsys.readouterr().err

    def test_overrides_before_and_after_options(self, capsys):
        arguments = ["run", "digits", "train.epochs=7", "--print-recipe", "optim.lr=1e-2"]
        assert main(arguments) == 0
        recipe = load_yaml(capsys.readouterr().out)
        assert (recipe["train"]["epochs"], recipe["optim"]["lr"]) == (7, 0.01)

    def test_only_rank_0_speaks(self, monkeypatch, capsys):
        monkeypatch.setenv("RANK", "1")
        assert main(["run", "digits", "--print-recipe"]) == 0
        assert main(["run", "digits", "epochs=3"]) == 2
        captured = capsys.readouterr()
        assert (captured.out, captured.err) == ("", "")

    def test_module_is_the_command(self):
        command = [sys.executable, "-m", "growtas", "--version"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert done.stdout == f"growtas {__version__}\n"


class TestErrors:
    """One clear line on stderr, exit code 2, no traceback."""

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["run", "digit"], "no recipe 'digit' (did you mean 'digits'?)"),
            (["run", "digits", "epochs=3"], "did you mean 'train.epochs'?"),
            (["run", "digits", "train.epochs=x"], "train.epochs: expected an integer, got 'x'"),
            (["train", "autoformer-tiny"], "data.root"),
            (["search", "nowhere"], "nowhere is not the folder of a run"),
            (["evaluate", "nowhere"], "nowhere is not the folder of a run"),
        ],
    )
    def test_bad_input(self, arguments, message, capsys):
        assert message in fails(arguments, capsys)

    def test_run_that_is_there(self, folder, capsys):
        line = fails(["run", str(folder / "config.yaml")], capsys)
        assert "already holds a run" in line
        assert "--resume" in line

    def test_unknown_subnet(self, folder, capsys):
        line = fails(["evaluate", str(folder), "--subnet", "medium"], capsys)
        assert "use best, small, any, smallest, largest" in line

    def test_missing_file(self, folder, capsys):
        assert "missing.json" in fails(["extract", str(folder), "--subnet", "missing.json"], capsys)

    def test_limit_that_nothing_meets(self, folder, tmp_path, capsys):
        shutil.copytree(folder, tmp_path / "run")
        arguments = ["search", str(tmp_path / "run"), "search.limits=[{max_params: 10}]"]
        line = fails([*arguments, "--overwrite"], capsys)
        assert "10" in line

    def test_missing_package(self, monkeypatch, capsys, tmp_path):
        monkeypatch.setitem(sys.modules, "sklearn", None)
        monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
        path = str(tiny_recipe.write(tmp_path / "run"))
        line = fails(["train", path], capsys)
        assert "pip install 'growtas[demo]'" in line

    def test_diverged_training_fails_with_another_code(self, tmp_path, capsys):
        path = str(tiny_recipe.write(tmp_path / "run"))
        line = fails(["train", path, "optim.lr=1e30"], capsys, code=1)
        assert "not finite" in line

    def test_interrupt(self, monkeypatch, capsys):
        from growtas import pipeline

        def interrupted(*args, **kwargs):
            raise KeyboardInterrupt

        monkeypatch.setattr(pipeline, "run", interrupted)
        assert "--resume" in fails(["run", "digits"], capsys, code=130)

    def test_defects_keep_their_traceback(self, monkeypatch):
        from growtas import pipeline

        def defect(*args, **kwargs):
            raise IndexError("a defect")

        monkeypatch.setattr(pipeline, "run", defect)
        with pytest.raises(IndexError):
            main(["run", "digits"])

    def test_debug_shows_the_traceback(self):
        with pytest.raises(ValueError, match="no recipe"):
            main(["run", "digit", "--debug"])

    @pytest.mark.parametrize(
        "arguments", [[], ["fly"], ["run"], ["run", "digits", "--fast"], ["info", "a=b"]]
    )
    def test_usage(self, arguments, capsys):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 2
        assert "usage: growtas" in capsys.readouterr().err


class TestHelp:
    @pytest.mark.parametrize(
        "name", ["run", "train", "search", "evaluate", "extract", "convert", "info"]
    )
    def test_every_command_has_examples(self, name, capsys):
        with pytest.raises(SystemExit) as stop:
            main([name, "--help"])
        assert stop.value.code == 0
        out = capsys.readouterr().out
        assert f"  growtas {name}" in out
        assert "{overrides}" not in out

    def test_version(self, capsys):
        with pytest.raises(SystemExit):
            main(["--version"])
        assert capsys.readouterr().out == f"growtas {__version__}\n"


class TestInfo:
    def test_json(self, capsys):
        assert main(["info", "--json"]) == 0
        facts = json.loads(capsys.readouterr().out)
        assert facts["versions"]["growtas"] == __version__
        rows = {(row["operator"], row["device"], row["dtype"]): row for row in facts["operators"]}
        for operator in ("linear", "layer_norm", "attention"):
            row = rows[operator, "cpu", "float32"]
            assert row["backend"] in ("native", "reference")
            assert set(row["rejected"]) == {"triton", "native", "reference"} - {row["backend"]}

    def test_a_request_changes_the_answer(self, monkeypatch, capsys):
        monkeypatch.setenv("GROWTAS_BACKEND", "reference")
        assert info.main([]) == 0
        out = capsys.readouterr().out
        assert "GROWTAS_BACKEND=reference" in out
        assert "native (cpu" not in out
        assert "reference (cpu: float32, bfloat16)" in out
        assert "not native: reference was asked for" in out

    def test_unknown_request(self, monkeypatch, capsys):
        monkeypatch.setenv("GROWTAS_BACKEND", "fast")
        assert "unknown backend 'fast'" in fails(["info"], capsys)

    def test_missing_packages_are_said_to_be(self, monkeypatch):
        monkeypatch.setattr(info, "PACKAGES", ("torch", "no-such-package-here"))
        facts = info.collect()
        assert facts["versions"]["no-such-package-here"] is None
        assert "no-such-package-here not installed" in info.describe(facts)
