"""What is measured: spaces, subnets, batches, and one set of weights for every supernet."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from growtas.space import SearchSpace, Subnet


@dataclass(frozen=True)
class Case:
    """One supernet workload; the same tensors go to every variant."""

    space: SearchSpace
    subnet_name: str  # "smallest" or "largest"
    batch: int
    dtype: str  # "float32", or "bfloat16" for autocast over float32 weights
    task: str  # "train" (zero gradients, forward, loss, backward), "forward", "train_adamw"
    image_size: int = 224
    patch_size: int = 16
    num_classes: int = 1000

    @property
    def label(self) -> str:
        """space/subnet/batch/dtype/task, which `benchmarks.run --cases` matches."""
        return f"{self.space.name}/{self.subnet_name}/{self.batch}/{self.dtype}/{self.task}"

    @property
    def subnet(self) -> Subnet:
        return self.space.smallest() if self.subnet_name == "smallest" else self.space.largest()

    @property
    def model_sizes(self) -> dict[str, Any]:
        """Arguments that every supernet constructor here takes."""
        return {
            "image_size": self.image_size,
            "patch_size": self.patch_size,
            "num_classes": self.num_classes,
        }


def make_batch(case: Case, device: str, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Images [B, 3, S, S] float32 and labels [B]."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(case.batch, 3, case.image_size, case.image_size, generator=generator)
    labels = torch.randint(case.num_classes, (case.batch,), generator=generator)
    return images.to(device), labels.to(device)


def supernet_sizes(space: SearchSpace) -> dict[str, Any]:
    """Buffer sizes of the space in the baselines' arguments."""
    size = space.supernet
    return {
        "embed_dim": size.embed_dim,
        "depth": size.depth,
        "num_heads": size.num_heads,
        "mlp_ratio": size.mlp_ratio,
        "head_dim": space.head_dim,
    }


def random_weights(
    parameters: dict[str, Tensor], seed: int = 2026, std: float = 0.05
) -> dict[str, Tensor]:
    """Normal weights for these names and shapes; norm weights around 1. Every term matters at
    this scale: with zero biases and tables a wrong slice of them would go unseen."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name in sorted(parameters):
        shape = parameters[name].shape
        offset = 1.0 if "norm" in name and name.endswith("weight") else 0.0
        weights[name] = offset + std * torch.randn(shape, generator=generator)
    return weights


def naive_to_growtas(tensors: dict[str, Tensor], space: SearchSpace) -> dict[str, Tensor]:
    """Weights (or gradients) of the naive supernet, `qkv_bias="blocks"`, under growtas's names.

    A permutation of entries: q, k and v rows are taken apart, the four tables are stacked and the
    patch filters flattened.
    """
    heads, head_dim = space.supernet.num_heads, space.head_dim
    out: dict[str, Tensor] = {}
    tables: dict[str, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        name = name.replace("patch_embed_super.proj", "patch_embed")
        name = name.replace("attn_layer_norm", "norm1").replace("ffn_layer_norm", "norm2")
        name = name.replace(".fc", ".mlp.fc")
        if name == "patch_embed.weight":
            value = value.flatten(1)
        elif name.endswith("qkv.weight"):
            value = value.view(heads, head_dim, 3, -1).permute(2, 0, 1, 3).contiguous()
        elif name.endswith("qkv.bias"):
            value = value.view(3, heads, head_dim)
        elif "rel_pos_embed" in name:
            prefix, _, rest = name.partition("rel_pos_embed_")
            tables.setdefault(f"{prefix}rel_pos", {})[rest] = value
            continue
        out[name] = value
    order = [f"{role}.embeddings_table_{axis}" for role in "kv" for axis in "vh"]
    for name, four in tables.items():
        out[name] = torch.stack([four[key] for key in order])
    return out
