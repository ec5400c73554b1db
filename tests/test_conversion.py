"""`growtas convert`: AutoFormer's checkpoints to supernet files and to runs, and back."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import tiny_recipe
import torch

import growtas
from growtas.base.config import dump_yaml, load_yaml
from growtas.cli import main
from growtas.compat.autoformer_layout import to_autoformer

SPACE = growtas.SearchSpace((64, 128), (1, 2), (1, 2), (2.0, 4.0), name="small")


def original(path: Path, space: growtas.SearchSpace = SPACE, **options: object) -> growtas.Supernet:
    """A supernet of random weights, its tensors written to `path` as AutoFormer writes them."""
    torch.manual_seed(0)
    arguments = {"image_size": 32, "patch_size": 8, "num_classes": 10, "qkv_bias": "autoformer"}
    model = growtas.Supernet(space, **arguments | options).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    config = model.config
    state = to_autoformer(
        model.state_dict(), patch_size=config["patch_size"], in_chans=config["in_chans"]
    )
    torch.save({"model": state, "epoch": 499}, path)
    return model


def fails(arguments: list[str], capsys) -> str:
    capsys.readouterr()
    assert main(arguments) == 2
    return capsys.readouterr().err


@pytest.mark.parametrize("reading", ["autoformer", "blocks"])
def test_there_and_back(tmp_path, capsys, reading):
    model = original(tmp_path / "theirs.pth", qkv_bias=reading, pool="cls")
    SPACE.to_yaml(tmp_path / "space.yaml")
    # the names say nothing: content decides the direction
    into, back = tmp_path / "ours.bin", tmp_path / "deep" / "back.bin"
    options = ["--qkv-bias", reading, "--pool", "cls", "--space", str(tmp_path / "space.yaml")]
    assert main(["convert", str(tmp_path / "theirs.pth"), str(into), *options]) == 0
    said = capsys.readouterr().out
    count = sum(value.numel() for value in model.parameters())
    assert f"embedding 128, 2 blocks, 2 heads of 64, MLP 512; {count:,} parameters" in said
    assert "3 x 32 x 32, patches of 8, 10 classes" in said
    assert f"subnets: {SPACE.size:,}" in said
    assert {"autoformer": "a flat prefix", "blocks": "PreNAS's, interleaved"}[reading] in said

    ours = growtas.load_supernet(into)
    assert ours.space == SPACE
    images = torch.randn(2, 3, 32, 32)
    for subnet in (SPACE.smallest(), SPACE.sample(random.Random(1))):
        assert torch.equal(ours(images, subnet), model(images, subnet))

    assert main(["convert", str(into), str(back)]) == 0
    assert "AutoFormer checkpoint" in capsys.readouterr().out
    theirs = torch.load(tmp_path / "theirs.pth", weights_only=True)["model"]
    again = torch.load(back, weights_only=True)["model"]
    assert again.keys() == theirs.keys()
    assert all(torch.equal(again[key], theirs[key]) for key in theirs)


def test_refusals(tmp_path, capsys):
    checkpoint, target = tmp_path / "theirs.pth", tmp_path / "ours.safetensors"
    original(checkpoint)
    arguments = ["convert", str(checkpoint), str(target)]
    assert main(arguments) == 0
    before = target.read_bytes()
    assert "exists: add --overwrite" in fails(arguments, capsys)
    assert "is a folder: name a file in it, or add --recipe" in fails(
        ["convert", str(checkpoint), str(tmp_path)], capsys
    )
    preset = [*arguments, "--overwrite", "--space", "autoformer-tiny"]
    assert "'autoformer-tiny' is of a supernet of embed_dim 256" in fails(preset, capsys)
    assert "no.yaml" in fails([*arguments, "--overwrite", "--space", "no.yaml"], capsys)
    assert "data.root=x changes a recipe: add --recipe" in fails(
        [*arguments, "data.root=x"], capsys
    )
    assert target.read_bytes() == before
    assert main([*arguments, "--overwrite"]) == 0
    back = ["convert", str(target), str(tmp_path / "back.pth")]
    assert "says its space and pool itself" in fails(
        [*back, "--space", "digits", "--pool", "cls"], capsys
    )
    (tmp_path / "junk").write_bytes(b"junk")
    junk = ["convert", str(tmp_path / "junk"), str(tmp_path / "out")]
    assert "not a PyTorch checkpoint" in fails(junk, capsys)
    assert "none.pth" in fails(["convert", "none.pth", str(tmp_path / "out")], capsys)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [
        "junk", "ours.safetensors", "theirs.pth"
    ]  # fmt: skip


@pytest.fixture
def recipe(tmp_path) -> Path:
    """The tiny recipe, for a checkpoint of its own sizes."""
    values = tiny_recipe.values(tmp_path / "elsewhere")
    values["model"] |= {"class_token": True, "patch_size": 2, "drop_path": 0.2}
    values["search"] |= {"generations": 1, "limits": [{"name": "any"}]}
    values["output"]["random_subnets"] = 0
    path = tmp_path / "recipe.yaml"
    path.write_text(dump_yaml(values))
    return path


def test_a_checkpoint_becomes_a_run_that_can_be_searched_and_evaluated(recipe, tmp_path, capsys):
    for package in ("timm", "sklearn", "matplotlib"):
        pytest.importorskip(package)
    loaded = growtas.SearchSpace.from_dict(load_yaml(recipe.read_text())["space"])
    digits = {"image_size": 8, "patch_size": 4, "in_chans": 1, "max_relative_position": 2}
    model = original(tmp_path / "theirs.pth", loaded, **digits)
    run = tmp_path / "run"
    adopt = ["convert", str(tmp_path / "theirs.pth"), str(run), "--recipe", str(recipe)]
    assert main(adopt) == 0
    assert f"{run}: run folder with the supernet of" in capsys.readouterr().out
    saved = load_yaml((run / "config.yaml").read_text())["model"]
    # the checkpoint knows its patch size and bias, the recipe its drop path
    assert (saved["patch_size"], saved["qkv_bias"], saved["drop_path"]) == (4, "autoformer", 0.2)

    # what PreNAS and AutoFormer publish names subnets of the run
    subnet = loaded.largest()
    fields = subnet.to_dict()
    (tmp_path / "candidates.json").write_text(json.dumps({"0.1": [fields, fields]}))
    retrain = {"RETRAIN": {name.upper(): value for name, value in subnet.to_dict().items()}}
    (tmp_path / "subnet.yaml").write_text(dump_yaml(retrain))
    results = []
    for name in (f"{tmp_path / 'candidates.json'}:0.1-2", str(tmp_path / "subnet.yaml")):
        assert main(["evaluate", str(run), "--subnet", name, "--json"]) == 0
        results.append(json.loads(capsys.readouterr().out))
    assert results[0] == results[1]
    assert results[0]["num_params"] == model.num_params(subnet)
    assert results[0]["count"] > 100

    several = str(tmp_path / "candidates.json")
    evaluate = ["evaluate", str(run), "--subnet"]
    assert f"has several; use {several}:0.1-1, {several}:0.1-2" in fails(
        [*evaluate, several], capsys
    )
    assert f"{several} has no '7'" in fails([*evaluate, f"{several}:7"], capsys)

    assert main(["run", str(run / "config.yaml"), "--resume"]) == 0
    assert "train: done before" in capsys.readouterr().out
    assert (run / "best" / "config.json").is_file()
    assert f"{run} already holds a run" in fails(adopt, capsys)


def test_data_that_do_not_fit_are_refused_before_anything_is_written(recipe, tmp_path, capsys):
    pytest.importorskip("sklearn")
    space = growtas.SearchSpace.from_dict(load_yaml(recipe.read_text())["space"])
    options = {"image_size": 8, "patch_size": 4, "in_chans": 1}
    for change, message in (
        ({"num_classes": 7}, "data have 10, the checkpoint was made for 7: no setting helps (the"),
        ({"num_classes": 1000}, "classes: the data have 10, the checkpoint was made for 1000: add "
         "data.num_classes=1000"),
        ({"in_chans": 3}, "image channels: the data have 1, the checkpoint was made for 3: add "
         "data.in_chans=3"),
        ({"image_size": 16}, "pixels: the data have 8, the checkpoint was made for 16: add "
         "data.image_size=16"),
        ({"image_size": 16, "in_chans": 3}, "add data.in_chans=3 data.image_size=16"),
    ):  # fmt: skip
        original(tmp_path / "theirs.pth", space, **options | change)
        said = fails(
            [
                "convert",
                str(tmp_path / "theirs.pth"),
                str(tmp_path / "run"),
                "--recipe",
                str(recipe),
            ],
            capsys,
        )
        assert message in said
    assert not (tmp_path / "run").exists()
