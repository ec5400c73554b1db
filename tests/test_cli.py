"""The command line: what each command prints, what it refuses and with which exit code."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_recipe
import torch
from PIL import Image

from growtas import __version__, export, load_supernet
from growtas.base.config import load_yaml, to_plain
from growtas.cli import main
from growtas.run import info
from growtas.run.files import SUPERNET
from growtas.run.recipe import Recipe
from growtas.run.recipes import available
from growtas.run.winners import Winner

PACKAGE = str(Path(info.__file__).parents[1])

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
        assert "images that training and search never saw, used once" in out

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

    def test_predict(self, folder, tmp_path, capsys):
        """What it says of test images is what the evaluation says."""
        from growtas.run.folder import Run

        view = Run.open(folder).data.test
        for index in range(20):
            image, label = view.dataset[view.indices[index]]
            image.save(tmp_path / f"{index:02}-{label}.png")
        capsys.readouterr()
        assert main(["predict", str(folder / "best"), str(tmp_path), "--top", "2"]) == 0
        lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
        assert [path for path, _, _ in lines[::2]] == sorted(map(str, tmp_path.iterdir()))
        model = export.load(folder / "best")
        assert model.classes == tuple("0123456789")
        with torch.no_grad():
            shares = model(torch.stack([view[i][0] for i in range(20)])).softmax(-1)
        values, indices = shares.topk(2)
        assert [name for _, name, _ in lines] == [str(i) for i in indices.flatten().tolist()]
        assert [share for *_, share in lines] == [f"{v:.4f}" for v in values.flatten().tolist()]

    def test_damaged_weights_are_read_only_on_request(self, folder, tmp_path, capsys):
        run = tmp_path / "run"
        shutil.copytree(folder, run)
        for path in (run / SUPERNET, run / "best" / "model.safetensors"):
            content = path.read_bytes()
            path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        image = tmp_path / "image.png"
        Image.new("L", (8, 8)).save(image)
        for arguments in (
            ["evaluate", str(run)],
            ["extract", str(run), "--to", str(tmp_path / "exported")],
            ["search", str(run), "--overwrite", "search.population=2", "search.generations=1"],
            ["convert", str(run), str(tmp_path / "theirs.pth")],
            ["analyze", "distribution", str(run), "--count", "2"],
            ["predict", str(run / "best"), str(image)],
        ):
            line = fails(arguments, capsys)
            assert ".safetensors' is damaged" in line
            assert "--no-verify" in line
            if arguments[0] == "convert":  # its head dim has no AutoFormer form
                assert "no AutoFormer form" in fails([*arguments, "--no-verify"], capsys)
            elif arguments[0] != "search":  # would replace the exported model
                assert main([*arguments, "--no-verify"]) == 0

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

    def test_printed_recipe_is_one(self, tmp_path, capsys):
        """Also of a recipe that leaves the folder of the images to its user."""
        for name in sorted({*available()} - {"folder"}):  # which needs it, to choose by the images
            assert main(["run", name, "search.limits=[{max_params: 6M}]", "--print-recipe"]) == 0
            path = tmp_path / f"{name}.yaml"
            path.write_text(capsys.readouterr().out)
            assert Recipe.load(path) == Recipe.load(name, ["search.limits=[{max_params: 6M}]"])

    def test_position_in_a_list(self, capsys):
        override = "search.limits[1].max_params=70K"
        assert main(["run", "digits", override, "--print-recipe"]) == 0
        limits = load_yaml(capsys.readouterr().out)["search"]["limits"]
        assert limits[1]["max_params"] == 70_000
        assert limits[0] == to_plain(Recipe.load("digits").search.limits[0])

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
            (["train", "autoformer-tiny"], "data.root is ''"),
            (["run", "digits", "search.limits[9].name=x"], "its positions are [0] to [2]"),
            (["run", "digits", "optim.betas[0]=0.5"], "set all of it: optim.betas='[...]'"),
            (["run", "digits", "search.limits[x]=3"], "or search.limits[0].max_params=6M"),
            (["run", PACKAGE], "growtas is a folder, not a recipe"),
            (["convert", "nowhere.pth", "out.safetensors"], "nowhere.pth"),
            (["convert", info.__file__, PACKAGE], "growtas is a folder"),
            (["convert", info.__file__, "out", "--space", "x.yaml"], "directory: 'x.yaml'"),
            (["analyze", "limits", "nowhere"], "nowhere is not the folder of a run"),
            (["analyze", "limits", "nowhere", "--limits", "6M,"], "a window is written"),
            (["search", "nowhere"], "nowhere is not the folder of a run"),
            (["evaluate", "nowhere"], "nowhere is not the folder of a run"),
        ],
    )
    def test_bad_input(self, arguments, message, capsys):
        assert message in fails(arguments, capsys)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"\x89PNG\r\n\x1a\n", "is not a text file"),
            (b"a: \0", "special characters are not allowed"),
            (b"", "a recipe is a mapping"),
            (b"- space\n", "a recipe is a mapping"),
            (b"space: digits\nspace: digits\n", "line 2: 'space' is written twice"),
            (b"space: &a {x: *a}", "unconstructable recursive node"),
            (b"[" * 5000, "nested too deeply"),
            (b"space: 2001-99-99", "month must be in 1..12"),
            (b"space: !!python/name:os.system", "could not determine a constructor"),
            (b"space: !!binary aGk=", "space: expected a text or a mapping"),
            (b"? [1]\n: 2\n", "unhashable key"),
            (b"1: 2\n", "unknown section '1'"),
        ],
    )
    def test_file_that_is_no_recipe(self, content, message, tmp_path, capsys):
        path = tmp_path / "bad.yaml"
        path.write_bytes(content)
        line = fails(["train", str(path)], capsys)
        assert message in line
        assert "bad.yaml" in line or "space" in line or "section" in line

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
    def test_file_that_may_not_be_read(self, tmp_path, capsys):
        path = tmp_path / "bad.yaml"
        path.touch(mode=0)
        assert f"Permission denied: '{path}'" in fails(["train", str(path)], capsys)

    @pytest.mark.parametrize("name", ["config.yaml", "search.json", "supernet.safetensors"])
    def test_damaged_run(self, folder, tmp_path, capsys, name):
        shutil.copytree(folder, tmp_path / "run")
        (tmp_path / "run" / name).write_bytes(b"\x89PNG\r\n\x1a\n")
        arguments = ["search", str(tmp_path / "run"), "--resume", "search.generations=3"]
        assert name in fails(arguments, capsys)
        assert name in fails(["evaluate", str(tmp_path / "run")], capsys)

    @pytest.mark.parametrize(
        ("command", "change", "named"),
        [
            ("search", "search.seed=3", "search.seed: 0 -> 3"),
            ("train", "search.seed=3", "search.seed: 0 -> 3"),
            ("train", "train.epochs=5", "train.epochs: 2 -> 5"),
            ("run", "search.limits[0].max_params=1500", "limits[0].max_params: 2500 -> 1500"),
            ("run", "optim.lr=0.1", "optim.lr: 0.005 -> 0.1"),
        ],
    )
    def test_resume_with_other_settings(self, folder, capsys, command, change, named):
        before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
        source = folder if command == "search" else folder / "config.yaml"
        assert named in fails([command, str(source), "--resume", change], capsys)
        assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before

    @pytest.mark.parametrize(
        "change",
        [
            "optim.warmup_epochs=1000",
            "data.batch_size=100000",
            "model.patch_size=3",
            "output.dir=..",
        ],
    )
    @pytest.mark.parametrize("command", ["train", "run"])
    def test_nothing_is_made_for_a_run_that_cannot_be(self, tmp_path, capsys, command, change):
        """Not even where an earlier run is to be replaced; ``..`` here is the file below."""
        path = tiny_recipe.write(tmp_path / "run")
        (tmp_path / "file").touch()
        change = change.replace("..", str(tmp_path / "file"))
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "supernet.safetensors").write_text("an earlier one")
        code = main([command, str(path), change, "--overwrite"])
        assert (code, capsys.readouterr().err.count("\n")) == (2, 1)
        assert [p.name for p in (tmp_path / "run").iterdir()] == ["supernet.safetensors"]

    def test_limit_that_nothing_meets_is_found_before_the_training(self, tmp_path, capsys):
        path = tiny_recipe.write(tmp_path / "run")
        assert main(["run", str(path), "search.limits=[{max_params: 10}]"]) == 2
        assert "found no subnet" in capsys.readouterr().err
        assert not (tmp_path / "run").exists()

    def test_full_disk(self, folder, tmp_path, monkeypatch, capsys):
        def full(descriptor):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        path = tiny_recipe.write(tmp_path / "run")
        assert main(["train", str(path)]) == 2
        assert "No space left on device" in capsys.readouterr().err
        assert list((tmp_path / "run").iterdir()) == []

    def test_out_of_memory(self, monkeypatch, capsys):
        from growtas.run import pipeline

        def exhausted(*args, **kwargs):
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 9 bytes")

        monkeypatch.setattr(pipeline, "run", exhausted)
        assert "out of memory" in fails(["run", "digits"], capsys, code=1)

    def test_run_that_is_there(self, folder, capsys):
        line = fails(["run", str(folder / "config.yaml")], capsys)
        assert "already holds a run" in line
        assert "--resume" in line

    def test_unknown_subnet(self, folder, capsys):
        line = fails(["evaluate", str(folder), "--subnet", "medium"], capsys)
        assert "use best, small, any, smallest, largest" in line

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"\x89PNG\r\n\x1a\n", ""),
            (b"[" * 100_000, "nested too deeply"),
            (b"3", "lists no subnet"),
        ],
    )
    def test_file_that_is_no_subnet(self, folder, tmp_path, capsys, content, message):
        (tmp_path / "bad.json").write_bytes(content)
        arguments = ["evaluate", str(folder), "--subnet", str(tmp_path / "bad.json")]
        assert message in fails(arguments, capsys)

    def test_missing_file(self, folder, capsys):
        assert "missing.json" in fails(["extract", str(folder), "--subnet", "missing.json"], capsys)

    @pytest.mark.parametrize(
        "name", ["../../x", "/tmp/x", "best", "summary.json", "a b", ".hidden"]
    )
    def test_limit_whose_name_would_be_another_place(self, name, folder, capsys):
        before = sorted(folder.parent.rglob("*"))
        change = f"search.limits=[{{name: '{name}', max_params: 2500}}]"
        line = fails(["run", str(folder / "config.yaml"), "--resume", change], capsys)
        assert f"the name of a limit is {name!r}" in line
        assert sorted(folder.parent.rglob("*")) == before

    def test_subnet_whose_name_is_no_folder(self, folder, capsys):
        """A limit's own name may be one that was made from its bounds, such as <=6M."""
        for text in ("<=6M", "../x", "subnets.json:a", '{"embed_dim": 8}'):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("growtas.run.folder.Run.find_subnet", lambda run, text: None)
                assert "--to FOLDER" in fails(["extract", str(folder), f"--subnet={text}"], capsys)

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
        from growtas.run import pipeline

        def interrupted(*args, **kwargs):
            raise KeyboardInterrupt

        monkeypatch.setattr(pipeline, "run", interrupted)
        assert "--resume" in fails(["run", "digits"], capsys, code=130)

    def test_defects_keep_their_traceback(self, monkeypatch):
        from growtas.run import pipeline

        def defect(*args, **kwargs):
            raise IndexError("a defect")

        monkeypatch.setattr(pipeline, "run", defect)
        with pytest.raises(IndexError):
            main(["run", "digits"])

    def test_debug_shows_the_traceback(self):
        with pytest.raises(ValueError, match="no recipe"):
            main(["run", "digit", "--debug"])

    @pytest.mark.parametrize(
        "arguments",
        [
            [],
            ["fly"],
            ["run"],
            ["run", "digits", "--fast"],
            ["info", "a=b"],
            ["run", "digits", "--resume", "--overwrite"],
            ["search", "x", "--resume", "--overwrite"],
        ],
    )
    def test_usage(self, arguments, capsys):
        """Of the command that was meant, where one was."""
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 2
        command = arguments[0] if arguments and arguments[0] != "fly" else "[-h]"
        assert f"usage: growtas {command}" in capsys.readouterr().err


