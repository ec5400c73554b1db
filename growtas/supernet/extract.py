"""Extraction: copy one subnet's slices into an ordinary module."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from growtas.kernels.gradients import leading_box
from growtas.space import Subnet
from growtas.supernet.standalone import VisionTransformer

if TYPE_CHECKING:
    from growtas.supernet.vit import Supernet


def extract(supernet: Supernet, subnet: Subnet) -> VisionTransformer:
    """The subnet as a stand-alone module, on the supernet's device and in its dtype.

    Its logits equal the supernet's to rounding; its parameter count is
    ``supernet.num_params(subnet)``. It starts in the supernet's train/eval mode and shares no
    memory with it.

    Raises:
        ValueError: the subnet does not fit the supernet.
    """
    config = {
        name: value
        for name, value in supernet.config.items()
        if name not in ("drop_path", "qkv_bias", "init_std")
    }
    with torch.random.fork_rng(devices=[]):  # initial weights must not advance a training's draws
        module = VisionTransformer(
            embed_dim=subnet.embed_dim,
            num_heads=subnet.num_heads,
            hidden_dims=subnet.hidden_dims,
            head_dim=supernet.space.head_dim,
            **config,
        )
    state = supernet.state_dict()
    slices = {name: leading_box(state[name], box) for name, box in supernet.extents(subnet).items()}
    module.to(supernet.head.weight.device, supernet.head.weight.dtype)
    module.load_state_dict(_rename(slices, module), strict=True)
    return module.train(supernet.training)


@torch.no_grad()
def _rename(slices: dict[str, Tensor], module: VisionTransformer) -> dict[str, Tensor]:
    """Our names and shapes to the stand-alone module's."""
    target = module.state_dict()
    renamed = {}
    for name, value in slices.items():
        key = name.replace("patch_embed.", "patch_embed.proj.")
        renamed[key] = value.reshape(target[key].shape)
    return renamed
