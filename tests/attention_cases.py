"""Several subnets in one call of attention: equal shares of a batch, a number of heads for each."""

from __future__ import annotations

import oracles
import several
import torch

from growtas import kernels

LARGEST, HEAD_DIM, GRID = 3, 16, (2, 3)
HEADS = {"one": [2], "two": [3, 1], "three": [1, 3, 2], "absent": [0, 2]}


def check_several(heads, *, device="cpu", dtype=torch.float32, exact, images=2):
    """`heads` of each subnet, at most `LARGEST`; `exact`: see `several.check`."""
    given = {"dtype": dtype, "device": device}
    tokens = GRID[0] * GRID[1] + 1
    tables = several.random(4, 4, HEAD_DIM, seed=1, **given) * 0.5
    parts = [
        {
            "qkv": several.random(images, tokens, 3, HEAD_DIM * count, seed=10 + s, **given),
            "cotangent": several.random(images, tokens, 1, HEAD_DIM * count, seed=20 + s, **given),
        }
        for s, count in enumerate(heads)
    ]
    extents = several.column(heads, device, 1)

    def run(subnets, activations, leaves, accumulator):
        return kernels.attention(
            activations["qkv"], leaves["tables"], num_heads=LARGEST, grid=GRID,
            gradients=accumulator,
            extents=extents[list(subnets)] if len(subnets) == 1 else extents,
        )  # fmt: skip

    def oracle(subnet, qkv, tables):
        if not heads[subnet]:  # a gradient of zeros for what has no part
            return qkv.sum(-2, keepdim=True) + 0 * tables.sum()
        out = oracles.attention(qkv.flatten(2), tables, num_heads=heads[subnet], grid=GRID)
        return out.unsqueeze(-2)

    several.check(
        run, oracle, parts, {"tables": tables},
        {"tables": torch.ones_like(tables, dtype=torch.bool)},
        dict.fromkeys(("qkv", "output", "cotangent"), LARGEST * HEAD_DIM), dtype, exact,
    )  # fmt: skip
