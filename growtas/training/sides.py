"""What a subnet reads of each parameter of a supernet, in terms of a table of extents:
`Supernet.extents` for those who do not know the subnet."""

from __future__ import annotations

import re

from growtas.kernels.adamw.static_table import Sides
from growtas.kernels.extents import COLUMNS
from growtas.supernet import Supernet

_Column = tuple[int, int] | None

_EMBED: _Column = (COLUMNS.index("embed"), 1)
_HEADS: _Column = (COLUMNS.index("heads"), 1)
_HEAD_WIDTH: _Column = (COLUMNS.index("head_width"), 1)
_HIDDEN: _Column = (COLUMNS.index("hidden"), 1)
_FLAT_QKV: _Column = (COLUMNS.index("head_width"), 3)

_COLUMNS: dict[str, tuple[_Column, ...]] = {
    "patch_embed.weight": (_EMBED, None),
    "patch_embed.bias": (_EMBED,),
    "cls_token": (None, None, _EMBED),
    "pos_embed": (None, None, _EMBED),
    "norm1.weight": (_EMBED,),
    "norm1.bias": (_EMBED,),
    "norm2.weight": (_EMBED,),
    "norm2.bias": (_EMBED,),
    "attn.qkv.weight": (None, _HEADS, None, _EMBED),
    "attn.qkv.bias": (None, _HEADS, None),
    "attn.rel_pos": (None, None, None),
    "attn.proj.weight": (_EMBED, _HEAD_WIDTH),
    "attn.proj.bias": (_EMBED,),
    "mlp.fc1.weight": (_HIDDEN, _EMBED),
    "mlp.fc1.bias": (_HIDDEN,),
    "mlp.fc2.weight": (_EMBED, _HIDDEN),
    "mlp.fc2.bias": (_EMBED,),
    "norm.weight": (_EMBED,),
    "norm.bias": (_EMBED,),
    "head.weight": (None, _EMBED),
    "head.bias": (None,),
}
_BLOCK = re.compile(r"blocks\.(\d+)\.")


def sampled_sides(model: Supernet) -> dict[str, Sides]:
    """The sides of every parameter's box, by its name. Parameters outside of the blocks go by the
    table's first row, as every subnet has a first block."""
    found = {}
    for name, parameter in model.named_parameters():
        block = _BLOCK.match(name)
        columns = _COLUMNS[name[block.end() :] if block else name]
        if name.endswith("qkv.bias") and parameter.dim() == 1:  # AutoFormer's: a prefix
            columns = (_FLAT_QKV,)
        found[name] = Sides(columns, int(block[1]) if block else 0, COLUMNS.index("active"))
    return found
