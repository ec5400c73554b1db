"""Scores subnets of a supernet in place, on images that are decoded once and stay in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypedDict, Unpack

import torch
from torch import Tensor, nn

from growtas.base import distributed
from growtas.base.checks import few_images, listed, positive_int, warn
from growtas.base.precision import amp_dtype, autocast
from growtas.search.candidate import Score
from growtas.search.population import OneGraph, SharedPrefixes
from growtas.space import Subnet
from growtas.supernet import Supernet
from growtas.training.evaluation import Logits, tally

# Images stay on the accelerator if they need no more than this share of its free memory.
_DEVICE_SHARE = 0.25


class Options(TypedDict, total=False):
    """What `Evaluator` and `Evaluator.from_loader` both take, see there."""

    batch_size: int
    amp: str
    device: torch.device | str | None
    groups: int


_DEFAULTS: Options = {"batch_size": 256, "amp": "off", "device": None, "groups": 8}


class Evaluator:
    """Top-1 accuracy and mean cross-entropy of subnets, on a fixed set of images.

    Warns if there are so few that an accuracy on them says little.

    The supernet runs each subnet directly on its shared weights; nothing is copied out. The model
    is in evaluation mode while it is scored and back in its own mode afterwards.

    Under torch.distributed each rank evaluates its own images and the sums are added up, so the
    score is that of all images, each counted once, and the same on every rank.

    Args:
        model: called as ``model(images, subnet)``, returns logits [B, num_classes].
        images: [N, C, H, W]; float as the model reads them, or uint8, which needs `mean` and `std`.
        labels: [N] class indices, an integer dtype.
        batch_size: images per forward pass; of several subnets together.
        amp: autocast to "bf16" or "fp16", "off", or "auto": bf16 (fp16 where there is none) on a
            GPU, off on CPU.
        device: where the model is; its parameters' device if left out.
        mean, std: per channel, for uint8 images: the model reads ``(image / 255 - mean) / std`` in
            float32.
        sharded: the images are this rank's own part already. Otherwise all ranks pass the same
            images and rank r keeps every world_size-th one, starting with image r.
        groups: at most so many subnets in one launch, where the backend runs several (see
            `score_many`): each on ``batch_size // groups`` images at a time.

    Raises:
        TypeError: images or labels of a wrong dtype.
        ValueError: shapes that do not match, no images, or uint8 images without `mean` and `std`.
    """

    def __init__(
        self,
        model: nn.Module,
        images: torch.Tensor,
        labels: torch.Tensor,
        *,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        sharded: bool = False,
        **options: Unpack[Options],
    ) -> None:
        if unknown := options.keys() - _DEFAULTS.keys():
            raise TypeError(f"an evaluator has no {listed(sorted(unknown))}")
        chosen: Options = {**_DEFAULTS, **options}
        for name in ("batch_size", "groups"):
            positive_int(name, chosen[name])
        _check_data(images, labels)
        device = chosen["device"]
        if device is None:
            device = next((p.device for p in model.parameters()), torch.device("cpu"))
        self.process = process = distributed.current(torch.device(device))
        if not sharded:
            images = images[process.rank :: process.world_size].contiguous()
            labels = labels[process.rank :: process.world_size]
        self.model = model
        self.batch_size = chosen["batch_size"]
        self.groups = min(chosen["groups"], self.batch_size)
        self._amp_dtype = amp_dtype(chosen["amp"], self.device)
        self._normalize: Callable[[Tensor], Tensor] = lambda images: images
        if images.dtype == torch.uint8:
            if mean is None or std is None:
                raise ValueError(
                    "uint8 images need mean and std, what the model's input is normalised with"
                )
            self._normalize = _Normalization(mean, std, self.device)
        self._graph: OneGraph | None = None
        self._images = _keep(images, self.device)
        self._largest_label = int(labels.max()) if len(labels) else 0
        self._labels = labels.to(self.device, torch.int64)
        count = torch.tensor([len(labels)], device=self.device)
        self.count = int(process.sum(count))  # images over all ranks
        if self.count == 0:
            raise ValueError("there are no images to evaluate on")
        if few := few_images("the evaluation", self.count):
            warn(few)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.process.device

    @classmethod
    def from_loader(
        cls,
        model: nn.Module,
        loader: Iterable[Any],
        *,
        max_images: int | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        sharded: bool = False,
        **options: Unpack[Options],
    ) -> Evaluator:
        """Decodes what `loader` yields, once, and keeps it.

        Given the `mean` and `std` that the loader normalised with, the images are kept as uint8, a
        quarter of the memory, if that gives back the loader's float32 values bit for bit; otherwise
        as they come.

        Args:
            model: as for `Evaluator`.
            loader: yields (images, labels) batches, without augmentation, the same on every rank
                unless `sharded`.
            max_images: keep so many, spread evenly over the loader (so over the classes of a sorted
                dataset); needs ``loader.dataset`` with a length. With `sharded`: so many on each
                rank.
            mean, std: per channel, of the normalisation.
            sharded: the loader yields only this rank's part. Otherwise every rank reads all images
                and keeps its share.
            options: batch_size, amp, device and groups of `Evaluator`.

        Raises:
            TypeError, ValueError: as for `Evaluator`; or `max_images` with a loader of unknown
                length.
        """
        total = _length(loader) if max_images is not None else 0
        store = _Store(mean, std)
        process = distributed.current()
        position = kept = 0
        for batch in loader:
            images, labels = _unpack(batch)
            _check_data(images, labels)
            picked = list(range(len(labels)))
            if max_images is not None:
                picked = [i for i in picked if _is_picked(position + i, max_images, total)]
            first = (process.rank - kept) % process.world_size
            mine = picked if sharded else picked[first :: process.world_size]
            position += len(labels)
            kept += len(picked)
            store.add(images[mine], labels[mine])
        if position == 0:
            raise ValueError("the loader yielded no images")
        images, labels = store.tensors()
        return cls(model, images, labels, mean=mean, std=std, sharded=True, **options)

    def score(self, subnet: Subnet) -> Score:
        """Accuracy (0 to 1) and loss of `subnet` over all images of all ranks.

        A prediction from logits that are not all finite counts as wrong.

        Raises:
            ValueError: a label is not one of the model's classes; and what the model raises.
        """

        def logits_of(images: Tensor) -> Iterator[Logits]:
            with autocast(self._amp_dtype, self.device):
                logits = self.model(images, subnet)
            yield 0, logits

        return self._scores(logits_of, 1, self.batch_size)[0]

    def score_many(self, subnets: Sequence[Subnet]) -> list[Score]:
        """The score of every subnet, in the order given.

        With extents on the device (the Triton backend) `groups` subnets share each launch, all
        launches come from one CUDA graph, and a subnet costs a copy of its sizes to set up.
        Elsewhere subnets that begin with the same blocks share what those compute, and the scores
        are those of `score` to the bit; of the residual stream at most one is kept for each depth
        at which subnets part. A model that is no `Supernet` is scored one subnet after another.

        Raises:
            ValueError: as for `score`; and a subnet that extents on the device cannot hold
                (`Supernet.new_extents`).
        """
        model = self.model
        if not isinstance(model, Supernet) or len(subnets) < 2:
            return [self.score(subnet) for subnet in subnets]
        if not model.reads_extents_on_device():
            shared = SharedPrefixes(model, subnets, self._amp_dtype)
            return self._scores(shared, len(subnets), self.batch_size)

        def logits_of(images: Tensor) -> Iterator[Logits]:
            if self._graph is None:
                self._graph = OneGraph(model, images, self.groups, self._amp_dtype)
            return self._graph(images, subnets)

        return self._scores(logits_of, len(subnets), self.batch_size // self.groups)

    def _scores(
        self, logits_of: Callable[[Tensor], Iterable[Logits]], count: int, batch: int
    ) -> list[Score]:
        """The scores of `count` subnets; each rank takes `batch` of its images at a time."""

        def checked(images: Tensor) -> Iterator[Logits]:
            for which, logits in logits_of(images):
                if self._largest_label >= logits.shape[-1]:
                    raise ValueError(
                        f"the model has {logits.shape[-1]} classes, "
                        f"but there is a label {self._largest_label}"
                    )
                yield which, logits

        found = tally(self.model, self._batches(batch), checked, count, self.process)
        return [Score(one.accuracy, one.loss, one.count) for one in found]

    def _batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """This rank's images, as the model reads them, and labels; at most `size` at a time."""
        for start in range(0, len(self._labels), size):
            images = self._images[start : start + size].to(self.device, non_blocking=True)
            yield self._normalize(images), self._labels[start : start + size]

    def fingerprint(self) -> str:
        """A hash of the model's weights and of the labels: equal if scores can be compared.

        Under torch.distributed the same on every rank.
        """
        state = self.model.state_dict()
        digest = hashlib.sha256(repr(self.count).encode())
        for name in sorted(state):
            value = state[name]
            digest.update(f"{name} {tuple(value.shape)} {_checksum(value)}".encode())
        labels = torch.tensor([_checksum(self._labels)], device=self.device)
        digest.update(repr(int(self.process.sum(labels))).encode())
        return digest.hexdigest()


