"""The recipe `folder`: sizes from the images, kept by a resumed run, bad folders in one line."""

from __future__ import annotations

import json
import re
import shutil
import struct
import zlib
from pathlib import Path

import numpy
import pytest

from growtas.base.config import ConfigError, load_yaml
from growtas.cli import main
from growtas.run.recipe import Recipe
from growtas.training.data import build_data

pytest.importorskip("timm")
image = pytest.importorskip("PIL.Image")


def write_images(folder: Path, count: int, side: int = 8, classes: str = "ab", mode: str = "RGB"):
    """`count` images of each class, told apart by their brightness; some are taller than wide."""
    rng = numpy.random.default_rng(0)
    for number, label in enumerate(classes):
        (folder / label).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            pixels = rng.integers(0, 90, (side + index % 2, side)) + 120 * number
            picture = image.fromarray(pixels.astype("uint8")).convert(mode)
            picture.save(folder / label / f"{index}.png")
    return folder


def make_huge(path: Path):
    """Lets a PNG file say that it has 50,000 x 50,000 pixels."""
    content = path.read_bytes()
    header = b"IHDR" + struct.pack(">II", 50_000, 50_000) + content[24:29]
    changed = header + struct.pack(">I", zlib.crc32(header))
    path.write_bytes(content[:12] + changed + content[33:])


def load(folder: Path, *overrides: str) -> tuple[Recipe, str]:
    """The recipe for a folder, and what it said."""
    said: list[str] = []
    recipe = Recipe.load("folder", [f"data.root={folder}", *overrides], say=said.append)
    return recipe, "\n".join(said)


@pytest.fixture(scope="module")
def flat(tmp_path_factory) -> Path:
    return write_images(tmp_path_factory.mktemp("flat"), 30, side=30, mode="L")


def test_train_and_val(tmp_path):
    write_images(tmp_path / "train", 40, side=66, classes="abc")
    write_images(tmp_path / "val", 2, side=66, classes="abc")
    recipe, said = load(tmp_path)
    data, model = recipe.data, recipe.model
    assert (data.num_classes, data.in_chans, data.test_split) == (3, 3, "validation")
    # 66 pixels are 8.25 patches of 8; 96 training images, more or less, make the least batch.
    assert (data.image_size, model.patch_size, model.max_relative_position) == (64, 8, 8)
    assert (data.batch_size, recipe.train.epochs, recipe.optim.warmup_epochs) == (8, 200, 10)
    space = recipe.build_space()
    assert space.embed_dim == (32, 48, 64)
    phases = recipe.build_strategy(space).phases(space, recipe.train.epochs)
    assert [phase.space.embed_dim for phase in phases] == [(32, 48), (32, 48, 64)]
    assert "120 images of 3 classes" in said
    assert "data.image_size=64 model.patch_size=8" in said
    assert "median of the shorter sides is 66 pixels, 8 x 8 patches" in said
    assert f"{tmp_path} has a split for the test" in said


def test_the_limits_span_the_space(flat):
    recipe, _ = load(flat)
    model = recipe.build_model(in_chans=1, image_size=recipe.data.image_size, num_classes=2)
    low, high = (model.num_params(s) for s in (model.space.smallest(), model.space.largest()))
    bounds = [limit.max_params for limit in recipe.search.limits]
    assert low < bounds[0] < bounds[1] < high <= bounds[2] < 1.1 * high


def test_the_limits_have_names_that_need_no_quotes(flat):
    recipe, said = load(flat)
    names = [limit.name for limit in recipe.search.limits]
    assert all(re.fullmatch(r"[0-9.]+[KM]", name) for name in names)
    assert f"{{name: {names[0]}, max_params: {names[0]}}}" in said


def test_the_steps_that_are_said_are_those_of_the_training(flat, tmp_path):
    write_images(tmp_path / "train", 36)
    write_images(tmp_path / "val", 2)
    for folder in (flat, tmp_path):
        recipe, said = load(folder, "data.split_seed=3")
        data = build_data(recipe.data, recipe.augment)
        steps, images = len(data.train_loader()), len(data.train)
        assert f"data.batch_size=8: {steps} steps in an epoch of {images} training images" in said
        assert f": {steps * recipe.train.epochs:,} steps\n" in said


def test_no_steps_are_said_where_images_come_repeatedly(flat):
    _, said = load(flat, "augment.repeated_aug=3")
    assert "data.batch_size=8: for " in said
    assert "steps" not in said


def test_one_thread_for_a_small_model(flat):
    recipe, said = load(flat)
    assert recipe.train.threads == 1
    assert "train.threads=1: 8 x 8 patches of 64 channels gain little from a second one" in said
    recipe, said = load(flat, "data.image_size=224")
    assert recipe.train.threads is None
    assert "train.threads=null: 14 x 14 patches of 64 channels are enough work" in said
    for given, threads in (("null", None), ("3", 3)):
        recipe, said = load(flat, f"train.threads={given}")
        assert recipe.train.threads == threads
        assert "threads" not in said


