"""What is wrong with settings or data is one line on stderr and exit code 2."""

from __future__ import annotations

import sys

import pytest
import tiny_recipe
from PIL import Image

from growtas.cli import main

pytest.importorskip("timm")
pytest.importorskip("sklearn")


def fails(capsys, *arguments: str) -> str:
    capsys.readouterr()
    assert main(list(arguments)) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    return captured.err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            "augment.auto_augment=rnad-m9",
            "augment.auto_augment is 'rnad-m9'; allowed: null, 'rand'",
        ),
        (
            f"train.seed={10**30}",
            "train.seed is 1000000000000000000000000000000; allowed: an integ",
        ),
        ("train.accumulate=257", "train.accumulate is 257; allowed: at most 256"),
        ("data.num_classes=1", "data.num_classes is 1; allowed: an integer of at least 2"),
    ],
)
def test_settings_are_refused_before_anything_is_written(tmp_path, capsys, change, message):
    path = str(tiny_recipe.write(tmp_path / "run"))
    for command in ("run", "train"):
        assert message in fails(capsys, command, path, change)
    assert not (tmp_path / "run").exists()


def test_too_few_classes_end_before_the_training(tmp_path, capsys):
    path = str(tiny_recipe.write(tmp_path / "run"))
    line = fails(capsys, "train", path, "data.num_classes=3")
    assert "data.num_classes is 3, but the data set has 10 classes" in line
    assert not (tmp_path / "run" / "checkpoint.pt").exists()


def test_a_missing_tensorboard_is_named_with_its_extra(tmp_path, capsys, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("torch.utils.tensorboard")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    path = str(tiny_recipe.write(tmp_path / "run"))
    line = fails(capsys, "train", path, "train.tensorboard=true")
    assert "this needs tensorboard: pip install 'growtas[dev]'" in line
    assert not (tmp_path / "run" / "metrics.csv").exists()


@pytest.fixture
def images(tmp_path):
    """A folder of 120 images and options that train on it."""
    for split, count in (("train", 60), ("val", 10)):
        for label in ("cat", "dog"):
            (tmp_path / split / label).mkdir(parents=True)
            for index in range(count):
                Image.new("L", (8, 8), index).save(tmp_path / split / label / f"{index:02}.png")
    recipe = str(tiny_recipe.write(tmp_path / "run"))
    data = {"dataset": "''", "root": tmp_path, "image_size": 8, "in_chans": 1, "batch_size": 16}
    return recipe, [*(f"data.{name}={value}" for name, value in data.items()), "data.workers=2"]


def test_unreadable_test_images_are_an_error_or_counted(tmp_path, images, capsys):
    recipe, options = images
    for index in range(4):
        (tmp_path / "val" / "cat" / f"0{index}.png").write_bytes(b"no image")
    assert main(["train", recipe, *options]) == 0
    warned = capsys.readouterr().err.splitlines()
    assert [line.partition(" has ")[0] for line in warned] == [
        "growtas train: warning: the search split",
        "growtas train: warning: the test split",
    ]
    evaluate = ["evaluate", str(tmp_path / "run"), "--subnet", "largest", "--split", "test"]
    line = fails(capsys, *evaluate)
    assert f"cannot read {tmp_path}/val/cat/00.png" in line
    assert "Traceback" not in line
    assert main([*evaluate, "data.skip_unreadable=true"]) == 0
    out, err = capsys.readouterr()
    assert "4 of 20 test images cannot be read and are left out" in out
    assert "of 16 test images" in out
    assert "warning: the evaluation has 16 images" in err


def test_training_images_that_cannot_be_read_end_in_one_line(tmp_path, images, capsys):
    recipe, options = images
    for path in (tmp_path / "train" / "cat").iterdir():
        path.write_bytes(b"no image")
    assert main(["train", recipe, *options]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("growtas train: 10 images in a row cannot be read; the last one: cannot")
    assert not (tmp_path / "run" / "checkpoint.pt").exists()