def _check_data(images: Any, labels: Any) -> None:
    if not isinstance(images, torch.Tensor) or not isinstance(labels, torch.Tensor):
        kinds = f"{type(images).__name__} and {type(labels).__name__}"
        raise TypeError(f"images and labels must be tensors, got {kinds}")
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise TypeError(f"images must be floating point or uint8, got {images.dtype}")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise TypeError(f"labels must be class indices of an integer dtype, got {labels.dtype}")
    if images.ndim != 4 or labels.ndim != 1 or len(images) != len(labels):
        raise ValueError(
            "expected images [N, C, H, W] and labels [N], got "
            f"{list(images.shape)} and {list(labels.shape)}"
        )
    if len(labels) and int(labels.min()) < 0:
        raise ValueError(f"labels must not be negative, got {int(labels.min())}")


def _unpack(batch: Any) -> tuple[Any, Any]:
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        raise TypeError(f"the loader must yield (images, labels), got {type(batch).__name__}")
    return batch[0], batch[1]


def _length(loader: Any) -> int:
    try:
        return len(loader.dataset)
    except (AttributeError, TypeError):
        raise ValueError("max_images needs a loader whose .dataset has a length") from None


def _is_picked(index: int, wanted: int, total: int) -> bool:
    """Whether `index` is one of `wanted` indices spread evenly over 0 .. total - 1."""
    return wanted >= total or (index + 1) * wanted // total > index * wanted // total


