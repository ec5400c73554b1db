"""The whole chain on real digits: what it leaves, what it checks, what a resume reuses."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest
import tiny_recipe
import torch

from growtas import export, load_supernet, save_supernet
from growtas.base.config import ConfigError
from growtas.run.folder import ExportMismatch, Run, Winner
from growtas.run.pipeline import run
from growtas.run.recipe import Recipe
from growtas.search import SearchResult
from growtas.training.data import build_data

pytest.importorskip("timm")
pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Folder of one finished run, its winners and what it said; not to be changed."""
    folder = tmp_path_factory.mktemp("pipeline") / "run"
    said: list[str] = []
    winners = run(tiny_recipe.load(folder), say=said.append)
    return folder, winners, said


@pytest.fixture
def copy(finished, tmp_path):
    """A copy of the finished run that a test may change."""
    folder = tmp_path / "run"
    shutil.copytree(finished[0], folder)
    return folder


def recipe_of(folder: Path, *overrides: str) -> Recipe:
    return Run.open(folder, overrides).recipe


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below `folder`."""
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class TestWhatARunLeaves:
    def test_files(self, finished):
        folder = finished[0]
        for name in ("config.yaml", "metrics.csv", "supernet.safetensors", "search.json"):
            assert (folder / name).is_file(), name
        assert (folder / "best" / "model.safetensors").is_file()
        assert (folder / "best" / "config.json").is_file()
        for name in ("front.png", "training.png"):
            assert (folder / name).read_bytes().startswith(b"\x89PNG"), name
        random_subnets = json.loads((folder / "random_subnets.json").read_text())
        assert len(random_subnets) == 5
        # In search.json too, so that its front is that of everything evaluated.
        evaluated = json.loads((folder / "search.json").read_text())["candidates"]
        assert all(candidate in evaluated for candidate in random_subnets)
        assert Recipe.load(folder / "config.yaml") == tiny_recipe.load(folder)

    def test_every_epoch_is_recorded_with_its_phase(self, finished):
        rows = list(csv.DictReader((finished[0] / "metrics.csv").open()))
        assert [row["phase"] for row in rows] == ["stage 1/2", "stage 2/2", "plus"]

    def test_winners_meet_their_limits_and_are_the_searched_ones(self, finished):
        folder, winners, _ = finished
        result = SearchResult.load(folder / "search.json")
        model = load_supernet(folder / "supernet.safetensors")
        assert [winner.limit for winner in winners] == ["small", "any"]
        for winner, entry in zip(winners, result.limits, strict=True):
            assert winner.subnet == entry.subnet
            assert winner.search_accuracy == entry.score.accuracy
            assert winner.num_params == model.num_params(winner.subnet)
            assert winner.macs == model.macs(winner.subnet)
        assert winners[0].num_params <= 2500

    def test_test_accuracy_is_that_of_the_test_images(self, finished):
        """Recomputed directly: no evaluator, no loader."""
        folder, winners, _ = finished
        model = load_supernet(folder / "supernet.safetensors")
        recipe = recipe_of(folder)
        view = build_data(recipe.data, recipe.augment).test
        images = torch.stack([image for image, _ in view])
        labels = torch.tensor([label for _, label in view])
        for winner in winners:
            with torch.no_grad():
                right = (model(images, winner.subnet).argmax(1) == labels).sum().item()
            assert winner.test_images == len(labels) > 300
            assert winner.test_accuracy == pytest.approx(right / len(labels))

    def test_summary(self, finished):
        folder, winners, said = finished
        summary = json.loads((folder / "summary.json").read_text())
        assert [Winner.from_dict(values) for values in summary["winners"]] == winners
        chosen = next(winner for winner in winners if winner.limit == summary["best"])
        assert chosen.search_accuracy == max(winner.search_accuracy for winner in winners)
        assert summary["logit_difference"] < 1e-4
        assert set(summary["seconds"]) == {"train", "search", "random", "test", "export"}
        table = "\n".join(said)
        for winner in winners:
            assert f"{winner.test_accuracy:.2%}" in table
            assert str(winner.subnet) in table

    def test_best_is_the_supernets_subnet(self, finished):
        folder, winners, _ = finished
        limit = json.loads((folder / "summary.json").read_text())["best"]
        winner = next(w for w in winners if w.limit == limit)
        info = json.loads((folder / "best" / "config.json").read_text())["info"]
        assert Winner.from_dict(info) == winner
        alone, model = export.load(folder / "best"), load_supernet(folder / "supernet.safetensors")
        images = torch.randn(4, 1, 8, 8)
        with torch.no_grad():
            torch.testing.assert_close(alone(images), model(images, winner.subnet))
        assert sum(p.numel() for p in alone.parameters()) == winner.num_params


class TestResume:
    def test_finished_stages_are_not_repeated(self, copy, finished, monkeypatch):
        from growtas.search import Evaluator
        from growtas.training import trainer

        def forbidden(*args, **kwargs):
            raise AssertionError("this was done before")

        monkeypatch.setattr(trainer.Trainer, "fit", forbidden)
        monkeypatch.setattr(Evaluator, "score", forbidden)
        (copy / "front.png").unlink()
        shutil.rmtree(copy / "best")
        said: list[str] = []
        assert run(recipe_of(copy), resume=True, say=said.append) == finished[1]
        assert [line.split(":")[0] for line in said[1:4]] == ["train", "search", "test"]
        assert (copy / "front.png").is_file()
        assert (copy / "best" / "model.safetensors").is_file()

    def test_lost_search_is_repeated_alike(self, copy, finished, monkeypatch):
        from growtas.training import trainer

        monkeypatch.setattr(trainer.Trainer, "fit", None)
        for name in ("search.json", "search_state.json", "summary.json"):
            (copy / name).unlink()
        assert run(recipe_of(copy), resume=True, say=lambda line: None) == finished[1]

    def test_other_training_settings_are_refused(self, copy):
        before = contents(copy)
        for resumed in (run, Run.start):
            with pytest.raises(ConfigError, match=r"optim\.lr: 0\.005 -> 0\.1"):
                resumed(recipe_of(copy, "optim.lr=0.1"), resume=True)
        assert contents(copy) == before

    @pytest.mark.parametrize(
        ("changes", "named"),
        [
            (["search.limits[0].max_params=1500"], r"limits\[0\]\.max_params: 2500 -> 1500"),
            (["search.population=5", "search.seed=3"], "population: 4 -> 5; search.seed: 0 -> 3"),
            (["search.generations=1"], r"search\.generations: 2 -> 1"),
        ],
    )
    @pytest.mark.parametrize("begun", [False, True])
    def test_other_search_settings_are_refused(self, copy, changes, named, begun):
        """By `search` and by what runs or trains; nothing of the folder changes."""
        if begun:
            (copy / "search.json").unlink()
        before = contents(copy)
        recipe = recipe_of(copy, *changes)
        for resumed in (
            lambda: Run.open(copy, changes).search(resume=True),
            lambda: Run.start(recipe, resume=True),
            lambda: run(recipe, resume=True),
        ):
            with pytest.raises(ConfigError, match=named):
                resumed()
        assert contents(copy) == before

    def test_search_of_other_weights_is_refused(self, copy):
        model = load_supernet(copy / "supernet.safetensors")
        with torch.no_grad():
            model.head.bias.add_(1)
        save_supernet(model, copy / "supernet.safetensors")
        (copy / "search.json").unlink()
        before = contents(copy)
        with pytest.raises(ValueError, match="other weights"):
            Run.open(copy).search(resume=True)
        assert contents(copy) == before

    def test_more_generations_go_on(self, copy):
        scored = len(SearchResult.load(copy / "search.json").candidates)
        current = Run.open(copy, ["search.generations=3", "search.batch_size=99"])
        assert len(current.search(resume=True).candidates) > scored
        assert Recipe.load(copy / "config.yaml").search.generations == 3
        assert not (copy / "summary.json").exists()

    def test_new_search_replaces_the_old_one(self, copy):
        changes = ["search.limits=[{name: tiny, max_params: 1500}]", "search.generations=1"]
        result = Run.open(copy, changes).search()
        assert [entry.limit.name for entry in result.limits] == ["tiny"]
        assert Recipe.load(copy / "config.yaml").search == result.config
        assert not (copy / "best").exists()

    def test_new_search_that_cannot_be_made_replaces_nothing(self, copy):
        before = contents(copy)
        with pytest.raises(ValueError, match="found no subnet"):
            Run.open(copy, ["search.limits=[{max_params: 10}]"]).search()
        assert contents(copy) == before

    def test_run_without_its_recipe(self, copy):
        recipe = recipe_of(copy)
        (copy / "config.yaml").unlink()
        with pytest.raises(ConfigError, match=r"without its config\.yaml"):
            Run.start(recipe, resume=True)

    def test_training_continues_where_it_stopped(self, finished, tmp_path):
        """Two epochs, a stop, then the rest: the same weights as in one go."""
        folder = tmp_path / "run"
        recipe = tiny_recipe.load(folder)
        from growtas.training.trainer import Trainer

        epoch = Trainer._epoch

        def stop_after_two(self, bar):
            if self.epoch == 2:
                raise KeyboardInterrupt
            return epoch(self, bar)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Trainer, "_epoch", stop_after_two)
            with pytest.raises(KeyboardInterrupt):
                Run.start(recipe).train()
        assert not (folder / "supernet.safetensors").exists()
        Run.start(recipe, resume=True).train(resume=True)
        ours = load_supernet(folder / "supernet.safetensors").state_dict()
        theirs = load_supernet(finished[0] / "supernet.safetensors").state_dict()
        for name, value in theirs.items():
            assert torch.equal(ours[name], value), name


class TestRefusals:
    def test_folder_with_a_run(self, copy):
        with pytest.raises(ConfigError, match=r"already holds a run .*--resume.*--overwrite"):
            run(recipe_of(copy))

    def test_resume_and_overwrite(self, copy):
        with pytest.raises(ConfigError, match="exclude each other"):
            run(recipe_of(copy), resume=True, overwrite=True)

    def test_overwrite_removes_the_runs_files_only(self, copy):
        (copy / "notes.txt").write_text("mine")
        Run.start(recipe_of(copy), overwrite=True)
        assert sorted(path.name for path in copy.iterdir()) == ["config.yaml", "notes.txt"]

    @pytest.mark.parametrize("changes", [["data.dataset=''"], ["data.num_classes=3"]])
    def test_unusable_data_replace_nothing(self, copy, changes):
        before = contents(copy)
        with pytest.raises(ValueError, match=r"data\.(root|num_classes) is"):
            Run.start(recipe_of(copy, *changes), overwrite=True)
        assert contents(copy) == before

    @pytest.mark.parametrize("name", ["search.json", "random_subnets.json", "summary.json"])
    @pytest.mark.parametrize("text", [b"{", b"[1]", b"\x89PNG\xff"])
    def test_damaged_file_is_named(self, copy, name, text):
        (copy / name).write_bytes(text)
        with pytest.raises(ConfigError, match=f"{name} is not"):
            run(recipe_of(copy), resume=True, say=lambda line: None)

    def test_not_a_run(self, tmp_path):
        with pytest.raises(ConfigError, match="is not the folder of a run"):
            Run.open(tmp_path)

    def test_no_supernet(self, tmp_path):
        current = Run.start(tiny_recipe.load(tmp_path / "run"))
        with pytest.raises(ConfigError, match=r"no trained supernet .*growtas train"):
            current.search()

    def test_export_that_differs(self, copy, monkeypatch):
        from growtas.supernet import vit

        extract = vit.Supernet.extract

        def damaged(self, subnet):
            alone = extract(self, subnet)
            with torch.no_grad():
                alone.head.bias[3] += 1e-2
            return alone

        monkeypatch.setattr(vit.Supernet, "extract", damaged)
        current = Run.open(copy)
        with pytest.raises(ExportMismatch, match=r"logits differ by 0\.01"):
            current.extract(current.find_subnet("best"), copy / "other")

    def test_export_under_other_settings(self, copy):
        """They would go into the transform of the exported model."""
        current = Run.open(copy, ["data.crop_pct=0.5"])
        with pytest.raises(ConfigError, match=r"another recipe \(data\.crop_pct: None -> 0\.5\)"):
            current.extract(current.find_subnet("best"), copy / "other")
        assert not (copy / "other").exists()

    def test_missing_packages_are_named_first(self, tmp_path, monkeypatch):
        import importlib.util

        find = importlib.util.find_spec
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name: None if name == "sklearn" else find(name)
        )
        with pytest.raises(ImportError, match=r"sklearn: pip install 'growtas\[demo\]'"):
            run(tiny_recipe.load(tmp_path / "run"))
        assert not (tmp_path / "run").exists()


class TestFindSubnet:
    def test_names(self, finished):
        folder, winners, _ = finished
        current = Run.open(folder)
        space = current.model.space
        assert current.find_subnet("smallest") == space.smallest()
        assert current.find_subnet("largest") == space.largest()
        assert current.find_subnet("small") == winners[0].subnet
        best = json.loads((folder / "summary.json").read_text())["best"]
        assert current.find_subnet("best") == current.find_subnet(best)

    def test_json(self, finished, tmp_path):
        folder, winners, _ = finished
        current, subnet = Run.open(folder), winners[1].subnet
        text = json.dumps(subnet.to_dict())
        (tmp_path / "subnet.json").write_text(text)
        assert current.find_subnet(text) == subnet
        assert current.find_subnet(str(tmp_path / "subnet.json")) == subnet
        assert current.find_subnet(str(folder / "best" / "config.json")) in {
            winner.subnet for winner in winners
        }

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("smalest", "use best, small, any, smallest, largest"),
            ('{"embed_dim": 8}', "the subnet: .*missing"),
            ("{", "the subnet: "),
        ],
    )
    def test_refused(self, finished, text, message):
        with pytest.raises(ConfigError, match=message):
            Run.open(finished[0]).find_subnet(text)

    def test_too_large(self, finished):
        current = Run.open(finished[0])
        big = '{"embed_dim": 99, "num_heads": [1], "mlp_ratio": [1]}'
        with pytest.raises(ValueError, match="embed_dim"):
            current.evaluate(current.find_subnet(big), "search")
