"""Images for training, search and test: split once by sample index, augmented by timm.

The search split is taken out of the training split by a hash of the sample's index, so it is the
same in every run, on every machine and for every number of processes. The test split is opened
only when somebody asks for it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
import torch.utils.data
from torch import Tensor

from growtas.training.builtin import BUILT_IN
from growtas.training.config import AugmentConfig, DataConfig
from growtas.training.optional import require

Split = Literal["train", "search", "test"]

_FOLDER_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "val", "valid", "eval", "evaluation"),
}


def split_indices(
    count: int, search_fraction: float, test_fraction: float = 0.0, seed: int = 0
) -> dict[str, list[int]]:
    """Which of `count` samples are for training, for the search and for the test.

    A sample's place depends on its index and `seed` only, not on `count` or a random generator.

    Returns:
        "train", "search" and "test": ascending indices, disjoint, together all of them. The shares
        are binomial around the fractions.
    """
    splits: dict[str, list[int]] = {"train": [], "search": [], "test": []}
    for index in range(count):
        digest = hashlib.blake2b(f"{seed}:{index}".encode(), digest_size=8).digest()
        place = int.from_bytes(digest, "big") / 2**64
        if place < search_fraction:
            splits["search"].append(index)
        elif place < search_fraction + test_fraction:
            splits["test"].append(index)
        else:
            splits["train"].append(index)
    return splits


class ImageView(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """Some samples of a data set of PIL images, in one colour mode, through one transform.

    Args:
        dataset: yields (PIL image, label).
        indices: which samples, in which order.
        transform: PIL image -> tensor [channels, side, side].
        mode: "L" or "RGB".
    """

    def __init__(
        self, dataset: Any, indices: Sequence[int], transform: Callable[[Any], Tensor], mode: str
    ) -> None:
        self.dataset = dataset
        self.indices = list(indices)
        self.transform = transform
        self.mode = mode

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> tuple[Tensor, int]:
        image, label = self.dataset[self.indices[position]]
        if image.mode != self.mode:
            image = image.convert(self.mode)
        return self.transform(image), int(label)


class TrainLoader:
    """Batches of one process for one epoch after the other.

    Iterating yields (images [batch, channels, side, side] float32, labels [batch] int64). All
    processes together see each batch of the epoch's order exactly once; the last, incomplete batch
    is dropped. The order depends on the seed and the epoch (`set_epoch`). Augmentation draws from
    the global generators of Python, NumPy and torch, which the caller seeds.
    """

    def __init__(self, loader: Iterable[Any], sampler: Any, steps: int, seed: int) -> None:
        self._loader = loader
        self._sampler = sampler
        self._steps = steps
        self._seed = seed

    def set_epoch(self, epoch: int) -> None:
        """Select the order of epoch `epoch`."""
        self._sampler.set_epoch((self._seed << 20) + epoch)

    def __len__(self) -> int:
        return self._steps

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(self._loader)


class DataBundle:
    """The three splits of one data set; made by `build_data`.

    Attributes:
        config: the settings, with the data set's own values filled in (num_classes included).
        augment: what training does to the images.
    """

    def __init__(self, config: DataConfig, augment: AugmentConfig) -> None:
        self.config = config.resolved()
        self.augment = augment
        counted = self._count_classes()
        if config.num_classes is None:
            self.config = replace(self.config, num_classes=counted)
        elif counted is not None and config.num_classes < counted:
            raise ValueError(
                f"data.num_classes is {config.num_classes}, but the data set has {counted} classes"
            )

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
        prefetch = device.type == "cuda"
        view = self._view("train", self._train_transform(prefetch))
        sampler: Any
        repeats = self.augment.repeated_aug
        if repeats > 1:
            repeated = require("timm.data.distributed_sampler", "train").RepeatAugSampler
            sampler = repeated(view, world_size, rank, num_repeats=repeats)
        else:
            sampler = torch.utils.data.DistributedSampler(
                view, num_replicas=world_size, rank=rank, shuffle=True, drop_last=True
            )
        batch = total // world_size
        steps = len(sampler) // batch
        if steps == 0:
            raise ValueError(
                f"data.batch_size is {total}, but the training split has {len(view)} images"
            )
        loader = self._loader(view, sampler, batch, prefetch, drop_last=True)
        erase = (self.augment.reprob, self.augment.remode, self.augment.recount)
        batches = self._prefetch(loader, device, erase) if prefetch else loader
        return TrainLoader(batches, sampler, steps, seed)

    def eval_loader(
        self,
        split: Split,
        *,
        rank: int = 0,
        world_size: int = 1,
        device: Any = "cpu",
        batch_size: int | None = None,
    ) -> Iterable[tuple[Tensor, Tensor]]:
        """Every sample of `split` once, in order and without augmentation; of process `rank`, every
        `world_size`-th of them (no sample twice, so processes may get one more or less).

        Args:
            split: "train", "search" or "test".
            rank: this process.
            world_size: number of processes.
            device: where the batches are to be; on a GPU they are prefetched.
            batch_size: default eval_batch_size of the settings.
        """
        device = torch.device(device)
        prefetch = device.type == "cuda"
        whole = self._view(split, self._eval_transform(prefetch))
        part = whole.indices[rank::world_size]
        view = ImageView(whole.dataset, part, whole.transform, whole.mode)
        batch = batch_size or self.config.eval_batch_size
        loader = self._loader(view, None, batch, prefetch, drop_last=False)
        return self._prefetch(loader, device, (0.0, "const", 1)) if prefetch else loader

    def _loader(
        self, view: ImageView, sampler: Any, batch_size: int, prefetch: bool, drop_last: bool
    ) -> torch.utils.data.DataLoader[Any]:
        # Workers do not outlive the epoch: theirs would be the only random state that a resumed
        # run cannot reproduce.
        return torch.utils.data.DataLoader(
            view,
            batch_size=batch_size,
            sampler=sampler,
            num_workers=self.config.workers,
            drop_last=drop_last,
            pin_memory=prefetch,
            collate_fn=require("timm.data.loader", "train").fast_collate if prefetch else None,
        )

    def _prefetch(self, loader: Any, device: torch.device, erase: tuple[float, str, int]) -> Any:
        return require("timm.data.loader", "train").PrefetchLoader(
            loader,
            mean=self.config.mean,
            std=self.config.std,
            channels=self.in_chans,
            device=device,
            re_prob=erase[0],
            re_mode=erase[1],
            re_count=erase[2],
        )

    def _train_transform(self, prefetch: bool) -> Callable[[Any], Tensor]:
        augment = self.augment
        return self._transform(
            is_training=True,
            use_prefetcher=prefetch,
            scale=augment.scale,
            ratio=augment.ratio,
            hflip=augment.hflip,
            color_jitter=augment.color_jitter or None,
            auto_augment=augment.auto_augment,
            interpolation=self.config.interpolation,
            re_prob=augment.reprob,
            re_mode=augment.remode,
            re_count=augment.recount,
        )

    def _eval_transform(self, prefetch: bool) -> Callable[[Any], Tensor]:
        interpolation = self.config.interpolation
        return self._transform(
            is_training=False,
            use_prefetcher=prefetch,
            interpolation="bicubic" if interpolation == "random" else interpolation,
            crop_pct=self.config.crop_pct,
        )

    def _transform(self, **settings: Any) -> Callable[[Any], Tensor]:
        create_transform = require("timm.data", "train").create_transform
        config = self.config
        return create_transform(
            (self.in_chans, self.image_size, self.image_size),
            mean=config.mean,
            std=config.std,
            **settings,
        )

    def _view(self, split: Split, transform: Callable[[Any], Tensor]) -> ImageView:
        mode = "L" if self.in_chans == 1 else "RGB"
        if split == "test" and not self.config.cuts_test:
            dataset = self._test_source
            return ImageView(dataset, range(len(dataset)), transform, mode)
        indices = self._indices.get(split)
        if indices is None:
            raise ValueError(f"split is {split!r}; allowed: 'train', 'search', 'test'")
        if not indices:
            raise ValueError(
                f"the {split} split is empty: the data set has {len(self._source)} samples"
            )
        return ImageView(self._source, indices, transform, mode)

    @cached_property
    def _indices(self) -> dict[str, list[int]]:
        config = self.config
        test_fraction = config.test_fraction if config.cuts_test else 0.0
        return split_indices(
            len(self._source), config.search_fraction, test_fraction, config.split_seed
        )

    @cached_property
    def _source(self) -> Any:
        built_in = BUILT_IN.get(self.config.dataset)
        return built_in.open() if built_in else self._open(self.config.train_split)

    @cached_property
    def _test_source(self) -> Any:
        assert self.config.test_split is not None
        dataset = self._open(self.config.test_split)
        ours, theirs = _class_names(self._source), _class_names(dataset)
        if ours is not None and theirs is not None and ours != theirs:
            differing = sorted(set(map(str, ours)) ^ set(map(str, theirs)))[:5]
            raise ValueError(
                f"split {self.config.test_split!r} has other classes than "
                f"{self.config.train_split!r}, so labels would not mean the same: {differing}"
            )
        return dataset

    def _open(self, split: str) -> Any:
        create_dataset = require("timm.data", "train").create_dataset
        config = self.config
        mode = "L" if self.in_chans == 1 else "RGB"
        name = config.dataset
        settings: dict[str, Any] = {"split": split, "input_img_mode": mode}
        if name.lower().startswith("hfds/"):
            require("datasets")
            keys = {"input_key": config.image_key, "target_key": config.label_key}
            return create_dataset(name, root=config.root or None, **settings, **keys)
        if not Path(config.root).exists() and not config.download:
            raise FileNotFoundError(f"data.root is {config.root!r}: no such folder or file")
        if name.lower().startswith("torch/"):
            return create_dataset(name, root=config.root, split=split, download=config.download)
        root = _folder_or_tar(Path(config.root), split, alone=config.cuts_test)
        if root.suffix == ".tar":
            settings["cache_tarinfo"] = False  # timm's cache is a pickle next to the data
        return create_dataset(name, root=str(root), search_split=False, **settings)

    def _count_classes(self) -> int | None:
        if self.config.dataset in BUILT_IN:
            return BUILT_IN[self.config.dataset].num_classes
        if self.config.num_classes is not None:
            return None  # trust the settings; opening a large folder takes minutes
        names = _class_names(self._source)
        if not names:
            raise ValueError(
                f"data set {self.config.dataset!r} does not name its classes; set data.num_classes"
            )
        return len(names)


def build_data(config: DataConfig, augment: AugmentConfig | None = None) -> DataBundle:
    """The splits of a data set.

    Args:
        config: which data set.
        augment: how training samples are augmented; None: `AugmentConfig.digits()` for the built-in
            sets of digits, else the defaults.

    Raises:
        ValueError: the settings do not fit the data set.
        FileNotFoundError: the folder of the data set, or of one of its splits, is missing.
        ImportError: a package that reads the data set is missing.
    """
    if augment is None:
        augment = AugmentConfig.digits() if config.dataset in BUILT_IN else AugmentConfig()
    return DataBundle(config, augment)


def _class_names(dataset: Any) -> Sequence[str] | None:
    """Class names in the order of their labels, None if the data set does not tell."""
    reader = getattr(dataset, "reader", dataset)
    to_label = getattr(reader, "class_to_idx", None) or getattr(reader, "class_name_to_idx", None)
    if to_label:
        return sorted(to_label, key=to_label.__getitem__)
    names = getattr(dataset, "classes", None)
    return list(names) if names else None


def find_split(root: Path, split: str) -> Path | None:
    """The folder or tar file of `split` in the folder `root`: of that name, or of another usual one
    ("val" for "validation"). None if there is none."""
    names = next((n for n in _FOLDER_NAMES.values() if split in n), (split,))
    places = (root / file for name in (split, *names) for file in (name, f"{name}.tar"))
    return next((place for place in places if place.exists()), None)


def _folder_or_tar(root: Path, split: str, *, alone: bool) -> Path:
    """Where the images of `split` are: its folder or tar file in `root`, or `root` itself if it has
    only one split (`alone`)."""
    if root.is_dir() and (place := find_split(root, split)) is not None:
        return place
    if alone:
        return root
    raise FileNotFoundError(
        f"{root} has no folder or tar file {split!r}; without splits of its own, set "
        "data.test_split to null so that the test split is cut out by data.test_fraction"
    )
