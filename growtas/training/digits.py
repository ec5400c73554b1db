"""scikit-learn's handwritten digits as an image data set: 1,797 real 8x8 images, ten classes."""

from __future__ import annotations

from typing import Any

import torch.utils.data

from growtas.training.optional import require

NUM_CLASSES = 10


class Digits(torch.utils.data.Dataset[tuple[Any, int]]):
    """Grey PIL images (mode "L", 8x8) and their digit; grey level 16 of the source becomes 255."""

    def __init__(self) -> None:
        numpy = require("numpy", "demo")
        image = require("PIL.Image", "demo")
        bunch = require("sklearn.datasets", "demo").load_digits()
        pixels = numpy.rint(bunch.images * (255 / 16)).astype(numpy.uint8)
        self._images = [image.fromarray(array) for array in pixels]
        self.targets = [int(label) for label in bunch.target]

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self._images[index], self.targets[index]
