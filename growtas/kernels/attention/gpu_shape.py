"""Everything about an attention call that its Triton kernels take as constants."""

from __future__ import annotations

from typing import Any

import torch

from growtas.kernels.triton.configs import Config, choose
from growtas.kernels.triton.support import power_of_two

MOST_SLOTS = 64  # of float32 terms that are taken by products
# The largest rows of the configuration tables: head dim, rows and columns of the grid together, and
# rows of each table.
LIMITS = (128, 254, 128)


class Shape:
    """The constants of a call, and with them the rows of the configuration tables.

    Args:
        head_dim: features per head.
        grid: rows and columns of patches.
        class_token: 1 with a class token, else 0.
        table_rows: rows of each of the four tables; None without relative position.
        dtype: of activations.
        precision: of products, as `tl.dot` names it.
        device_extents: whether the number of heads is read on the device.

    Raises:
        ValueError: a size above `LIMITS`.
    """

    def __init__(
        self,
        *,
        head_dim: int,
        grid: tuple[int, int],
        class_token: int,
        table_rows: int | None,
        dtype: torch.dtype,
        precision: str,
        device_extents: bool,
    ) -> None:
        height, width = grid
        rows = 2 if table_rows is None else table_rows
        sizes = (head_dim, height + width, rows)
        if any(size > limit for size, limit in zip(sizes, LIMITS, strict=True)):
            raise ValueError(
                "on the GPU attention takes head dims of up to {}, grids of up to {} rows and "
                "columns together and tables of up to {} rows".format(*LIMITS)
                + f", got head dim {head_dim}, a grid of {height} x {width} and {rows} rows"
            )
        self.dtype = dtype
        self.slots = power_of_two(height + width + 2)
        self.constants: dict[str, Any] = {
            "GRID_H": height,
            "GRID_W": width,
            "CLS": class_token,
            "SLOTS": self.slots,
            "HEAD_DIM": head_dim,
            "HEAD_PAD": power_of_two(head_dim),
            "TABLE_ROWS": rows,
            "ROWS": power_of_two(2 * rows),
            "RELATIVE": table_rows is not None,
            "LOAD_TERMS": dtype == torch.float32 and self.slots > MOST_SLOTS,
            "DEVICE_EXTENTS": device_extents,
            "PRECISION": precision,
        }

    def config(self, kernel: Any, architecture: int) -> Config:
        """The kernel's row of the architecture's table, by padded head dim, slots and rows."""
        sizes = tuple(self.constants[name] for name in ("HEAD_PAD", "SLOTS", "ROWS"))
        return choose(architecture, kernel.__name__, self.dtype, sizes)

    def of(self, kernel: Any, blocks: tuple[int, ...]) -> dict[str, Any]:
        """The constants that a kernel takes, with the blocks of its configuration: queries, keys
        and table rows per tile, as far as its arguments have them."""
        names = [name for name in kernel.arg_names if name.startswith("BLOCK_")]
        values = {**self.constants, **dict(zip(names, blocks, strict=True))}
        if "BLOCK_T" in values:
            values["BLOCK_T"] = min(values["BLOCK_T"], values["ROWS"])
        return {name: value for name, value in values.items() if name in kernel.arg_names}
