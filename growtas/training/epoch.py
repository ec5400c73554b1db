"""The figures of an epoch under way; they survive an interruption within it."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor

from growtas.base.distributed import Process


class EpochFigures:
    """Sums over the steps of an epoch so far.

    Args:
        process: every process of the run calls the same methods.
        images: how many each process has of a batch.
        before: what `state` gave when this epoch was interrupted; None at its beginning.

    Attributes:
        steps: how many are done.
        lr: the learning rate of the latest step.
        unreadable: images by index that this process could not read.
    """

    def __init__(self, process: Process, images: int, before: dict[str, Any] | None = None) -> None:
        self.process = process
        self.images = images
        self.begun = time.perf_counter()
        self.totals = torch.zeros(2, dtype=torch.float64, device=process.device)
        self.steps, self.lr = 0, 0.0
        self.unreadable: set[int] = set()
        if before is not None:
            self.steps, self.lr = before["steps"], before["lr"]
            self.totals += before["totals"][process.rank].to(process.device)
            self.unreadable |= set(before["unreadable"])
        self.first = self.steps

    def add(self, objective: Tensor, correct: Tensor, lr: float) -> None:
        """Count one more step: its mean loss, its correct images, its learning rate."""
        self.totals[0] += objective * self.images
        self.totals[1] += correct
        self.lr = lr
        self.steps += 1

    def read(self) -> tuple[float, float]:
        """Mean loss and accuracy over all processes; waits for the device."""
        loss, correct = self.process.sum(self.totals.clone()).tolist()
        count = self.steps * self.images * self.process.world_size
        return loss / count, correct / count

    def images_per_second(self) -> float:
        """Over all processes, since the epoch was begun or continued."""
        done = (self.steps - self.first) * self.images * self.process.world_size
        return done / (time.perf_counter() - self.begun)

    def text(self) -> str:
        """The figures so far, for a person; waits for the device."""
        loss, accuracy = self.read()
        speed = self.images_per_second()
        return f"loss {loss:.3f}, accuracy {accuracy:.3f}, {speed:.0f} images/s"

    def all_unreadable(self, samples: int) -> list[int]:
        """Images, of `samples` of the data set, that some process could not read, ascending."""
        count = torch.tensor(len(self.unreadable), device=self.process.device)
        if not int(self.process.sum(count)):
            return []
        flags = torch.zeros(samples, dtype=torch.int32)
        flags[sorted(self.unreadable)] = 1
        return self.process.sum(flags.to(self.process.device)).nonzero().flatten().tolist()

    def state(self, samples: int) -> dict[str, Any]:
        """Plain values and tensors to continue from, the same on all processes; `samples` as for
        `all_unreadable`."""
        totals = self.totals.new_zeros(self.process.world_size, 2)
        totals[self.process.rank] = self.totals
        return {
            "steps": self.steps,
            "lr": self.lr,
            "totals": self.process.sum(totals),
            "unreadable": self.all_unreadable(samples),
        }
