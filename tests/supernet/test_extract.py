"""Extraction hands over an ordinary model: same logits, exact size, no growtas kernel needed."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn

import growtas
from growtas import export

from .conftest import build


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"pool": "cls"},
        {"class_token": False},
        {"relative_position": False},
        {"absolute_position": False},
        {"max_relative_position": 1},
        {"qkv_bias": "autoformer"},
        {"image_size": (8, 20), "in_chans": 2},
    ],
    ids=str,
)
def test_logits_and_size_equal_the_supernets(options, subnets):
    model = build(**options).eval()
    height, width = model.image_size
    images = torch.randn(4, model.config["in_chans"], height, width)
    for subnet in subnets:
        alone = model.extract(subnet)
        assert not alone.training
        want, got = model(images, subnet), alone(images)
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5 * want.abs().max().item())
        assert sum(p.numel() for p in alone.parameters()) == model.num_params(subnet)


def test_float64_extraction_is_exact_to_its_rounding(subnets):
    model = build().double().eval()
    images = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    for subnet in subnets:
        torch.testing.assert_close(
            model.extract(subnet)(images), model(images, subnet), rtol=1e-12, atol=1e-12
        )


def test_copy_is_independent_and_trainable(model, images, subnets):
    alone = model.extract(subnets[0])
    before = model(images, subnets[0])
    loss = alone(images).square().sum()
    loss.backward()
    assert all(p.grad is not None for p in alone.parameters())
    with torch.no_grad():
        for parameter in alone.parameters():
            parameter.zero_()
    assert torch.equal(model(images, subnets[0]), before)


def test_is_plain_pytorch(model, subnets):
    """Only torch.nn leaves, and no growtas operator in its graph."""
    alone = model.extract(subnets[1]).eval()
    leaves = {type(m) for m in alone.modules() if not list(m.children())}
    assert leaves == {nn.Conv2d, nn.Linear, nn.LayerNorm}
    program = torch.export.export(alone, (torch.randn(2, 3, 16, 16),))
    targets = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert targets
    assert not any("growtas" in target for target in targets)


def test_folder_round_trip(tmp_path, model, images, subnets):
    alone = model.eval().extract(subnets[2])
    export.save(alone, tmp_path / "best", info={"accuracy": 0.5})
    assert {p.name for p in (tmp_path / "best").iterdir()} == {"model.safetensors", "config.json"}
    again = export.load(tmp_path / "best")
    assert torch.equal(again(images), alone(images))
    assert not again.training


def test_loads_without_the_compiled_core_or_triton(tmp_path, model, images, subnets):
    """In a fresh process where neither csrc nor Triton can be imported."""
    alone = model.eval().extract(subnets[0])
    export.save(alone, tmp_path / "best")
    torch.save({"images": images, "logits": alone(images)}, tmp_path / "case.pt")
    script = f"""
import sys
sys.modules["triton"] = sys.modules["growtas._C"] = None
import torch
from growtas import export
model = export.load({str(tmp_path / "best")!r})
case = torch.load({str(tmp_path / "case.pt")!r}, weights_only=True)
torch.testing.assert_close(model(case["images"]), case["logits"])
print("loaded")
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.stdout.strip() == "loaded", result.stderr


def test_bad_folders_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"model.safetensors is missing"):
        export.load(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"")
    (tmp_path / "config.json").write_text('{"architecture": "bert"}')
    with pytest.raises(ValueError, match="describes 'bert'"):
        export.load(tmp_path)


def test_subnet_too_large_is_refused(model):
    with pytest.raises(ValueError, match="embed_dim = 99"):
        model.extract(growtas.Subnet(99, (2, 2), (2.0, 2.0)))
