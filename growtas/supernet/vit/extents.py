"""The table of sizes on the device: which sizes of a Vision Transformer it holds, and what of it
each layer of a block reads. :mod:`growtas.kernels.extents` says what it is for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, TypedDict, Unpack

import torch
from torch import Tensor

from growtas.kernels.extents import LinearExtents, copy_from_host
from growtas.space import Subnet
from growtas.supernet.geometry import SizeReader
from growtas.supernet.vit.geometry import AXES

COPY_BYTES = 16  # that one copy of a kernel moves: eight two-byte values
COLUMNS = (*(axis.name for axis in AXES), "active", "head_width")

_sizes = SizeReader(AXES)


class BlockExtents(NamedTuple):
    """A block's columns of the table, each int32 ``[S]``, an entry for each subnet: views, so they
    follow what is written.

    Attributes:
        embed: width of the residual stream, the same in all blocks, the inactive ones too.
        heads: attention heads; 0 where inactive.
        hidden: width of the MLP; 0 where inactive.
        active: 1, or 0 for a block beyond the subnet's depth.
        head_width: ``heads * head_dim``.
        head_alignment: divides every embedding width and `head_width`.
        hidden_alignment: divides every embedding width and `hidden`.
    """

    embed: Tensor
    heads: Tensor
    hidden: Tensor
    active: Tensor
    head_width: Tensor
    head_alignment: int
    hidden_alignment: int

    @property
    def qkv(self) -> LinearExtents:
        return LinearExtents(self.head_width, self.embed, self.head_alignment)

    @property
    def proj(self) -> LinearExtents:
        return LinearExtents(self.embed, self.head_width, self.head_alignment)

    @property
    def fc1(self) -> LinearExtents:
        return LinearExtents(self.hidden, self.embed, self.hidden_alignment)

    @property
    def fc2(self) -> LinearExtents:
        return LinearExtents(self.embed, self.hidden, self.hidden_alignment)


class Multiples(TypedDict, total=False):
    """What is promised to `Extents`: numbers that divide every width that will occur."""

    embed_multiple: int | None
    hidden_multiple: int


class Extents:
    """The table of the sizes of one subnet, or of several that share a batch.

    Kernels are compiled for sizes of which they know a common divisor, because 16-byte copies need
    one; a subnet that breaks the promise is refused.

    Args:
        depth, embed_dim, num_heads, head_dim, hidden_dim: of the supernet, the largest that occur.
        groups: subnets in the table, S below; a batch must be a multiple of it.
        multiples: ``embed_multiple`` and ``hidden_multiple`` divide every embedding and hidden
            width that will occur, and `embed_dim` and `hidden_dim`; 8 or more is best for two-byte
            values, 4 is enough for float32. By default the embedding's is the largest common
            divisor of 8 and `embed_dim`, the hidden widths' 1.

    Attributes:
        table: int32 ``[S, depth, 5]``, columns as in `COLUMNS`. Written in place only: its address
            stays.
        blocks: views of it.
        embed_multiple: what is promised of embedding widths, at most 8.

    Raises:
        ValueError: a size below 1, or a multiple that does not divide its size.
    """

    def __init__(
        self,
        depth: int,
        embed_dim: int,
        num_heads: int,
        head_dim: int,
        hidden_dim: int,
        *,
        groups: int = 1,
        device: torch.device | str = "cpu",
        **multiples: Unpack[Multiples],
    ) -> None:
        sizes = (depth, embed_dim, num_heads, head_dim, hidden_dim)
        of_embed, of_hidden = _promised(embed_dim, **multiples)
        if min(*sizes, of_embed, of_hidden, groups) < 1:
            raise ValueError(
                f"sizes must be 1 or more, got {sizes} in {groups} groups, multiples of "
                f"{of_embed} and {of_hidden}"
            )
        if embed_dim % of_embed:
            raise ValueError(f"embed_multiple is {of_embed}, embed_dim {embed_dim}")
        if hidden_dim % of_hidden:
            raise ValueError(f"hidden_multiple is {of_hidden}, hidden_dim {hidden_dim}")
        self.depth = depth
        self.head_dim = head_dim
        self.embed_multiple = math.gcd(COPY_BYTES // 2, of_embed)
        hidden_multiple = math.gcd(COPY_BYTES // 2, of_hidden)
        self._limits = (  # of the axes: what messages call them, the largest, what divides them
            ("embed_dim", embed_dim, self.embed_multiple),
            ("num_heads", num_heads, 1),
            ("hidden_dim", hidden_dim, hidden_multiple),
        )
        self._known: dict[tuple[int, ...], tuple[int, ...]] = {}  # rows by the sizes of a block
        self.table = torch.zeros(groups, depth, len(COLUMNS), dtype=torch.int32, device=device)
        alignments = [math.gcd(self.embed_multiple, n) for n in (head_dim, hidden_multiple)]
        self.blocks = tuple(
            BlockExtents._make((*block.unbind(1), *alignments)) for block in self.table.unbind(1)
        )

    @property
    def groups(self) -> int:
        """Subnets in the table."""
        return len(self.table)

    @property
    def embed(self) -> Tensor:
        """Width of the residual stream, int32 ``[S]``."""
        return self.blocks[0].embed

    def write(self, subnets: Subnet | Sequence[Subnet]) -> None:
        """Make it the table of one subnet, or of S in the order of their shares of the batch: one
        small copy, and the host does not wait for it.

        Raises:
            ValueError: more or fewer subnets than the table is for, a subnet that the supernet does
                not hold, or a width that is no multiple of what was promised. The table is then
                what it was.
        """
        given = subnets if isinstance(subnets, Sequence) else (subnets,)
        if len(given) != self.groups:
            raise ValueError(f"{len(given)} subnets for {self.groups} groups")
        copy_from_host(self.table, [self._rows(subnet) for subnet in given])

    def _rows(self, subnet: Subnet) -> list[tuple[int, ...]]:
        outer, blocks = _sizes(subnet)
        if not 1 <= len(blocks) <= self.depth:
            raise ValueError(
                f"a subnet of {len(blocks)} blocks; the supernet has 1 to {self.depth} blocks"
            )
        known = self._known
        rows = [known.get(sizes := outer + block) or self._row(sizes) for block in blocks]
        inactive = (*outer, *[0] * (len(COLUMNS) - len(outer)))
        return rows + [inactive] * (self.depth - len(blocks))

    def _row(self, sizes: tuple[int, ...]) -> tuple[int, ...]:
        for size, (name, largest, multiple) in zip(sizes, self._limits, strict=True):
            if not 1 <= size <= largest or size % multiple:
                raise ValueError(
                    f"{name} is {size}; with extents on the device the supernet takes 1 to "
                    f"{largest}" + (f", multiples of {multiple}" if multiple > 1 else "")
                )
        embed, heads, hidden = sizes
        row = self._known[sizes] = (embed, heads, hidden, 1, heads * self.head_dim)
        return row


def _promised(
    embed_dim: int, embed_multiple: int | None = None, hidden_multiple: int = 1
) -> tuple[int, int]:
    if embed_multiple is None:
        embed_multiple = math.gcd(COPY_BYTES // 2, embed_dim)
    return embed_multiple, hidden_multiple
