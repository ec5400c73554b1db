"""Recipes: found by name or path, strict, overridable, saved complete."""

from __future__ import annotations

import dataclasses

import pytest

from growtas.base.config import ConfigError
from growtas.run.recipe import ModelConfig, OutputConfig, Recipe
from growtas.run.recipes import available, read
from growtas.schedule import growtas_preset
from growtas.space import SearchSpace

IMAGENET = ("autoformer-tiny", "autoformer-small", "autoformer-base")


def test_package_recipes():
    assert available() == sorted(["digits", "folder", "mnist-5k", *IMAGENET])
    with pytest.raises(KeyError, match="digit"):
        read("digit")


# The sizes of "folder" come from the images: test_folder_sizes.py.
@pytest.mark.parametrize("name", sorted({*available()} - {"folder"}))
def test_package_recipe_loads_and_round_trips(name, tmp_path):
    recipe = Recipe.load(name, ["data.root=/images"])
    if name != "mnist-5k":  # it has a space of its own
        assert recipe.build_space() == SearchSpace.preset(name)
    assert recipe.output.dir == f"runs/{name}"
    recipe.save(tmp_path / "config.yaml")
    assert Recipe.load(tmp_path / "config.yaml") == recipe


@pytest.mark.parametrize("name", IMAGENET)
class TestPublishedSettings:
    """GrowTAS section 4.1.2 and AutoFormer's training command."""

    def test_growtas_schedule(self, name):
        recipe = Recipe.load(name, ["data.root=/images"])
        space = recipe.build_space()
        phases = recipe.build_strategy(space).phases(space, recipe.train.epochs)
        assert phases == growtas_preset(name, plus=True).phases(space, 500)
        transition = {"autoformer-tiny": 250, "autoformer-small": 225, "autoformer-base": 200}
        assert phases[1].start == transition[name]

    def test_optimizer(self, name):
        recipe = Recipe.load(name, ["data.root=/images"])
        optim = recipe.optim
        assert optim.peak_lr(recipe.data.batch_size) == pytest.approx(1e-3)
        assert optim.min_lr == (1e-7 if name == "autoformer-base" else 1e-5)
        assert (optim.warmup_epochs, optim.weight_decay, optim.inactive) == (20, 0.05, "dense")
        assert (optim.schedule, optim.warmup_lr) == ("autoformer", 1e-6)
        plus = recipe.strategy["plus"]
        scale = recipe.data.batch_size / optim.lr_base_batch
        published = {"autoformer-base": (2e-7, 10)}.get(name, (5e-5, 20))
        assert (plus["lr"] * scale, plus["epochs"]) == pytest.approx(published)

    def test_search_windows(self, name):
        windows = {
            "autoformer-tiny": [(5, 6), (7, 8), (9, 10)],
            "autoformer-small": [(22, 23)],
            "autoformer-base": [(46, 48), (52, 54), (62, 64)],
        }
        search = Recipe.load(name, ["data.root=/images"]).search
        found = [(limit.min_params, limit.max_params) for limit in search.limits]
        assert found == [(low * 10**6, high * 10**6) for low, high in windows[name]]
        assert (search.population, search.generations, search.parents) == (50, 20, 10)
        assert search.mutation_prob == 0.2

    def test_needs_a_folder(self, name):
        with pytest.raises(ValueError, match=r"data\.root"):
            Recipe.load(name).data.resolved()


