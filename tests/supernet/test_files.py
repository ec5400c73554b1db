"""Supernet files: everything needed to rebuild, nothing executed on load."""

from __future__ import annotations

import pytest
import torch

import growtas

from .conftest import SPACE, build


def test_round_trip(tmp_path, images, subnets):
    model = build(drop_path=0.1, pool="cls", qkv_bias="autoformer").eval()
    path = tmp_path / "deep" / "supernet.safetensors"
    growtas.save_supernet(model, path)
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    again = growtas.load_supernet(path)
    assert again.config == model.config
    assert again.space == SPACE
    assert again.space.supernet == SPACE.supernet
    for subnet in subnets:
        assert torch.equal(again(images, subnet), model(images, subnet))


def test_wrong_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no supernet file"):
        growtas.load_supernet(tmp_path / "none.safetensors")
    junk = tmp_path / "junk.safetensors"
    junk.write_bytes(b"not a checkpoint at all")
    with pytest.raises(ValueError, match="not a safetensors file"):
        growtas.load_supernet(junk)
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="is not a growtas supernet"):
        growtas.load_supernet(tmp_path / "other.safetensors")
