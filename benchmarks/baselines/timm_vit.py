"""timm's VisionTransformer at the sizes of one subnet, stand-alone and without relative position.

Not the same function: it leaves the relative term out, and so is a bar that is cheaper to reach
for. Excluded from every equality check.
"""

from __future__ import annotations

from timm.layers import Attention
from timm.models.vision_transformer import Block, VisionTransformer
from torch import nn

from benchmarks.baselines.naive import SubnetSizes


def timm_vit(
    subnet: SubnetSizes,
    *,
    head_dim: int = 64,
    image_size: int = 224,
    patch_size: int = 16,
    in_chans: int = 3,
    num_classes: int = 1000,
) -> VisionTransformer:
    """A fresh timm model: per-block heads and MLP ratios, mean of the patch tokens, fused SDPA."""
    dim = subnet.embed_dim
    model = VisionTransformer(
        img_size=image_size,
        patch_size=patch_size,
        in_chans=in_chans,
        num_classes=num_classes,
        embed_dim=dim,
        depth=0,
        num_heads=1,
        global_pool="avg",
        fc_norm=False,
        weight_init="skip",
    )
    blocks = []
    for heads, ratio in zip(subnet.num_heads, subnet.mlp_ratio, strict=True):
        block = Block(dim, 1, mlp_ratio=ratio, qkv_bias=True)
        # The head dim stays 64 whatever the width (240 is not 4 * 64).
        block.attn = Attention(dim, heads, attn_head_dim=head_dim, qkv_bias=True)
        blocks.append(block)
    model.blocks = nn.Sequential(*blocks)
    return model
