"""This process among those that torchrun started; alone everywhere else.

Imports torch only where it is used: a search that scores without torch runs without it.
"""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class Process:
    """One of the processes of a run; all of them make the same calls."""

    rank: int  # from 0
    world_size: int
    # Where it computes; None only from `current`, where nobody said it.
    device: torch.device = None  # type: ignore[assignment]

    @property
    def is_main(self) -> bool:
        """Whether this process prints and writes files."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """`values` summed over all processes, the same bits on each; the input may be
        overwritten."""
        if self.world_size > 1:
            _dist().all_reduce(values)
        return values

    def min(self, values: Tensor) -> Tensor:
        """Smallest of `values` over all processes, the same on each; may overwrite the input."""
        if self.world_size > 1:
            _dist().all_reduce(values, op=_dist().ReduceOp.MIN)
        return values

    def agree(self, number: int) -> int:
        """The largest of the processes' numbers, the same on each. Waits for the processes, but not
        for their devices; where `start` has made the group."""
        if self.world_size == 1:
            return number
        import torch

        value = torch.tensor(number)
        _dist().all_reduce(value, op=_dist().ReduceOp.MAX)
        return int(value)

    def share(self, tensors: Iterable[Tensor]) -> None:
        """Give `tensors` the values that they have in process 0."""
        if self.world_size > 1:
            for tensor in tensors:
                _dist().broadcast(tensor.detach(), src=0)

    def broadcast_text(self, text: str | None) -> str | None:
        """The text of rank 0 on every rank, or None; sent as bytes, so nothing is unpickled."""
        if self.world_size == 1:
            return text
        import torch

        device = "cuda" if _dist().get_backend() == "nccl" else "cpu"
        data = b"" if text is None else text.encode()
        length = torch.tensor([-1 if text is None else len(data)], device=device)
        self.share([length])
        if (size := int(length)) < 0:
            return None
        content = data if self.is_main else bytes(size)
        payload = torch.tensor(list(content), dtype=torch.uint8, device=device)
        self.share([payload])
        return bytes(payload.tolist()).decode()

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.world_size > 1:
            _dist().barrier()


def current(device: torch.device | None = None) -> Process:
    """This process in the group that there is; alone, where there is none."""
    rank, world_size = 0, 1
    dist = sys.modules.get("torch.distributed")  # whoever made a group has imported it
    if dist is not None and dist.is_available() and dist.is_initialized():
        rank, world_size = dist.get_rank(), dist.get_world_size()
    return Process(rank, world_size, device)  # type: ignore[arg-type]


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
    import torch

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
    dist = _dist()
    if not dist.is_initialized() and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        dist.init_process_group("cpu:gloo,cuda:nccl" if place.type == "cuda" else "gloo")
        atexit.register(_leave)
    return current(place)


def _leave() -> None:
    if _dist().is_initialized():
        _dist().destroy_process_group()


def _dist() -> Any:
    import torch.distributed

    return torch.distributed
