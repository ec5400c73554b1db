"""The supernet computes what AutoFormer's own model computed (values stored in tests/golden).

Weights and images are rebuilt by the rule the file's ``seed`` stands for: one NumPy generator per
tensor, keyed by its name in AutoFormer's checkpoint.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import growtas

GOLDEN = json.loads(
    (Path(__file__).parents[1] / "golden" / "autoformer_micro_2026.json").read_text()
)


def tensor(key: str, shape: list[int]) -> torch.Tensor:
    rng = np.random.default_rng([GOLDEN["seed"], zlib.crc32(key.encode())])
    values = rng.standard_normal(shape, dtype=np.float32) * np.float32(0.05)
    return torch.from_numpy(values + 1 if "norm" in key and key.endswith("weight") else values)


def build() -> growtas.Supernet:
    width, depth, heads = GOLDEN["embed_dim"], GOLDEN["depth"], GOLDEN["num_heads"]
    ratio = GOLDEN["mlp_ratio"]
    space = growtas.SearchSpace((width,), (depth,), (heads,), (ratio,))
    model = growtas.Supernet(
        space, GOLDEN["img_size"], GOLDEN["patch_size"], GOLDEN["num_classes"],
        qkv_bias="autoformer",
    )  # fmt: skip
    theirs = {key: tensor(key, shape) for key, shape in GOLDEN["keys"].items()}
    ours = {}
    for key, value in theirs.items():
        name = key.replace("patch_embed_super.proj", "patch_embed").replace(".fc", ".mlp.fc")
        name = name.replace("attn_layer_norm", "norm1").replace("ffn_layer_norm", "norm2")
        if "rel_pos_embed" in name:
            continue
        if name == "patch_embed.weight":
            value = value.flatten(1)
        if name.endswith("qkv.weight"):  # rows interleave q, k, v
            value = value.view(heads, 64, 3, width).permute(2, 0, 1, 3)
        ours[name] = value
    for i in range(depth):
        prefix = f"blocks.{i}.attn."
        ours[prefix + "rel_pos"] = torch.stack(
            [theirs[f"{prefix}rel_pos_embed_{s}.embeddings_table_{a}"] for s in "kv" for a in "vh"]
        )
    model.load_state_dict(ours)
    return model


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: str(case["subnet"]["depth"]))
def test_logits_loss_gradients_and_size(case):
    rng = np.random.default_rng([GOLDEN["seed"], 11])
    shape = (GOLDEN["batch"], 3, GOLDEN["img_size"], GOLDEN["img_size"])
    images = torch.from_numpy(rng.standard_normal(shape, dtype=np.float32))
    labels = torch.from_numpy(rng.integers(0, GOLDEN["num_classes"], GOLDEN["batch"]))
    model, subnet = build(), growtas.Subnet.from_dict(case["subnet"])
    logits = model(images, subnet)
    loss = F.cross_entropy(logits, labels)
    loss.backward()
    want = torch.tensor(case["logits"])
    torch.testing.assert_close(logits[:, : want.shape[1]], want, rtol=2e-4, atol=2e-5)
    assert loss.item() == pytest.approx(case["loss"], rel=1e-5)
    assert model.num_params(subnet) == case["num_params"]
    for i in range(subnet.depth):
        block, attention = model.blocks[i], f"blocks.{i}.attn."
        for ours, theirs in (
            (block.mlp.fc1.weight.grad, f"blocks.{i}.fc1.weight"),
            (block.attn.qkv.weight.grad, attention + "qkv.weight"),
            (block.attn.rel_pos.grad[0], attention + "rel_pos_embed_k.embeddings_table_v"),
            (block.attn.rel_pos.grad[3], attention + "rel_pos_embed_v.embeddings_table_h"),
        ):
            assert ours.norm().item() == pytest.approx(case["grad_norm"][theirs], rel=2e-4)
