"""Opening a data set of images: folders and tar files, torchvision's, Hugging Face's, one's own."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch.utils.data

from growtas.base.checks import warn
from growtas.base.optional import require
from growtas.training.config import DataConfig
from growtas.training.samples import UnreadableImage

_FOLDER_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "val", "valid", "eval", "evaluation"),
}


class Files(torch.utils.data.Dataset[tuple[Any, int]]):
    """Images of one of timm's readers, which knows a file and a label for each.

    timm's own data set puts another image in the place of one that it cannot read, from whatever
    split; here that is an error, which names the file.

    Args:
        reader: timm's.
        mode: colour mode of the images, "L" or "RGB".
    """

    def __init__(self, reader: Any, mode: str) -> None:
        self.reader = reader
        self.mode = mode
        self._open = require("PIL.Image", "train").open

    def __len__(self) -> int:
        return len(self.reader)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        try:
            stream, label = self.reader[index]
        except (OSError, tarfile.TarError) as error:
            raise self._unreadable(index, error) from error
        try:
            with stream:
                return self._open(stream).convert(self.mode), label
        except MemoryError:
            raise
        except Exception as error:  # decoders raise anything on a damaged file
            raise self._unreadable(index, error) from error

    def filename(self, index: int) -> str:
        """Path of the file, or its name in the archive."""
        return str(self.reader.filename(index, absolute=True) or f"sample {index}")

    def _unreadable(self, index: int, error: Exception) -> UnreadableImage:
        reason = getattr(error, "strerror", None) or error
        if type(error).__name__ == "UnidentifiedImageError":  # its own words show a Python object
            reason = "this is no image that Pillow knows"
        return UnreadableImage(f"cannot read {self.filename(index)}: {reason}")


def open_split(config: DataConfig, split: str) -> Any:
    """The samples of one split: a data set of (PIL image, label).

    Raises:
        FileNotFoundError: the folder or file is missing.
        ValueError: there is no such data set, or it holds no images.
        ImportError: a package that reads it is missing.
    """
    create_dataset = require("timm.data", "train").create_dataset
    mode = "L" if config.in_chans == 1 else "RGB"
    name, where = config.dataset, config.root
    settings: dict[str, Any] = {"split": split, "input_img_mode": mode}
    if name.lower().startswith("hfds/"):
        require("datasets")
        settings |= {"input_key": config.image_key, "target_key": config.label_key}
    else:
        if not Path(where).exists() and not config.download:
            raise FileNotFoundError(f"data.root is {where!r}: no such folder or file")
        if name.lower().startswith("torch/"):
            settings = {"split": split, "download": config.download}
        else:
            root = _folder_or_tar(Path(where), split, alone=config.cuts_test)
            where = str(root)
            settings["search_split"] = False
            if root.suffix == ".tar":
                settings["cache_tarinfo"] = False  # timm's cache is a pickle next to the data
    try:
        dataset = create_dataset(name, root=where or None, **settings)
    except (RuntimeError, AssertionError, ValueError, tarfile.TarError) as error:
        place = f" in {where}" if where else ""
        raise ValueError(
            f"no images of data set {name!r}, split {split!r}{place}: {error}"
        ) from error
    if not hasattr(dataset, "reader"):
        return dataset
    if Path(where).is_dir():
        _warn_of_empty_folders(Path(where), dataset.reader)
    return Files(dataset.reader, mode)


def check_own(dataset: Any, name: str) -> None:
    """Refuse what is no data set with a length and an index.

    Raises:
        TypeError: naming what is there and what is needed.
    """
    kind = type(dataset).__name__
    needed = "needed: a map-style torch data set, with __getitem__ and __len__"
    if isinstance(dataset, torch.utils.data.DataLoader):
        raise TypeError(f"{name} is a DataLoader; {needed} (the batches are made here)")
    if isinstance(dataset, torch.utils.data.IterableDataset) or not hasattr(dataset, "__getitem__"):
        raise TypeError(
            f"{name} is a {kind}, which can only be read front to back; {needed}, as the search "
            "split is taken out by index"
        )
    try:
        len(dataset)
    except (TypeError, NotImplementedError):
        raise TypeError(f"{name} is a {kind} without a length; {needed}") from None


def class_names(dataset: Any) -> Sequence[str] | None:
    """Class names in the order of their labels, None if the data set does not tell."""
    reader = getattr(dataset, "reader", dataset)
    to_label = getattr(reader, "class_to_idx", None) or getattr(reader, "class_name_to_idx", None)
    if to_label:
        return sorted(to_label, key=to_label.__getitem__)
    names = getattr(dataset, "classes", None)
    return list(names) if names else None


def labels_of(dataset: Any) -> list[int] | None:
    """The label of every sample where that needs no image, else None."""
    reader = getattr(dataset, "reader", dataset)
    targets = getattr(reader, "targets", None)
    if targets is not None:
        return [int(target) for target in targets]
    samples = getattr(reader, "samples", None)
    if samples is not None and len(samples) and isinstance(samples[0], tuple):
        return [int(sample[1]) for sample in samples]
    return None


def _warn_of_empty_folders(root: Path, reader: Any) -> None:
    start = len(os.path.join(root, ""))
    used = {path[start:].partition(os.sep)[0] for path, _ in reader.samples}
    folders = (path.name for path in root.iterdir() if path.is_dir())
    empty = sorted(name for name in folders if name not in used and not name.startswith("."))
    if empty:
        names = ", ".join(map(repr, empty[:5])) + (", ..." if len(empty) > 5 else "")
        warn(f"{len(empty)} of the folders in {root} hold no image and are no classes: {names}")


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
