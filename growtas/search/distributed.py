"""The few collective operations a search needs; without a process group they do nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def _active() -> bool:
    import torch.distributed as dist

    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """Index of this process, 0 when there is one."""
    import torch.distributed as dist

    return dist.get_rank() if _active() else 0


def world_size() -> int:
    """Number of processes."""
    import torch.distributed as dist

    return dist.get_world_size() if _active() else 1


def all_reduce_sum(values: torch.Tensor) -> torch.Tensor:
    """Sums `values` over all processes, in place; every process gets the same bits."""
    if world_size() > 1:
        import torch.distributed as dist

        dist.all_reduce(values)
    return values


def broadcast_text(text: str | None) -> str | None:
    """The text of rank 0 on every rank, or None; sent as bytes, so nothing is unpickled."""
    if world_size() == 1:
        return text
    import torch
    import torch.distributed as dist

    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    data = list(text.encode()) if rank() == 0 and text is not None else []
    length = torch.tensor([len(data) if text is not None else -1], device=device)
    dist.broadcast(length, src=0)
    size = int(length)
    if size < 0:
        return None
    payload = torch.zeros(size, dtype=torch.uint8, device=device)
    if rank() == 0:
        payload.copy_(torch.tensor(data, dtype=torch.uint8))
    dist.broadcast(payload, src=0)
    return bytes(payload.tolist()).decode()
