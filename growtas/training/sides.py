"""What a subnet reads of each parameter of a supernet, in terms of a table of extents:
`Supernet.boxes` for those who do not know the subnet."""

from __future__ import annotations

from growtas.kernels.adamw.static_table import Sides
from growtas.supernet import Supernet
from growtas.supernet.vit.extents import COLUMNS


def sampled_sides(model: Supernet) -> dict[str, Sides]:
    """The sides of every parameter's box, by its name. Parameters outside of the blocks go by the
    table's first row, as every subnet has a first block."""
    return {
        name: Sides(
            tuple(
                None if isinstance(dim, int) else (COLUMNS.index(dim.name), dim.factor)
                for dim in dims
            ),
            block or 0,
            COLUMNS.index("active"),
        )
        for name, dims, block in model.geometry.parameters(len(model.blocks))
    }