def _keep(images: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The images where they stay: on the GPU if small beside its free memory, else pinned."""
    if device.type != "cuda":
        return images.to(device)
    free, _ = torch.cuda.mem_get_info(device)
    if images.numel() * images.element_size() <= _DEVICE_SHARE * free:
        return images.to(device)
    return images.pin_memory()


class _Normalization:
    """``(image / 255 - mean) / std`` of uint8 images in float32, rounded as torchvision's
    transforms do.

    The divisors are tensors because a GPU multiplies by the reciprocal of a plain number.
    """

    def __init__(
        self, mean: Sequence[float], std: Sequence[float], device: torch.device | str
    ) -> None:
        if any(value <= 0 for value in std):
            raise ValueError(f"std must be positive, got {tuple(std)}")
        self.mean = torch.tensor(mean, dtype=torch.float32, device=device).view(-1, 1, 1)
        self.std = torch.tensor(std, dtype=torch.float32, device=device).view(-1, 1, 1)
        self.largest = torch.tensor(255.0, device=device)

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        return images.float().div_(self.largest).sub_(self.mean).div_(self.std)

    def inverse(self, images: torch.Tensor) -> torch.Tensor:
        """The nearest uint8 images."""
        levels = images.mul(self.std).add_(self.mean).mul_(self.largest)
        return levels.round_().clamp_(0, 255).to(torch.uint8)


class _Store:
    """Collects batches, as uint8 for as long as that is exact."""

    def __init__(self, mean: Sequence[float] | None, std: Sequence[float] | None) -> None:
        # Set for as long as every float batch is kept as uint8.
        self.normalization: _Normalization | None = None
        if mean is not None and std is not None:
            self.normalization = _Normalization(mean, std, "cpu")
        self.images: list[torch.Tensor] = []
        self.labels: list[torch.Tensor] = []

    def add(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        images, labels = images.detach().cpu(), labels.detach().cpu()
        self.labels.append(labels)
        if self.normalization is not None and images.dtype == torch.float32:
            levels = self.normalization.inverse(images)
            if torch.equal(self.normalization(levels), images):
                self.images.append(levels)
                return
            self.images = [self.normalization(kept) for kept in self.images]
            self.normalization = None
        self.images.append(images)

    def tensors(self) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.cat(self.images), torch.cat(self.labels)


def _checksum(values: torch.Tensor) -> int:
    """A position-dependent checksum of the bits, modulo 2**64: exact, so equal on every device."""
    bits = values.detach().contiguous().reshape(-1).view(torch.uint8).to(torch.int64)
    place = torch.arange(1, 2 * len(bits), 2, device=bits.device)
    return int((bits * place).sum())
