"""Batches: how they are read, in worker processes or in this one. Each has random numbers of its
own and an account of the images that could not be read."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

import torch
import torch.utils.data
from torch import Tensor

from growtas.base import stopping
from growtas.base.distributed import Process
from growtas.base.optional import require
from growtas.training.config import AugmentConfig
from growtas.training.samples import ImageView, SampleError, UnreadableImage, some_names

# An image that cannot be read is an error, is left out of its batch, or is replaced by another one.
OnUnreadable = Literal["raise", "skip", "replace"]
Key = tuple[str, list[int]]  # name of the batch's random numbers ("" for none), positions in a view

# So many unreadable images in a row mean that not an image but the whole place is broken.
_IN_A_ROW = 10


class WorkerDied(ChildProcessError):
    """A process that reads images has died."""


@contextmanager
def seeded(name: str, device: torch.device | None = None) -> Iterator[None]:
    """The global generators of Python, NumPy and torch, on a GPU that of `device` too, as `name`
    says: equal names give equal numbers. Afterwards they are as before."""
    numpy = require("numpy", "train")
    before = random.getstate(), numpy.random.get_state()
    cuda = [device] if device is not None and device.type == "cuda" else []
    with torch.random.fork_rng(cuda):
        seed_all(name, device)
        try:
            yield
        finally:
            random.setstate(before[0])
            numpy.random.set_state(before[1])


def seed_all(name: str, device: torch.device | None = None) -> None:
    """Seed the global generators of Python, NumPy and torch with a text; on a GPU that of `device`
    too."""
    seed = random.Random(name).getrandbits(32)
    random.seed(seed)
    require("numpy", "train").random.seed(seed)
    # Not torch.manual_seed: with CUDA not yet in use, it formats a stack trace at every call.
    torch.default_generator.manual_seed(seed)
    if device is not None and device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)


@dataclass(eq=False, repr=False)
class BatchReader(torch.utils.data.Dataset[Any]):
    """Whole batches of a view: the item of a `Key` is (images, labels, unread).

    `unread` lists (index, reason) of the images that could not be read; images and labels are None
    if none of the batch could. An error about a sample is returned, not raised: from another
    process it would arrive as a traceback in a text.
    """

    view: ImageView
    collate: Callable[[list[Any]], Any]
    on_unreadable: OnUnreadable

    def __getitem__(self, key: Key) -> Any:
        name, positions = key
        try:
            if not name:
                return self._read(positions)
            with seeded(name):
                return self._read(positions)
        except (UnreadableImage, SampleError) as error:
            return error

    def _read(self, positions: Sequence[int]) -> Any:
        unread: list[tuple[int, str]] = []
        samples = []
        for position in positions:
            sample = self._try(position, unread)
            if sample is None and self.on_unreadable == "replace":
                sample = self._next(position, unread)
            if sample is not None:
                samples.append(sample)
        return (*(self.collate(samples) if samples else (None, None)), unread)

    def _try(self, position: int, unread: list[tuple[int, str]]) -> tuple[Tensor, int] | None:
        """A sample of the view; None, and an entry in `unread`, if it cannot be read."""
        try:
            return self.view[position]
        except UnreadableImage as error:
            if self.on_unreadable == "raise":
                raise UnreadableImage(
                    f"{error}; data.skip_unreadable=true leaves such images out and counts them"
                ) from error
            unread.append((self.view.indices[position], str(error)))
            return None

    def _next(self, position: int, unread: list[tuple[int, str]]) -> tuple[Tensor, int]:
        """The next sample of the view, so of the same split, that can be read."""
        for step in range(1, _IN_A_ROW):
            sample = self._try((position + step) % len(self.view), unread)
            if sample is not None:
                return sample
        raise UnreadableImage(
            f"{_IN_A_ROW} images in a row cannot be read; the last one: {unread[-1][1]}"
        )


class EpochOrder(torch.utils.data.Sampler[Key]):
    """The batches of an epoch: full ones only, numbered, from any of them on.

    Args:
        sampler: positions of this process in the order of the epoch; has ``set_epoch``.
        batch: how many images a batch has.
        seed: the run's.
        rank: the process's; each process has random numbers of its own.
    """

    def __init__(self, sampler: Any, batch: int, seed: int, rank: int) -> None:
        self.sampler = sampler
        self.batch = batch
        self.seed = seed
        self.rank = rank
        self.epoch = self.first = 0
        self.steps = len(sampler) // batch
        self.set_epoch(0)

    def set_epoch(self, epoch: int, first: int = 0) -> None:
        """Select the order of epoch `epoch`, from batch number `first` on."""
        self.epoch, self.first = epoch, first
        self.sampler.set_epoch((self.seed << 20) + epoch)

    def name(self, number: int, what: str) -> str:
        """Names the random numbers for batch `number`: they depend on nothing that came before."""
        return f"growtas:{self.seed}:{self.epoch}:{self.rank}:{number}:{what}"

    def __len__(self) -> int:
        return self.steps - self.first

    def __iter__(self) -> Iterator[Key]:
        order = iter(self.sampler)
        for number in range(self.steps):
            positions = list(islice(order, self.batch))
            if number >= self.first:
                yield self.name(number, "images"), positions


class Batches:
    """Batches of one process: (images [batch, channels, side, side] float32, labels [batch] int64).

    Args:
        view: the samples of this process.
        keys: the batches of a pass.
        collate, on_unreadable: as for `BatchReader`.
        workers: processes that read.
        prefetch: what is put around the batches read where the device is a GPU.

    Attributes:
        dataset: the view.
        unreadable: reasons by index of the images that the latest pass could not read.

    Raises (while iterating):
        UnreadableImage, SampleError: about a sample.
        WorkerDied: a worker process was killed.
    """

    def __init__(
        self,
        view: ImageView,
        keys: Iterable[Key],
        *,
        collate: Callable[[list[Any]], Any],
        on_unreadable: OnUnreadable,
        workers: int,
        pin_memory: bool,
        prefetch: Callable[[Iterable[Any]], Iterable[Any]] | None,
    ) -> None:
        self.dataset = view
        self.unreadable: dict[int, str] = {}
        self._prefetch = prefetch
        # Workers do not outlive the epoch: each pass begins with the order set before it.
        self._loader = torch.utils.data.DataLoader(
            BatchReader(view, collate, on_unreadable),
            batch_size=None,
            sampler=keys,
            num_workers=workers,
            pin_memory=pin_memory,
            collate_fn=_as_is,
            worker_init_fn=stopping.in_worker,
            generator=torch.Generator(),  # not the caller's, for the seeds of the workers
        )

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        batches = self._read()
        return batches if self._prefetch is None else iter(self._prefetch(batches))

    def _read(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches before the prefetching."""
        self.unreadable = {}
        with naming_dead_workers():
            for batch in self._loader:
                if isinstance(batch, Exception):
                    raise batch
                images, labels, unread = batch
                self.unreadable.update(unread)
                if images is not None:
                    yield images, labels


