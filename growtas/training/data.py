"""Images for training, search and test: split once by sample index, augmented by timm.

The search split is taken out of the training split by a hash of the sample's index, so it is the
same in every run, on every machine and for every number of processes. The test split is opened
only when somebody asks for it.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import Any, Literal, get_args

import torch
import torch.utils.data
from torch import Tensor

from growtas.base.checks import check_choice, few_images, warn
from growtas.base.distributed import Process
from growtas.base.image_transform import ImageTransform
from growtas.base.optional import require
from growtas.training import sources
from growtas.training.batches import (
    Batches,
    BatchReader,
    EpochOrder,
    OnUnreadable,
    TrainLoader,
)
from growtas.training.builtin import BUILT_IN
from growtas.training.config import OWN, AugmentConfig, DataConfig
from growtas.training.samples import ImageView, UnreadableImage, split_indices

Split = Literal["train", "search", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)

# The settings of AugmentConfig that work on PIL images only.
_OF_PICTURES = ("auto_augment", "color_jitter", "hflip", "scale", "ratio", "reprob")
_OFF = AugmentConfig.off()


class DataBundle:
    """The three splits of one data set; made by `build_data`.

    Attributes:
        config: the settings, with the data set's own values filled in (num_classes included).
        augment: what training does to the images.
    """

    def __init__(
        self, config: DataConfig, augment: AugmentConfig, train: Any = None, test: Any = None
    ) -> None:
        self._own = {"train": train, "test": test}
        first = None if train is None else _first_image("train", train)
        self._ready = isinstance(first, Tensor)
        if test is not None and isinstance(_first_image("test", test), Tensor) != self._ready:
            kinds = ("tensors", "PIL images") if self._ready else ("PIL images", "tensors")
            raise ValueError(
                f"the images of train are {kinds[0]}, those of test {kinds[1]}; allowed: the same "
                "of both, so that both are prepared alike"
            )
        if isinstance(first, Tensor):
            config = _as_they_are(config, first)
        self.config = config.resolved()
        self.augment = augment
        idle = [name for name in _OF_PICTURES if getattr(augment, name) != getattr(_OFF, name)]
        if self._ready and idle:
            warn(
                f"augment: {', '.join(idle)} do nothing, as the data set gives tensors, which are "
                "taken as they are"
            )
        if config.num_classes is None:
            self.config = replace(self.config, num_classes=self._count_classes())
        elif built_in := BUILT_IN.get(config.dataset):
            self._check_classes(built_in.num_classes)
        # Other data sets have their classes counted when they are opened: a large folder takes
        # minutes.

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return self.config.num_classes or 0

    @property
    def image_size(self) -> int:
        """Side of the square input in pixels."""
        return self.config.image_size or 0

    @property
    def in_chans(self) -> int:
        """Image channels."""
        return self.config.in_chans or 0

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """Class names in the order of their labels; None if the data set does not tell."""
        if built_in := BUILT_IN.get(self.config.dataset):
            return tuple(map(str, range(built_in.num_classes)))
        names = sources.class_names(self._source)
        return None if names is None else tuple(map(str, names))

    @cached_property
    def transform(self) -> ImageTransform:
        """What evaluation does to an image."""
        config = self.config
        assert config.mean is not None  # resolved() has filled these in
        assert config.std is not None
        assert config.crop_pct is not None
        interpolation = config.interpolation
        return ImageTransform(
            image_size=(self.image_size, self.image_size),
            in_chans=self.in_chans,
            mean=config.mean,
            std=config.std,
            interpolation="bicubic" if interpolation == "random" else interpolation,
            crop_pct=config.crop_pct,
        )

    @cached_property
    def train(self) -> ImageView:
        """Augmented training samples."""
        return self._view("train", self._train_transform(prefetch=False))

    @cached_property
    def search(self) -> ImageView:
        """Samples set aside for the search, without augmentation."""
        return self._view("search", self._eval_transform(prefetch=False))

    @cached_property
    def test(self) -> ImageView:
        """Test samples. Read them once, at the very end."""
        return self._view("test", self._eval_transform(prefetch=False))

    def train_loader(
        self, *, seed: int = 0, rank: int = 0, world_size: int = 1, device: Any = "cpu"
    ) -> TrainLoader:
        """Batches for process `rank` of `world_size`, each of batch_size / world_size images.

        Raises:
            ValueError: the batch cannot be shared evenly, or is larger than the training split.
        """
        total = self.config.batch_size
        if total % world_size:
            raise ValueError(
                f"data.batch_size is {total}; allowed: a multiple of the {world_size} processes"
            )
        device = torch.device(device)
        view = self._view("train", self._train_transform(self._prefetches(device)))
        sampler: Any
        repeats = self.augment.repeated_aug
        if repeats > 1:
            repeated = require("timm.data.distributed_sampler", "train").RepeatAugSampler
            sampler = repeated(view, world_size, rank, num_repeats=repeats)
        else:
            sampler = torch.utils.data.DistributedSampler(
                view, num_replicas=world_size, rank=rank, shuffle=True, drop_last=True
            )
        order = EpochOrder(sampler, total // world_size, seed, rank)
        if order.steps == 0:
            raise ValueError(
                f"data.batch_size is {total}, but the training split has {len(view)} images"
            )
        batches = self._batches(view, order, device, "replace")
        return TrainLoader(batches, order, self._erasing(device), device)

    def eval_loader(
        self,
        split: Split,
        *,
        rank: int = 0,
        world_size: int = 1,
        device: Any = "cpu",
        batch_size: int | None = None,
    ) -> Batches:
        """Every sample of `split` once, in order and without augmentation; of process `rank`, every
        `world_size`-th of them (no sample twice, so processes may get one more or less).

        An image that cannot be read is an error (`UnreadableImage`) that names it, or left out and
        counted if the settings say ``skip_unreadable``. On a GPU batches are prefetched; their size
        is by default the settings' eval_batch_size.
        """
        device = torch.device(device)
        whole = self._view(split, self._eval_transform(self._prefetches(device)))
        part = copy.copy(whole)
        part.indices = whole.indices[rank::world_size]
        batch = batch_size or self.config.eval_batch_size
        keys = [
            ("", list(range(start, min(start + batch, len(part)))))
            for start in range(0, len(part), batch)
        ]
        return self._batches(part, keys, device, self._on_unreadable)

    def search_batch(self, seed: int, step: int, process: Process) -> tuple[Tensor, Tensor]:
        """Search images of a training step: one draw for all processes, each its share.

        Returns:
            Images [batch, channels, side, side] and labels [batch], on the process's device.
        """
        view = self.search
        count = min(self.config.batch_size, len(view))
        draw = random.Random(f"growtas:{seed}:{step}:search").sample(range(len(view)), count)
        share = draw[process.rank :: process.world_size]
        reader = BatchReader(view, torch.utils.data.default_collate, self._on_unreadable)
        batch = reader["", share]
        if isinstance(batch, Exception):
            raise batch
        images, labels, _ = batch
        if images is None:
            raise UnreadableImage(f"cannot read any of the {len(share)} search images of a step")
        return images.to(process.device), labels.to(process.device)

    def warn_about(self, split: Split) -> None:
        """Warn of what makes a split a poor one: few images to measure on, classes without any.

        Raises:
            ValueError: the split is empty.
        """
        view = self._view(split, self._eval_transform(False))
        few = None if split == "train" else few_images(f"the {split} split", len(view))
        if few and (split == "search" or self.config.cuts_test):
            few += f"; data.{split}_fraction is {getattr(self.config, f'{split}_fraction'):g}"
        if few:
            warn(few)
        labels = sources.labels_of(view.dataset)
        if labels is None:
            return
        found = {labels[index] for index in view.indices}
        missing = [label for label in range(self.num_classes) if label not in found]
        if missing:
            names = sources.class_names(view.dataset)
            some = [names[i] if names and i < len(names) else i for i in missing[:5]]
            more = ", ..." if len(missing) > 5 else ""
            warn(
                f"{len(missing)} of {self.num_classes} classes have no image in the {split} split: "
                + ", ".join(map(str, some))
                + more
            )

    @property
    def _on_unreadable(self) -> OnUnreadable:
        return "skip" if self.config.skip_unreadable else "raise"

    def _prefetches(self, device: torch.device) -> bool:
        return device.type == "cuda" and not self._ready

    def _batches(
        self, view: ImageView, keys: Any, device: torch.device, on_unreadable: OnUnreadable
    ) -> Batches:
        collate, prefetch = torch.utils.data.default_collate, None
        if self._prefetches(device):
            timm = require("timm.data.loader", "train")
            collate = timm.fast_collate
            prefetch = partial(
                timm.PrefetchLoader,
                mean=self.config.mean,
                std=self.config.std,
                channels=self.in_chans,
                device=device,
            )
        return Batches(
            view,
            keys,
            collate=collate,
            on_unreadable=on_unreadable,
            workers=self.config.workers,
            pin_memory=device.type == "cuda",
            prefetch=prefetch,
        )

    def _erasing(self, device: torch.device) -> Callable[[Tensor], Tensor] | None:
        """Random erasing of batches, where it is not a part of the transform."""
        augment = self.augment
        if not (self._prefetches(device) and augment.reprob):
            return None
        return require("timm.data.random_erasing", "train").RandomErasing(
            augment.reprob, mode=augment.remode, max_count=augment.recount, device=device
        )

    def _train_transform(self, prefetch: bool) -> Callable[[Any], Tensor]:
        augment = self.augment
        return require("timm.data", "train").create_transform(
            (self.in_chans, self.image_size, self.image_size),
            is_training=True,
            use_prefetcher=prefetch,
            scale=augment.scale,
            ratio=augment.ratio,
            hflip=augment.hflip,
            color_jitter=augment.color_jitter or None,
            auto_augment=augment.auto_augment,
            interpolation=self.config.interpolation,
            mean=self.config.mean,
            std=self.config.std,
            re_prob=augment.reprob,
            re_mode=augment.remode,
            re_count=augment.recount,
        )

    def _eval_transform(self, prefetch: bool) -> Callable[[Any], Tensor]:
        return self.transform.steps(use_prefetcher=prefetch)

    def _view(self, split: Split, transform: Callable[[Any], Tensor]) -> ImageView:
        if split == "test" and not self.config.cuts_test:
            dataset = self._test_source
            indices: Sequence[int] = range(len(dataset))
        else:
            dataset = self._source
            check_choice("split", split, SPLITS)
            indices = self._indices[split]
        if not indices:
            raise ValueError(f"the {split} split is empty: the data set has {len(dataset)} samples")
        mode = self.transform.mode
        steps = None if self._ready else transform
        return ImageView(dataset, indices, steps, mode, self.image_size, self.num_classes)

    @cached_property
    def _indices(self) -> dict[str, list[int]]:
        config = self.config
        test_fraction = config.test_fraction if config.cuts_test else 0.0
        return split_indices(
            len(self._source), config.search_fraction, test_fraction, config.split_seed
        )

    @cached_property
    def _source(self) -> Any:
        if built_in := BUILT_IN.get(self.config.dataset):
            return built_in.open()
        dataset = self._open("train", self.config.train_split)
        names = sources.class_names(dataset)
        if names and self.config.num_classes is not None:
            self._check_classes(len(names))
        return dataset

    @cached_property
    def _test_source(self) -> Any:
        assert self.config.test_split is not None
        dataset = self._open("test", self.config.test_split)
        ours, theirs = sources.class_names(self._source), sources.class_names(dataset)
        if ours is not None and theirs is not None and ours != theirs:
            differing = sorted(set(map(str, ours)) ^ set(map(str, theirs)))[:5]
            raise ValueError(
                f"split {self.config.test_split!r} has other classes than "
                f"{self.config.train_split!r}, so labels would not mean the same: {differing}"
            )
        return dataset

    def _open(self, part: str, split: str) -> Any:
        own = self._own[part]
        return sources.open_split(self.config, split) if own is None else own

    def _count_classes(self) -> int:
        if built_in := BUILT_IN.get(self.config.dataset):
            return built_in.num_classes
        names = sources.class_names(self._source)
        if not names:
            raise ValueError(
                f"data set {self.config.dataset!r} does not name its classes; set data.num_classes"
            )
        if len(names) == 1:
            raise ValueError(
                f"the data set has one class, {names[0]!r}; at least 2 are needed: with one, every "
                "answer is right"
            )
        return len(names)

    def _check_classes(self, counted: int) -> None:
        if self.num_classes < counted:
            raise ValueError(
                f"data.num_classes is {self.num_classes}, but the data set has {counted} classes"
            )


def build_data(
    config: DataConfig,
    augment: AugmentConfig | None = None,
    *,
    train: torch.utils.data.Dataset[Any] | None = None,
    test: torch.utils.data.Dataset[Any] | None = None,
) -> DataBundle:
    """The splits of a data set.

    Args:
        config: which data set.
        augment: how training samples are augmented; None: `AugmentConfig.digits()` for the built-in
            sets of digits, else the defaults.
        train: with ``config.dataset`` "own", the data set that training and search images come
            from: (image, label) by index. All images are PIL images (augmented as `augment` says),
            or all are floating point tensors [channels, side, side], which are taken as they are.
        test: such a data set for the test; None: it is cut out of `train` by
            ``config.test_fraction``.

    Raises:
        ValueError: the settings do not fit the data set.
        TypeError: `train` or `test` cannot be read by index, or has no length.
        FileNotFoundError: the folder of the data set, or of one of its splits, is missing.
        ImportError: a package that reads the data set is missing.
    """
    if augment is None:
        augment = AugmentConfig.digits() if config.dataset in BUILT_IN else AugmentConfig()
    given = [(name, data) for name, data in (("train", train), ("test", test)) if data is not None]
    for name, dataset in given:
        sources.check_own(dataset, name)
    if (config.dataset == OWN) != (train is not None) or (given and config.dataset != OWN):
        names = " and ".join(name for name, _ in given) or "no train"
        raise ValueError(
            f"data.dataset is {config.dataset!r}, and {names} is given to build_data; allowed: "
            f"{OWN!r} with train=DATASET, any other without"
        )
    if train is not None and test is None:
        config = replace(config, test_split=None)
    return DataBundle(config, augment, train, test)


def _first_image(name: str, dataset: Any) -> Any:
    """The first image of a data set of one's own, which says what the others are; None if its
    samples are no pairs, which is said where they are read."""
    if not len(dataset):
        raise ValueError(f"{name} has no samples")
    sample = dataset[0]
    return sample[0] if isinstance(sample, (tuple, list)) and sample else None


def _as_they_are(config: DataConfig, image: Tensor) -> DataConfig:
    """The settings that a data set of tensors brings, by the first of them."""
    shape = image.shape
    channels, side = (shape[0], shape[-1]) if len(shape) == 3 else (None, None)
    in_chans = config.in_chans or (channels if channels in (1, 3) else None)
    count = in_chans or 3
    return replace(
        config,
        in_chans=in_chans,
        image_size=config.image_size or side,
        mean=config.mean or (0.0,) * count,
        std=config.std or (1.0,) * count,
    )
