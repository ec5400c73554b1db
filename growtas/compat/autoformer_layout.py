"""Names, order of rows and shapes of AutoFormer's state_dict, and which sizes a state_dict shows.

AutoFormer (Chen et al., ICCV 2021) interleaves the rows of q, k and v (head i, dim j and role t of
q, k, v is row ``3 * (d * i + j) + t``), keeps the patch embedding as a convolution, and has four
relative position tables per block.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from growtas.base.checks import positive_int
from growtas.space import SupernetSize
from growtas.supernet.vit.config import SupernetConfig, check_qkv_bias
from growtas.supernet.vit.geometry import vit_geometry

HEAD_DIM = 64  # fixed in AutoFormer's code, whatever the embedding dim
# In the order of our rel_pos: rows and columns for keys, rows and columns for values.
TABLES = tuple(f"rel_pos_embed_{side}.embeddings_table_{axis}" for side in "kv" for axis in "vh")

_NAMES = (  # parts of a key: AutoFormer's, ours
    ("patch_embed_super.proj.", "patch_embed."),
    (".attn_layer_norm.", ".norm1."),
    (".ffn_layer_norm.", ".norm2."),
    (".fc1.", ".mlp.fc1."),
    (".fc2.", ".mlp.fc2."),
)


def from_autoformer(
    state: Mapping[str, Tensor], *, num_heads: int, head_dim: int, qkv_bias: str
) -> dict[str, Tensor]:
    """AutoFormer's tensors under the names and in the shapes of :class:`growtas.Supernet`.

    Works key by key, so a part of a state, or optimizer moments by parameter name, will do; keys
    that are not AutoFormer's pass unchanged. With C the embedding dim, H heads and d = head_dim:
    qkv weights ``[3Hd, C]`` become ``[3, H, d, C]``, the patch convolution ``[C, chans, p, p]``
    becomes ``[C, chans * p * p]``, four tables ``[2r + 2, d]`` become one ``[4, 2r + 2, d]``. Other
    tensors share memory with `state`.

    `qkv_bias` ``"autoformer"`` keeps the bias ``[3Hd]`` flat; ``"blocks"``, PreNAS's reading, takes
    it to be interleaved like the weight's rows and gives ``[3, H, d]``.

    Raises:
        ValueError: an unknown reading of the bias, q, k and v of another size, or a block with some
            of its four tables only.
    """
    check_qkv_bias(qkv_bias)
    ours: dict[str, Tensor] = {}
    tables: dict[str, dict[str, Tensor]] = {}
    for key, value in state.items():
        table = next((table for table in TABLES if key.endswith(table)), None)
        if table is not None:
            tables.setdefault(key.removesuffix(table) + "rel_pos", {})[table] = value
            continue
        name = key
        for theirs, mine in _NAMES:
            name = name.replace(theirs, mine)
        if name == "patch_embed.weight":
            value = value.flatten(1)
        elif name.endswith("attn.qkv.weight") or (
            name.endswith("attn.qkv.bias") and qkv_bias == "blocks"
        ):
            rows = 3 * num_heads * head_dim
            if value.shape[0] != rows:
                raise ValueError(
                    f"{key} has {value.shape[0]} rows; 3 x {num_heads} heads of {head_dim} "
                    f"need {rows}"
                )
            value = value.unflatten(0, (num_heads, head_dim, 3)).movedim(2, 0).contiguous()
        ours[name] = value
    for name, found in tables.items():
        if len(found) < len(TABLES):
            missing = ", ".join(table for table in TABLES if table not in found)
            raise ValueError(f"{name.removesuffix('rel_pos')}: {missing} missing")
        ours[name] = torch.stack([found[table] for table in TABLES])
    return ours


def to_autoformer(
    state: Mapping[str, Tensor], *, patch_size: int, in_chans: int
) -> dict[str, Tensor]:
    """The inverse of :func:`from_autoformer`, bit-equal after a round trip.

    A bias ``[3, H, d]`` is interleaved as PreNAS reads it, a flat one is AutoFormer's and stays.
    """
    theirs: dict[str, Tensor] = {}
    for name, value in state.items():
        if name.endswith("attn.rel_pos"):
            prefix = name.removesuffix("rel_pos")
            for table, rows in zip(TABLES, value.unbind(0), strict=True):
                theirs[prefix + table] = rows.clone()
            continue
        key = name
        for original, mine in _NAMES:
            key = key.replace(mine, original)
        if name == "patch_embed.weight":
            value = value.unflatten(1, (in_chans, patch_size, patch_size))
        elif ".attn.qkv." in name and value.dim() > 2:
            value = value.movedim(0, 2).flatten(0, 2)
        theirs[key] = value
    return theirs


Shape = tuple[int, ...]


class Layout(NamedTuple):
    """What determines AutoFormer's state_dict.

    Attributes:
        size: of the supernet.
        head_dim: width of a head.
        positions: patches and class token; None without a position embedding.
        options: of the supernet, apart from the image size.
    """

    size: SupernetSize
    head_dim: int
    positions: int | None
    options: dict[str, Any]

    @classmethod
    def infer(cls, state: Mapping[str, Tensor], label: str, head_dim: int | None = None) -> Layout:
        """The layout that most of the tensors fit, so that `check` reports the odd ones.

        Messages call the state `label`; `head_dim` None is the width of the relative position
        tables, or 64 without them.

        Raises:
            ValueError: a tensor without which nothing can be said is missing or has another rank.
        """
        patch = _usual_shape(state, "patch_embed_super.proj.weight", 4)
        norm = _usual_shape(state, "_layer_norm.weight", 1)
        qkv = _usual_shape(state, "attn.qkv.weight", 2)
        fc1 = _usual_shape(state, "fc1.weight", 2)
        head = _usual_shape(state, "head.weight", 2)
        if not (patch and norm and qkv and fc1 and head):
            needed = {
                "patch_embed_super.proj.weight": patch,
                "blocks.*.attn_layer_norm.weight": norm,
                "blocks.*.attn.qkv.weight": qkv,
                "blocks.*.fc1.weight": fc1,
                "head.weight": head,
            }
            raise ValueError(
                f"{label} is not of AutoFormer's supernet: missing or of another rank: "
                f"{shortened(key for key, shape in needed.items() if not shape)}; "
                f"its keys: {shortened(state)}"
            )
        table = _usual_shape(state, TABLES, 2)
        if head_dim is None:
            head_dim = table[1] if table else HEAD_DIM
        if table and (table[0] < 2 or table[0] % 2):
            raise ValueError(
                f"{label} has relative position tables of {table[0]} rows, expected 2r + 2 for a "
                "reach of r"
            )
        position = _usual_shape(state, "pos_embed", 3)
        # counted, so that a stray index costs one line of the error
        blocks = {match[1] for key in state if (match := re.match(r"blocks\.(\d+)\.", key))}
        heads = max(qkv[0] // (3 * positive_int("head_dim", head_dim)), 1)
        options: dict[str, Any] = {
            "num_classes": head[0],
            "in_chans": patch[1],
            "patch_size": patch[2],
            "absolute_position": position is not None,
            "relative_position": table is not None,
        }
        if table:
            options["max_relative_position"] = table[0] // 2 - 1
        return cls(
            SupernetSize(norm[0], heads, hidden_ratio(norm[0], fc1[0]), max(len(blocks), 1)),
            head_dim,
            position[1] if position else None,
            options,
        )

    def shapes(self) -> dict[str, Shape]:
        """AutoFormer's keys in its order, with their shapes."""
        patch_size, in_chans = self.options["patch_size"], self.options["in_chans"]
        row = max((self.positions or 2) - 1, 1)  # any image with so many patches
        config = SupernetConfig(**self.options, image_size=(patch_size, row * patch_size))
        boxes = vit_geometry(config, self.head_dim).boxes(self.size.largest())
        ours = {name: torch.empty(box, device="meta") for name, box in boxes.items()}
        theirs = to_autoformer(ours, patch_size=patch_size, in_chans=in_chans)
        return {key: tuple(value.shape) for key, value in theirs.items()}

    def check(self, state: Mapping[str, Tensor], label: str) -> None:
        """Raise one ValueError that lists every missing, unexpected and misshapen tensor."""
        expected, problems = self.shapes(), []
        for key, shape in expected.items():
            if key not in state:
                problems.append(f"{key} is missing, expected {list(shape)}")
            elif tuple(state[key].shape) != shape:
                problems.append(f"{key} is {list(state[key].shape)}, expected {list(shape)}")
            elif not state[key].is_floating_point():
                problems.append(f"{key} is {state[key].dtype}, expected floating point numbers")
        for key, value in state.items():
            if key not in expected:
                problems.append(f"{key} {list(value.shape)} is unexpected")
        if problems:
            raise ValueError(
                f"{label} is not of AutoFormer's supernet:\n  " + "\n  ".join(problems)
            )


def shortened(items: Iterable[object], most: int = 5) -> str:
    """The first items separated by commas, and how many more there are."""
    texts = [str(item) for item in items]
    more = f" and {len(texts) - most} more" if len(texts) > most else ""
    return ", ".join(texts[:most]) + more


def hidden_ratio(width: int, hidden: int) -> float:
    """The ratio whose product with `width` truncates to `hidden`."""
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else math.nextafter(ratio, math.inf)


def _usual_shape(
    state: Mapping[str, Tensor], suffix: str | tuple[str, ...], rank: int
) -> Shape | None:
    """The most frequent shape at keys with this ending, if it has this rank and is not empty."""
    counts = Counter(tuple(value.shape) for key, value in state.items() if key.endswith(suffix))
    shape = counts.most_common(1)[0][0] if counts else ()
    return shape if len(shape) == rank and min(shape) > 0 else None