@dataclass(eq=False, repr=False)
class TrainLoader:
    """`Batches` for one epoch after the other.

    All processes together see each batch of the epoch's order exactly once; the last, incomplete
    batch is dropped. The order and the augmentation of a batch depend on the seed, the epoch
    (`set_epoch`), the process and the batch's number only, not on workers or on what was read
    before. An image that cannot be read is replaced by the next one of the training split.

    Args:
        batches: of an epoch.
        order: which batches an epoch has.
        erase: random erasing on the device; None where the transform does it, or nobody.
        device: where the batches are.
    """

    batches: Batches
    order: EpochOrder
    erase: Callable[[Tensor], Tensor] | None
    device: torch.device

    @property
    def unreadable(self) -> dict[int, str]:
        """Reasons by index of the images that could not be read in the epoch so far."""
        return self.batches.unreadable

    def set_epoch(self, epoch: int, first: int = 0) -> None:
        """Select the order of epoch `epoch`, from batch number `first` on."""
        self.order.set_epoch(epoch, first)

    def __len__(self) -> int:
        """Batches of a whole epoch."""
        return self.order.steps

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        if self.erase is None:
            yield from self.batches
            return
        for number, (images, labels) in enumerate(self.batches, self.order.first):
            with seeded(self.order.name(number, "erasing"), self.device):
                images = self.erase(images)
            yield images, labels


def build_mix(augment: AugmentConfig, share: int, num_classes: int) -> Any:
    """timm's Mixup (mixup and cutmix), for batches of `share` images; None if both are off.

    Raises:
        ValueError: `share` is odd.
    """
    if not augment.mixes:
        return None
    if share % 2:
        raise ValueError(
            f"a process's share of data.batch_size is {share}; allowed: even numbers, as mixup and "
            "cutmix mix pairs"
        )
    return require("timm.data", "train").Mixup(
        mixup_alpha=augment.mixup,
        cutmix_alpha=augment.cutmix,
        prob=augment.mixup_prob,
        switch_prob=augment.mixup_switch_prob,
        mode=augment.mixup_mode,
        label_smoothing=augment.smoothing,
        num_classes=num_classes,
    )


def left_out(split: str, loader: Batches, process: Process | None = None) -> str | None:
    """A line about the images of `split` that the latest pass over `loader` has left out; None if
    there are none. Where each process reads a share, all of them call this with their `process`.
    """
    unread = sorted(loader.unreadable)
    count, total = len(unread), len(loader.dataset)
    if process is not None:
        both = torch.tensor([count, total], device=process.device)
        count, total = process.sum(both).tolist()
    if not count:
        return None
    names = some_names(loader.dataset.dataset, unread) or "read by other processes"
    return f"{count} of {total} {split} images cannot be read and are left out: {names}"


@contextmanager
def naming_dead_workers() -> Iterator[None]:
    """Raises `WorkerDied` for torch's RuntimeError, which may come at any moment of a loop."""
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        if not text.startswith("DataLoader worker (pid"):
            raise
        raise WorkerDied(
            f"a process that reads images has died: {text.rstrip('. ')}. If memory ran out, lower "
            "data.workers (0: no processes) or data.batch_size"
        ) from error


def _as_is(batch: Any) -> Any:
    return batch
