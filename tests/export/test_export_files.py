"""Exported models on disk: what the folder says, and what is refused before it is allocated."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import growtas
from growtas import export
from growtas.base.image_transform import ImageTransform

SPACE = growtas.SearchSpace((16,), (2,), (1, 2), (2.0,), head_dim=8, name="small")
TRANSFORM = ImageTransform((8, 16), 1, (0.3,), (0.4,), "bilinear", 0.9)


def exported(**options):
    torch.manual_seed(0)
    model = growtas.Supernet(
        SPACE, image_size=(8, 16), patch_size=4, num_classes=3, in_chans=1, **options
    )
    return model.eval().extract(SPACE.largest())


@pytest.fixture
def folder(tmp_path):
    model = exported()
    model.transform, model.classes = TRANSFORM, ("cat", "dog", "Ähre")
    export.save(model, tmp_path / "model", info={"accuracy": 0.5})
    return tmp_path / "model"


def change(folder, **fields):
    """Other values in config.json: of its sections, or of the model's config."""
    path = folder / "config.json"
    values = json.loads(path.read_text())
    for name, value in fields.items():
        target = values if name in values else values["config"]
        if value is None:
            del target[name]
        else:
            target[name] = value
    path.write_text(json.dumps(values))


def test_transform_and_classes_come_back(folder, tmp_path):
    model = export.load(folder)
    assert model.transform == TRANSFORM
    assert model.classes == ("cat", "dog", "Ähre")
    values = json.loads((folder / "config.json").read_text())
    assert values["transform"] == {
        "mean": [0.3], "std": [0.4], "interpolation": "bilinear", "crop_pct": 0.9,
    }  # fmt: skip
    assert values["info"] == {"accuracy": 0.5}
    # the same model, the same bytes
    export.save(model, tmp_path / "again", info={"accuracy": 0.5})
    for file in folder.iterdir():
        assert (tmp_path / "again" / file.name).read_bytes() == file.read_bytes()


def test_folders_of_version_0_1_load(tmp_path):
    """Without checksum, transform and classes."""
    model = exported()
    save_file(model.state_dict(), tmp_path / "model.safetensors", {"format": "pt"})
    values = {"architecture": "growtas.VisionTransformer", "config": model.config, "info": {}}
    (tmp_path / "config.json").write_text(json.dumps(values))
    again = export.load(tmp_path)
    images = torch.randn(2, 1, 8, 16)
    assert torch.equal(again(images), model(images))
    assert (again.transform, again.classes) == (None, None)


def test_changed_weights_are_read_only_on_request(folder):
    path = folder / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ValueError, match=r"model.safetensors' is damaged.*verify=False"):
        export.load(folder)
    assert isinstance(export.load(folder, verify=False), growtas.VisionTransformer)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"embed_dim": 10**7}, r"cls_token is \[1, 1, 16\] in the file, \[1, 1, 10000000\] there"),
        ({"embed_dim": 10**30}, "config.json': "),
        ({"num_classes": 10**12}, r"head.weight is \[3, 16\] in the file"),
        ({"head_dim": 10**9}, "qkv.weight is"),
        ({"hidden_dims": [32]}, "num_heads is for 2 blocks, hidden_dims for 1: both need one"),
        ({"num_heads": [2]}, "holds 2 blocks, the model of config.json has 1"),
        ({"num_heads": [], "hidden_dims": []}, "holds 2 blocks, the model of config.json has 0"),
        ({"num_heads": [2, 0]}, r"num_heads\[1\] must be at least 1, got 0"),
        ({"num_heads": 2}, "config.num_heads: expected a list, each item an integer, got 2"),
        ({"num_heads": [2, "3"]}, r"config.num_heads\[1\]: expected an integer, got '3'"),
        ({"embed_dim": -16}, "embed_dim must be at least 1, got -16"),
        ({"embed_dim": None}, "config.embed_dim is missing"),
        ({"image_size": [8]}, r"image_size is \[8\]; a side is needed, or height and width"),
        ({"image_size": [9, 16]}, "image_size 9 x 16 is not a multiple of patch_size 4"),
        ({"image_size": [8, 8]}, "pos_embed is"),
        ({"patch_size": 0}, "patch_size must be at least 1, got 0"),
        ({"pool": "max"}, "pool is 'max', allowed: mean, cls"),
        ({"layer_norm_eps": "x"}, "config.layer_norm_eps: expected a number, got 'x'"),
        ({"layer_norm_eps": -1.0}, "layer_norm_eps is -1.0, it must be 0 or more"),
        ({"relative_position": False}, "rel_pos is .* in the file, missing there"),
        ({"max_relative_position": 3}, r"rel_pos is \[4, 30, 8\] in the file, \[4, 8, 8\] there"),
        ({"config": 3}, "config: expected fields"),
        ({"classes": "abc"}, "classes: expected a list"),
        ({"classes": ["a"] * 4}, "classes names 4, but config.num_classes is 3"),
        ({"transform": {"mean": [0.3]}}, "transform.std is missing"),
        ({"transform": 3}, "transform must map names to values, got 3"),
        (
            {"transform": {"mean": [0.3], "std": [0.0], "interpolation": "x", "crop_pct": 1}},
            "transform: std is .0.0.; allowed: numbers above 0",
        ),
    ],
)
def test_config_that_is_not_the_weights_is_refused_by_name(folder, fields, message):
    change(folder, **fields)
    with pytest.raises(ValueError, match=message) as caught:
        export.load(folder)
    assert str(folder) in str(caught.value)


def test_tables_of_a_huge_image_are_refused(tmp_path):
    """Without position embedding no tensor of the file tells the image size."""
    export.save(exported(absolute_position=False), tmp_path)
    change(tmp_path, image_size=[40_000, 40_000])
    with pytest.raises(ValueError, match=r"image_size.* needs \d+ GiB for relative positions"):
        export.load(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '"bert"', "\x00"])
def test_config_that_is_no_config(folder, text):
    (folder / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"config\.json' (is not JSON|describes)"):
        export.load(folder)


def test_weights_of_another_model(folder):
    tensors = load_file(folder / "model.safetensors")
    del tensors["norm.bias"]
    save_file({**tensors, "other": torch.zeros(2)}, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"norm.bias is missing in .*; other is \[2\] in the file"):
        export.load(folder)
