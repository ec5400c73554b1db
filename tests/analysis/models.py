"""The small supernet of these tests."""

from __future__ import annotations

import torch

from growtas import SearchSpace, Supernet

SPACE = SearchSpace(
    embed_dim=(8, 16, 24), depth=(1, 2, 3), num_heads=(1, 2), mlp_ratio=(1.0, 2.0), head_dim=8
)


def build_model(seed: int = 0, **options) -> Supernet:
    torch.manual_seed(seed)
    model = Supernet(SPACE, image_size=8, patch_size=4, num_classes=5, in_chans=1, **options)
    with torch.no_grad():  # std 0.02 and zero biases would make all subnets alike
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model.eval()
