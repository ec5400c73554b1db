"""Samples of a data set: which split each belongs to, and how one is read and checked."""

from __future__ import annotations

import hashlib
import os
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch.utils.data
from torch import Tensor

# What decoders of images raise about a file that is damaged.
_DAMAGED = (OSError, SyntaxError, EOFError, struct.error, zlib.error)


class UnreadableImage(OSError):
    """An image that cannot be read; the message names its file (or sample) and the reason."""


class SampleError(ValueError):
    """A sample that is not what the settings say; the message names it and what is allowed."""


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


@dataclass(eq=False, repr=False)
class ImageView(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """Some samples of a data set, in one colour mode, through one transform.

    Args:
        dataset: yields (image, label), the image a PIL image.
        indices: which samples, in which order.
        transform: PIL image -> tensor [channels, side, side]. None: the images are floating point
            tensors [channels, side, side] already and are taken as they are, in float32.
        mode: "L" or "RGB".
        side: of the square images, in pixels.
        num_classes: labels are below it.
    """

    dataset: Any
    indices: Sequence[int]
    transform: Callable[[Any], Tensor] | None
    mode: str
    side: int
    num_classes: int

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> tuple[Tensor, int]:
        """The sample at `position` of the view.

        Raises:
            UnreadableImage: its image cannot be read.
            SampleError: it is no image of the view's shape with one of its labels.
        """
        index = self.indices[position]
        try:
            sample = self.dataset[index]
        except UnreadableImage:
            raise
        except _DAMAGED as error:
            raise self._unreadable(index, error) from error
        if not isinstance(sample, (tuple, list)) or len(sample) != 2:
            kind = type(sample).__name__
            raise SampleError(f"{self._named(index)} is a {kind}; needed: (image, label)")
        image, label = sample[0], self._label(index, sample[1])
        if self.transform is None:
            return self._checked(index, image), label
        return self.transform(self._picture(index, image)), label

    def _named(self, index: int) -> str:
        return sample_name(self.dataset, index)

    def _label(self, index: int, label: Any) -> int:
        try:
            number = int(label)
        except (TypeError, ValueError):
            number = -1
        if not 0 <= number < self.num_classes:
            raise SampleError(
                f"the label of {self._named(index)} is {label!r}; allowed: 0 to "
                f"{self.num_classes - 1}, as there are {self.num_classes} classes "
                "(data.num_classes)"
            )
        return number

    def _picture(self, index: int, image: Any) -> Any:
        if not hasattr(image, "convert"):
            kind = type(image).__name__
            raise SampleError(
                f"the image of {self._named(index)} is a {kind}; allowed: a PIL image, or else "
                "every image a tensor"
            )
        try:
            image.load()  # decodes what the data set has only opened
        except MemoryError:
            raise
        except Exception as error:  # decoders raise anything on a damaged file
            raise self._unreadable(index, error) from error
        return image if image.mode == self.mode else image.convert(self.mode)

    def _unreadable(self, index: int, error: Exception) -> UnreadableImage:
        return UnreadableImage(f"cannot read {self._named(index)}: {error}")

    def _checked(self, index: int, image: Any) -> Tensor:
        if not isinstance(image, Tensor):
            kind = type(image).__name__
            raise SampleError(
                f"the image of {self._named(index)} is a {kind}; allowed: a tensor, as the first "
                "one is"
            )
        shape = (1 if self.mode == "L" else 3, self.side, self.side)
        if image.shape != shape or not image.is_floating_point():
            raise SampleError(
                f"the image of {self._named(index)} is a tensor {list(image.shape)} of "
                f"{image.dtype}; allowed: {list(shape)}, floating point, normalised"
            )
        return image.float()


def sample_name(dataset: Any, index: int) -> str:
    """The file of a sample where the data set knows it, else its index."""
    if hasattr(dataset, "filename"):
        return str(dataset.filename(index))
    files = getattr(dataset, "samples", None)
    if files is not None and isinstance(files[index], tuple):
        file = files[index][0]
        if isinstance(file, (str, os.PathLike)):
            return os.fspath(file)
    return f"sample {index}"


def some_names(dataset: Any, indices: Sequence[int]) -> str:
    """`sample_name` of the first of many, for a message."""
    names = ", ".join(sample_name(dataset, index) for index in indices[:3])
    return f"{names}, ..." if len(indices) > 3 else names
