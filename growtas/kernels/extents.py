"""The sizes of subnets on the device, so that no launch depends on which subnets run.

With extents on the device, activations are as wide as the supernet, every launch is as large as the
largest subnet's, and an operator reads how far to go from a table in memory. What lies beyond the
extents is neither read nor meaningful. A captured CUDA graph then serves every subnet: another one
is a copy of one small table and a replay.

Several subnets can share a launch: the batch is divided in as many equal groups of consecutive
samples, and every extent has an entry for each group.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from growtas.kernels.call import observed

COPY_BYTES = 16  # that one copy of a kernel moves: eight two-byte values
COLUMNS = ("embed", "heads", "hidden", "active", "head_width")


class BlockSizes(Protocol):
    """What a subnet's extents are written from: :class:`growtas.Subnet` has it."""

    @property
    def embed_dim(self) -> int: ...
    @property
    def num_heads(self) -> Sequence[int]: ...
    @property
    def hidden_dims(self) -> Sequence[int]: ...


class BlockExtents(NamedTuple):
    """A block's columns of the table, each int32 ``[G]``, an entry for each group: views, so they
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


class LinearExtents(NamedTuple):
    """How much of its weight a linear layer reads.

    Attributes:
        out_features: int32 ``[S]``: rows taken of each matrix; None for what the host says. Where
            it is 0, there is no output.
        in_features: int32 ``[S]``: columns taken; None for x's width. 0 only with a
            residual: then there is no layer, the output is the residual, and the bias too is
            neither read nor given a gradient.
        alignment: divides both.
    """

    out_features: Tensor | None
    in_features: Tensor | None
    alignment: int = 1


class LinearSizes(NamedTuple):
    """`LinearExtents` with nothing left to the host, as a backend takes them."""

    out_features: Tensor
    in_features: Tensor
    alignment: int


class Extents:
    """The table of the sizes of one subnet, or of one for each group of the batch.

    Kernels are compiled for sizes of which they know a common divisor, because 16-byte copies need
    one; a subnet that breaks the promise is refused.

    Args:
        depth, embed_dim, num_heads, head_dim, hidden_dim: of the supernet, the largest that occur.
        embed_multiple, hidden_multiple: divide every embedding and hidden width that will occur,
            and `embed_dim` and `hidden_dim`; 8 or more is best for two-byte values, 4 is enough
            for float32. The embedding's default is the largest common divisor of 8 and
            `embed_dim`.
        groups: subnets in the table, G below; a batch must be a multiple of it.
        device: of the table.

    Attributes:
        table: int32 ``[G, depth, 5]``, columns as in `COLUMNS`. Written in place only: its address
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
        embed_multiple: int | None = None,
        hidden_multiple: int = 1,
        groups: int = 1,
        device: torch.device | str = "cpu",
    ) -> None:
        if embed_multiple is None:
            embed_multiple = math.gcd(COPY_BYTES // 2, embed_dim)
        sizes = (depth, embed_dim, num_heads, head_dim, hidden_dim)
        if min(*sizes, embed_multiple, hidden_multiple, groups) < 1:
            raise ValueError(
                f"sizes must be 1 or more, got {sizes} in {groups} groups, multiples of "
                f"{embed_multiple} and {hidden_multiple}"
            )
        if embed_dim % embed_multiple:
            raise ValueError(f"embed_multiple is {embed_multiple}, embed_dim {embed_dim}")
        if hidden_dim % hidden_multiple:
            raise ValueError(f"hidden_multiple is {hidden_multiple}, hidden_dim {hidden_dim}")
        self.depth = depth
        self.head_dim = head_dim
        self.embed_multiple = math.gcd(COPY_BYTES // 2, embed_multiple)
        self.hidden_multiple = math.gcd(COPY_BYTES // 2, hidden_multiple)
        self._largest = {"embed_dim": embed_dim, "num_heads": num_heads, "hidden_dim": hidden_dim}
        self.table = torch.zeros(groups, depth, len(COLUMNS), dtype=torch.int32, device=device)
        alignments = [math.gcd(self.embed_multiple, n) for n in (head_dim, self.hidden_multiple)]
        self.blocks = tuple(
            BlockExtents._make((*block.unbind(1), *alignments)) for block in self.table.unbind(1)
        )

    @property
    def groups(self) -> int:
        """Subnets in the table."""
        return len(self.table)

    @property
    def embed(self) -> Tensor:
        """Width of the residual stream, int32 ``[G]``."""
        return self.blocks[0].embed

    def write(self, subnets: BlockSizes | Sequence[BlockSizes]) -> None:
        """Make it the table of one subnet, or of so many: one small copy, and the host does not
        wait for it.

        Args:
            subnets: one for each group, in the order of the batch.

        Raises:
            ValueError: more or fewer subnets than groups, a subnet that the supernet does not hold,
                or a width that is no multiple of what was promised. The table is then what it was.
        """
        given = subnets if isinstance(subnets, Sequence) else (subnets,)
        if len(given) != self.groups:
            raise ValueError(f"{len(given)} subnets for {self.groups} groups")
        copy_from_host(self.table, [self._rows(subnet) for subnet in given])

    def _rows(self, subnet: BlockSizes) -> list[tuple[int, ...]]:
        depth = len(subnet.num_heads)
        if not 1 <= depth <= self.depth or len(subnet.hidden_dims) != depth:
            raise ValueError(
                f"a subnet of {depth} blocks with {len(subnet.hidden_dims)} hidden widths; the "
                f"supernet has 1 to {self.depth} blocks"
            )
        embed = self._checked("embed_dim", subnet.embed_dim, self.embed_multiple)
        rows: list[tuple[int, ...]] = []
        for heads, hidden in zip(subnet.num_heads, subnet.hidden_dims, strict=True):
            heads = self._checked("num_heads", heads, 1)
            hidden = self._checked("hidden_dim", hidden, self.hidden_multiple)
            rows.append((embed, heads, hidden, 1, heads * self.head_dim))
        return rows + [(embed, 0, 0, 0, 0)] * (self.depth - depth)

    def _checked(self, name: str, value: int, multiple: int) -> int:
        largest = self._largest[name]
        if not 1 <= value <= largest or value % multiple:
            raise ValueError(
                f"{name} is {value}; with extents on the device the supernet takes 1 to {largest}"
                + (f", multiples of {multiple}" if multiple > 1 else "")
            )
        return value


def check_extent(
    name: str,
    extent: Tensor | None,
    like: Tensor,
    smallest: int,
    largest: int,
    other: Tensor | None = None,
) -> None:
    """ValueError unless it is None or int32 ``[S]`` on the device of `like`, ``[B, ...]``.

    S subnets share the batch in equal consecutive shares, so S divides B. `other` is another extent
    of the same call: it has as many. Values are compared with the bounds where they are at hand:
    eagerly, and on the CPU, because nothing may wait for another device.
    """
    if extent is None:
        return
    if (
        extent.dim() != 1
        or not len(extent)
        or extent.dtype != torch.int32
        or extent.device != like.device
    ):
        raise ValueError(
            f"{name}: an extent must be int32 [1] on {like.device}, or [S] for S subnets, got "
            f"{extent.dtype} {list(extent.shape)} on {extent.device}"
        )
    count, batch = len(extent), like.shape[0] if like.dim() > 1 else 1
    if batch % count:
        raise ValueError(
            f"{name}: extents of {count} subnets, which do not divide a batch of {batch}"
        )
    if other is not None and len(other) != count:
        raise ValueError(f"{name}: extents of {count} and of {len(other)} subnets in one call")
    if extent.device.type == "cpu" and not observed(extent):
        values = extent.tolist()
        if min(values) < smallest or max(values) > largest:
            raise ValueError(f"{name}: extents are {values}, allowed {smallest} to {largest}")


def check_groups(batch: Tensor, groups: int) -> None:
    """ValueError unless the batch's first dimension can be divided in so many equal groups."""
    if groups < 1 or len(batch) % groups:
        raise ValueError(
            f"a batch of {len(batch)} cannot be divided in {groups} equal groups, one per subnet"
        )


def copy_from_host(target: Tensor, values: Sequence) -> None:
    """Overwrite `target`. To a CUDA device through pinned memory of its own, which is not used
    again before the copy is done: any number of copies may be under way."""
    cuda = target.device.type == "cuda"
    source = torch.tensor(values, dtype=target.dtype, pin_memory=cuda)
    target.copy_(source, non_blocking=cuda)


def inside(size: int, extent: Tensor) -> Tensor:
    """bool ``[size]``: which of so many entries an extent covers; nothing waits for the device.
    Of extents ``[..., 1]``: ``[..., size]``."""
    return torch.arange(size, device=extent.device, dtype=extent.dtype) < extent


def masked(x: Tensor, extent: Tensor) -> Tensor:
    """x ``[..., width]``, zeros beyond the extent, whatever was there; extents as for `inside`."""
    return torch.where(inside(x.shape[-1], extent), x, 0.0)


def if_present(parameter: Tensor, present: Tensor) -> Tensor:
    """The parameter, or zeros, whatever it holds, where the int32 ``[1]`` `present` is 0."""
    return torch.where(present > 0, parameter, 0.0)