class TestOverrides:
    def test_values_arrive(self):
        recipe = Recipe.load(
            "digits",
            [
                "train.epochs=3",
                "optim.lr=1e-3",
                "train.amp=off",
                "search.limits=[{max_params: 80K}, {name: x, max_macs: 2e6}]",
                "search.limits.0.max_params=85K",
                "search.limits[0].max_params=90K",
                "strategy.plus.epochs=2",
                "train.epochs=4",
            ],
        )
        assert recipe.train.epochs == 4
        assert recipe.optim.lr == 1e-3
        assert recipe.train.amp == "off"
        assert [limit.max_params for limit in recipe.search.limits] == [90_000, None]
        assert recipe.search.limits[1].max_macs == 2_000_000
        assert recipe.strategy["plus"]["epochs"] == 2

    def test_nothing_else_changes(self):
        changed = Recipe.load("digits", ["train.epochs=77"])
        original = Recipe.load("digits")
        train = dataclasses.replace(original.train, epochs=77)
        assert changed == dataclasses.replace(original, train=train)

    @pytest.mark.parametrize(
        ("override", "message"),
        [
            ("epochs=3", r"unknown section 'epochs' \(did you mean 'train\.epochs'\?\)"),
            ("batch_size=3", r"'data\.batch_size' or 'search\.batch_size'"),
            ("trian.epochs=3", r"unknown section 'trian' \(did you mean 'train\.epochs'\?\)"),
            ("train.epoch=3", r"unknown field train\.epoch \(did you mean 'epochs'\?\)"),
            ("train.epochs=three", r"train\.epochs: expected an integer, got 'three'"),
            ("train.epochs=0", r"^train\.epochs is 0"),
            ("train.amp=maybe", r"train\.amp is 'maybe'"),
            ("model.pool=max", r"model\.pool: expected one of 'mean', 'cls', got 'max'"),
            ("model.pool=cls", "pool: cls needs class_token: true"),
            ("model.drop_path=1", r"drop_path must be in \[0, 1\), got 1"),
            ("space=digit", r"unknown space 'digit' \(did you mean 'digits'\?\)"),
            ("strategy.name=grow", "unknown strategy 'grow'"),
            ("strategy.plus.epoch=2", r"plus\.epoch \(did you mean 'epochs'\?\)"),
            ("strategy.stages.1.start=2", r"starts at epoch"),
            ("search.limits.0.max_params=x", r"search\.limits\[0\]: max_params"),
            ("output.dir=''", r"output: dir must be the name of a folder"),
            (
                "search.limits[7].max_params=6M",
                r"search\.limits is a list; its positions are \[0\]",
            ),
            ("optim.betas[0]=0.5", r"optim\.betas is not a list in this recipe; set all of it"),
            ("output.random_subnets=-1", "random_subnets must be at least 0"),
            ("train.epochs", r"write section\.field=value"),
            ("space.embed_dim=[1]", "space is the value 'digits', it has no fields"),
        ],
    )
    def test_refused(self, override, message):
        overrides = ["train.epochs=2", override] if "stages" in override else [override]
        with pytest.raises(ConfigError, match=message):
            Recipe.load("digits", overrides)


class TestFiles:
    def test_path_and_inline_space(self, tmp_path):
        path = tmp_path / "mine.yaml"
        path.write_text(
            "space: {embed_dim: [16, 8], depth: [1], num_heads: [1], mlp_ratio: [2], head_dim: 8}\n"
            "train: {epochs: 30}\n"
        )
        recipe = Recipe.load(path)
        assert recipe.build_space().embed_dim == (8, 16)
        assert recipe.output.dir == "runs/mine"
        assert recipe.strategy == {"name": "uniform"}
        assert recipe.model == ModelConfig()

    def test_run_folder_names_its_config(self, tmp_path):
        folder = tmp_path / "trial"
        folder.mkdir()
        (folder / "config.yaml").write_text("space: digits\n")
        assert Recipe.load(folder / "config.yaml").output == OutputConfig(dir="runs/trial")

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("- a\n", "a recipe is a mapping"),
            ("train: {epochs: 3}\n", "space is missing"),
            ("space: digits\nspase: 3\n", r"unknown section 'spase' \(did you mean 'space'\?\)"),
            ("space: digits\ntrain: 3\n", r"train: expected fields"),
            ("space: digits\nspace: digits\n", "line 2: 'space' is written twice"),
            ("space: {embed_dim: [8]}\n", "space: .*'depth' is missing"),
        ],
    )
    def test_refused(self, text, message, tmp_path):
        path = tmp_path / "bad.yaml"
        path.write_text(text)
        with pytest.raises(ConfigError, match=message):
            Recipe.load(path)

    def test_unknown_name(self):
        with pytest.raises(ConfigError, match=r"no recipe 'digit' \(did you mean 'digits'\?\)"):
            Recipe.load("digit")


def test_build_model_follows_the_recipe():
    recipe = Recipe.load("digits", ["model.drop_path=0.2", "model.relative_position=false"])
    model = recipe.build_model(in_chans=1, image_size=8, num_classes=10)
    assert model.space == SearchSpace.preset("digits")
    assert model.config["drop_path"] == 0.2
    assert model.config["image_size"] == [8, 8]
    assert not any("rel_pos" in name for name, _ in model.named_parameters())