def test_images_that_cannot_be_read_are_left_out_of_the_sizing(tmp_path):
    write_images(tmp_path, 20, side=30, mode="L")
    # The first one of all, and one that is too large for the decoder.
    (tmp_path / "a" / "0.png").write_text("no image")
    make_huge(tmp_path / "b" / "3.png")
    recipe, said = load(tmp_path)
    assert (recipe.data.image_size, recipe.data.in_chans) == (32, 1)
    lost = "2 of 40 images cannot be read: left out of the sizing"
    assert f"{lost}; to evaluate without them: data.skip_unreadable=true\n" in said
    assert f"{lost}\n" in load(tmp_path, "data.skip_unreadable=true")[1]


def test_one_level_of_folders(flat):
    recipe, said = load(flat)
    data = recipe.data
    assert (data.test_split, data.in_chans, data.image_size) == (None, 1, 32)
    assert (data.search_fraction, data.workers) == (0.2, 0)
    assert "20% of the images are kept for it, by hash" in said


def test_what_is_written_out_stays_and_the_rest_follows(flat):
    recipe, said = load(
        flat,
        "data.image_size=90",
        "data.batch_size=4",
        "train.epochs=3",
        "space={embed_dim: [8], depth: [1, 2], num_heads: [1], mlp_ratio: [1], head_dim: 8}",
    )
    assert (recipe.data.image_size, recipe.model.patch_size) == (90, 10)
    assert (recipe.data.batch_size, recipe.train.epochs) == (4, 3)
    assert recipe.optim.warmup_epochs == 1
    assert recipe.strategy["stages"] == [{"start": 0}]
    assert recipe.search.limits[-1].max_params < 10_000
    for name in ("data.image_size", "batch_size", "space=", "train.epochs="):
        assert f"  {name}" not in said


def test_the_printed_recipe_is_a_recipe(flat, tmp_path, capsys):
    assert main(["run", "folder", f"data.root={flat}", "--print-recipe"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("# 60 images")
    path = tmp_path / "again.yaml"
    path.write_text(text)
    assert Recipe.load(path).data == load(flat)[0].data


def test_auto_needs_a_folder():
    with pytest.raises(ConfigError, match=r"train\.epochs is auto, .* data\.dataset is 'digits'"):
        Recipe.load("digits", ["train.epochs=auto"])
    with pytest.raises(ConfigError, match=r"optim\.lr: expected a number, got 'auto'"):
        Recipe.load("digits", ["optim.lr=auto"])


def two_images(folder):
    write_images(folder, 1)


def one_class(folder):
    write_images(folder, 40, classes="a")


def stray(folder):
    write_images(folder, 30)
    shutil.copy(folder / "a" / "0.png", folder / "stray.png")


def all_broken(folder):
    write_images(folder, 20)
    for path in folder.glob("*/*.png"):
        path.write_text("no image")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: shutil.rmtree(folder), "not a folder: name the one with your images"),
        (lambda folder: None, "no images (png, jpg, jpeg) in the folders below"),
        (two_images, "has 2 images; at least 40 are needed"),
        (one_class, "has only the class 'a'; two are needed"),
        (stray, "put them into class folders"),
        (all_broken, "a/0.png: cannot identify image file"),
    ],
)
def test_a_folder_that_cannot_be_used_is_one_line(make, message, tmp_path, capsys):
    folder = tmp_path / "images"
    folder.mkdir()
    make(folder)
    run = tmp_path / "run"
    assert main(["run", "folder", f"data.root={folder}", f"output.dir={run}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not run.exists()


def test_the_whole_chain_and_a_resume_that_does_not_choose_again(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    folder, run = write_images(tmp_path / "images", 40), tmp_path / "run"
    arguments = [
        "run",
        "folder",
        f"data.root={folder}",
        f"output.dir={run}",
        "space={embed_dim: [8, 16], depth: [1, 2], num_heads: [1], mlp_ratio: [1], head_dim: 8}",
        "train.epochs=2",
        "train.progress=false",
        "train.device=cpu",
        "search.population=2",
        "search.generations=1",
        "output.random_subnets=2",
    ]
    assert main(arguments) == 0
    assert "data.batch_size=8" in capsys.readouterr().out
    config = load_yaml((run / "config.yaml").read_text())
    assert "auto" not in json.dumps([config["data"], config["model"], config["search"]])
    assert len(json.loads((run / "summary.json").read_text())["winners"]) == 3
    write_images(folder, 200)  # of which a new run would make larger batches
    (run / "summary.json").unlink()
    # The data differ by then, but not what the run is: only other settings would be refused.
    assert main([*arguments, "--resume"]) == 0
    assert load_yaml((run / "config.yaml").read_text()) == config
    assert main([*arguments, "--resume", "data.batch_size=16"]) == 2
    assert "data.batch_size: 8 -> 16" in capsys.readouterr().err
