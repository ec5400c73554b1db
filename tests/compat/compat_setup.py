"""The micro supernet of tests/golden in AutoFormer's arguments, and configs as its scripts draw
them."""

from __future__ import annotations

import random

import torch

from growtas.compat import autoformer

CHOICES = {"depth": [2, 3, 4], "mlp_ratio": [2.0, 4], "num_heads": [1, 2], "embed_dim": [64, 96]}
SIZES = {
    "img_size": 32, "patch_size": 8, "num_classes": 10, "embed_dim": 128, "depth": 4,
    "num_heads": 2, "mlp_ratio": 4.0,
}  # fmt: skip
OPTIONS = {"qkv_bias": True, "gp": True, "relative_position": True, "change_qkv": True}


def build(cls=autoformer.Vision_TransformerSuper, seed=0, **changes):
    torch.manual_seed(seed)
    model = cls(**{**SIZES, **OPTIONS, **changes})
    with torch.no_grad():  # zero biases would hide mistakes
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


def draw() -> dict:
    """A config from Python's global generator, in AutoFormer's order."""
    depth = random.choice(CHOICES["depth"])
    config = {
        name: [random.choice(CHOICES[name]) for _ in range(depth)]
        for name in ("mlp_ratio", "num_heads")
    }
    config["embed_dim"] = [random.choice(CHOICES["embed_dim"])] * depth
    return {**config, "layer_num": depth}


def batch(dtype=torch.float32, seed=1):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(4, 3, 32, 32, generator=generator, dtype=dtype)
    return images, torch.randint(0, 10, (4,), generator=generator)
