"""Keys and shapes of AutoFormer's state_dict: what a supernet of given sizes has, and which sizes a
state_dict shows."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

from growtas.base.checks import positive_int
from growtas.supernet.vit import Supernet

HEAD_DIM = 64  # fixed in AutoFormer's code, whatever the embedding dim
# In the order of our rel_pos: rows and columns for keys, rows and columns for values.
TABLES = tuple(f"rel_pos_embed_{side}.embeddings_table_{axis}" for side in "kv" for axis in "vh")

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Layout:
    """Sizes that determine AutoFormer's state_dict; None stands for a feature switched off.

    `positions` counts the class token; `table_rows` is 2r + 2 at a reach of r patches.
    """

    embed_dim: int
    depth: int
    num_heads: int
    head_dim: int
    hidden_dim: int
    num_classes: int
    in_chans: int
    patch_size: int
    positions: int | None
    table_rows: int | None

    @classmethod
    def of(cls, model: Supernet) -> Layout:
        """The layout of a supernet's tensors, written as AutoFormer's."""
        size, config = model.space.supernet, model.config
        patches = model.grid[0] * model.grid[1]
        rows = 2 * config["max_relative_position"] + 2
        return cls(
            embed_dim=size.embed_dim,
            depth=size.depth,
            num_heads=size.num_heads,
            head_dim=model.space.head_dim,
            hidden_dim=size.hidden_dim,
            num_classes=config["num_classes"],
            in_chans=config["in_chans"],
            patch_size=config["patch_size"],
            positions=patches + 1 if config["absolute_position"] else None,
            table_rows=rows if config["relative_position"] else None,
        )

    @classmethod
    def infer(cls, state: Mapping[str, Tensor], label: str, head_dim: int | None = None) -> Layout:
        """The layout that most of the tensors fit, so that `check` reports the odd ones.

        Args:
            state: tensors by AutoFormer's keys.
            label: what to call the state in messages.
            head_dim: None for the width of the relative position tables, or 64 without them.

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
        return cls(
            embed_dim=norm[0],
            depth=max(len(blocks), 1),
            num_heads=max(qkv[0] // (3 * positive_int("head_dim", head_dim)), 1),
            head_dim=head_dim,
            hidden_dim=fc1[0],
            num_classes=head[0],
            in_chans=patch[1],
            patch_size=patch[2],
            positions=position[1] if position else None,
            table_rows=table[0] if table else None,
        )

    def shapes(self) -> dict[str, Shape]:
        """AutoFormer's keys in its order, with their shapes."""
        width, inner, hidden = self.embed_dim, self.num_heads * self.head_dim, self.hidden_dim
        shapes: dict[str, Shape] = {}
        if self.positions is not None:
            shapes["pos_embed"] = (1, self.positions, width)
        shapes["cls_token"] = (1, 1, width)
        patch = (self.in_chans, self.patch_size, self.patch_size)
        shapes |= _linear("patch_embed_super.proj", width, *patch)
        for i in range(self.depth):
            block = _linear("attn.qkv", 3 * inner, width)
            if self.table_rows is not None:
                block |= {f"attn.{table}": (self.table_rows, self.head_dim) for table in TABLES}
            block |= _linear("attn.proj", width, inner)
            block |= _linear("attn_layer_norm", width) | _linear("ffn_layer_norm", width)
            block |= _linear("fc1", hidden, width) | _linear("fc2", width, hidden)
            shapes |= {f"blocks.{i}.{key}": shape for key, shape in block.items()}
        return shapes | _linear("norm", width) | _linear("head", self.num_classes, width)

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


def _linear(name: str, *shape: int) -> dict[str, Shape]:
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def _usual_shape(
    state: Mapping[str, Tensor], suffix: str | tuple[str, ...], rank: int
) -> Shape | None:
    """The most frequent shape at keys with this ending, if it has this rank and is not empty."""
    counts = Counter(tuple(value.shape) for key, value in state.items() if key.endswith(suffix))
    shape = counts.most_common(1)[0][0] if counts else ()
    return shape if len(shape) == rank and min(shape) > 0 else None