class TestHelp:
    @pytest.mark.parametrize(
        "name", ["run", "train", "search", "evaluate", "extract", "predict", "convert", "info"]
    )
    def test_every_command_has_examples(self, name, capsys):
        with pytest.raises(SystemExit) as stop:
            main([name, "--help"])
        assert stop.value.code == 0
        out = capsys.readouterr().out
        assert f"  growtas {name}" in out
        assert "{overrides}" not in out
        assert "{{" not in out

    def test_first_steps(self, capsys):
        with pytest.raises(SystemExit):
            main(["--help"])
        out = capsys.readouterr().out
        assert "growtas run mnist-5k" in out
        assert "exit codes: 0 done" in out

    def test_version(self, capsys):
        with pytest.raises(SystemExit):
            main(["--version"])
        assert capsys.readouterr().out == f"growtas {__version__}\n"


class TestInfo:
    def test_json(self, capsys):
        assert main(["info", "--json"]) == 0
        facts = json.loads(capsys.readouterr().out)
        assert facts["versions"]["growtas"] == __version__
        assert (Path(facts["location"]) / "run/info.py").samefile(info.__file__)
        for name, tested in facts["tested"].items():
            assert facts["versions"][name]
            assert tested
        rows = {(row["operator"], row["device"], row["dtype"]): row for row in facts["operators"]}
        for operator in ("linear", "layer_norm", "attention"):
            row = rows[operator, "cpu", "float32"]
            assert row["backend"] in ("native", "reference")
            assert set(row["rejected"]) == {"triton", "native", "reference"} - {row["backend"]}

    def test_a_request_changes_the_answer(self, monkeypatch, capsys):
        monkeypatch.setenv("GROWTAS_BACKEND", "reference")
        assert main(["info"]) == 0
        out = capsys.readouterr().out
        assert "GROWTAS_BACKEND=reference" in out
        assert f"(tested: {', '.join(info.TESTED['torch'])})" in out
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
