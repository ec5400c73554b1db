"""The sizes of subnets on the device, so that no launch depends on which subnets run.

With extents on the device, activations are as wide as the supernet, every launch is as large as the
largest subnet's, and an operator reads how far to go from a table in memory. What lies beyond the
extents is neither read nor meaningful. A captured CUDA graph then serves every subnet: another one
is a copy of one small table and a replay.

Several subnets can share a launch: the batch is divided in as many equal shares of consecutive
samples, and every extent has an entry for each subnet.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from growtas.kernels.call import observed


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
