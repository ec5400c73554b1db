"""The process group of a run started by torchrun; a single process everywhere else."""

from __future__ import annotations

import atexit
import os
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Process:
    """This process among those of the run."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this process prints and writes files."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """`values` summed over all processes, the same on each; the input may be overwritten."""
        if self.world_size > 1:
            dist.all_reduce(values)
        return values

    def min(self, values: Tensor) -> Tensor:
        """Smallest of `values` over all processes, the same on each; may overwrite the input."""
        if self.world_size > 1:
            dist.all_reduce(values, op=dist.ReduceOp.MIN)
        return values

    def agree(self, number: int) -> int:
        """The largest of the processes' numbers, the same on each. Waits for the processes, but not
        for their devices; where `start` has made the group."""
        if self.world_size == 1:
            return number
        value = torch.tensor(number)
        dist.all_reduce(value, op=dist.ReduceOp.MAX)
        return int(value)

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.world_size > 1:
            dist.barrier()


def start(device: str = "auto", threads: int | None = None) -> Process:
    """This process and its device; joins the process group if torchrun started us.

    Calling it again is harmless. The group (NCCL for tensors on GPUs, Gloo for others) is left at
    exit.

    Args:
        device: "auto" (a GPU if there is one, under torchrun that of the local rank), "cpu", "cuda"
            or "cuda:<index>".
        threads: CPU threads of torch's operators in this process; None leaves them as they are.

    Raises:
        ValueError: a GPU is asked for and there is none.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    elif device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"device is {device!r}, but torch sees no GPU; allowed: 'auto', 'cpu'")
    place = torch.device(f"cuda:{local_rank}" if device == "cuda" else device)
    if place.type == "cuda":
        torch.cuda.set_device(place)
    if not dist.is_initialized() and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        dist.init_process_group("cpu:gloo,cuda:nccl" if place.type == "cuda" else "gloo")
        atexit.register(_leave)
    if dist.is_initialized():
        return Process(dist.get_rank(), dist.get_world_size(), place)
    return Process(0, 1, place)


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()
