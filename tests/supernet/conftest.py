"""A small supernet every test of this folder shares the shape of."""

from __future__ import annotations

import random

import pytest
import torch

import growtas

SPACE = growtas.SearchSpace(
    embed_dim=(24, 32, 48),
    depth=(2, 3),
    num_heads=(2, 3),
    mlp_ratio=(2.0, 3.5),
    head_dim=8,
    supernet=growtas.SupernetSize(embed_dim=56, num_heads=4, mlp_ratio=4.0, depth=4),
)


def build(**options):
    torch.manual_seed(0)
    arguments = {"image_size": 16, "patch_size": 4, "num_classes": 7, **options}
    model = growtas.Supernet(SPACE, **arguments)
    with torch.no_grad():  # zero biases and tables of std 0.02 would hide mistakes
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


@pytest.fixture
def model():
    return build()


@pytest.fixture
def images():
    return torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def subnets():
    rng = random.Random(0)
    return [SPACE.smallest(), SPACE.largest(), *(SPACE.sample(rng) for _ in range(4))]
