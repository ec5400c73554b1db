"""The naive baseline computes what AutoFormer's original model computes."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.baselines.naive import NaiveSupernet
from growtas.space import Subnet

GOLDEN = json.loads((Path(__file__).parents[1] / "golden/autoformer_micro_2026.json").read_text())


def fill(key: str, shape: list[int], seed: int) -> torch.Tensor:
    rng = np.random.default_rng([seed, zlib.crc32(key.encode())])
    values = rng.standard_normal(shape, dtype=np.float32) * np.float32(0.05)
    if "norm" in key and key.endswith("weight"):
        values += np.float32(1)
    return torch.from_numpy(values)


def golden_model() -> NaiveSupernet:
    model = NaiveSupernet(
        embed_dim=GOLDEN["embed_dim"],
        depth=GOLDEN["depth"],
        num_heads=GOLDEN["num_heads"],
        mlp_ratio=GOLDEN["mlp_ratio"],
        image_size=GOLDEN["img_size"],
        patch_size=GOLDEN["patch_size"],
        num_classes=GOLDEN["num_classes"],
        qkv_bias="autoformer",
    )
    model.load_state_dict(
        {key: fill(key, shape, GOLDEN["seed"]) for key, shape in GOLDEN["keys"].items()}
    )
    return model


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: str(case["subnet"]["embed_dim"]))
def test_logits_and_gradients_are_autoformers(case: dict[str, Any]) -> None:
    model = golden_model()
    rng = np.random.default_rng([GOLDEN["seed"], 11])
    shape = (GOLDEN["batch"], 3, GOLDEN["img_size"], GOLDEN["img_size"])
    images = torch.from_numpy(rng.standard_normal(shape, dtype=np.float32))
    labels = torch.from_numpy(rng.integers(0, GOLDEN["num_classes"], GOLDEN["batch"]))

    sizes = case["subnet"]
    model.set_sample_config(
        Subnet(sizes["embed_dim"], tuple(sizes["num_heads"]), tuple(sizes["mlp_ratio"]))
    )
    logits = model(images)
    loss = torch.nn.functional.cross_entropy(logits, labels)
    loss.backward()

    torch.testing.assert_close(logits[:, :10], torch.tensor(case["logits"]), rtol=1e-4, atol=1e-5)
    assert loss.item() == pytest.approx(case["loss"], rel=1e-5)
    for name, parameter in model.named_parameters():
        grad = parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
        norm = case["grad_norm"][name]
        assert grad.norm().item() == pytest.approx(norm, rel=1e-4, abs=1e-6), name
        dot = (grad * fill(name, list(parameter.shape), GOLDEN["seed"] + 1)).sum().item()
        assert dot == pytest.approx(case["grad_dot"][name], abs=1e-4 * norm + 1e-6), name
