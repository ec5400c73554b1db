"""How an image becomes the input of a model: in evaluation, in prediction and after export."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor

from growtas.base.checks import check, check_choice
from growtas.base.optional import require


@dataclass(frozen=True)
class ImageTransform:
    """Resize, centre crop and normalise: called with a PIL image of any mode, it returns a tensor
    ``[in_chans, height, width]`` float32. Needs timm.

    Raises:
        ValueError: a value outside its range; the message names it.
    """

    image_size: tuple[int, int]  # height and width of the tensor in pixels
    in_chans: int  # 1: grey, 3: RGB
    mean: tuple[float, ...]  # per channel, of images in [0, 1]
    std: tuple[float, ...]  # per channel, of images in [0, 1]
    interpolation: str  # "bicubic" or "bilinear"
    crop_pct: float  # side of the crop over the side of the resized image

    def __post_init__(self) -> None:
        check(self.in_chans in (1, 3), "in_chans", self.in_chans, "1 (grey), 3 (RGB)")
        for name in ("mean", "std"):
            values, allowed = getattr(self, name), f"{self.in_chans} numbers, one per channel"
            check(len(values) == self.in_chans, name, list(values), allowed)
        check(min(self.std) > 0, "std", list(self.std), "numbers above 0")
        check_choice("interpolation", self.interpolation, ("bicubic", "bilinear"))
        check(0 < self.crop_pct <= 1, "crop_pct", self.crop_pct, "above 0, at most 1")

    @property
    def mode(self) -> str:
        """PIL mode of the images that the model sees."""
        return "L" if self.in_chans == 1 else "RGB"

    def __call__(self, image: Any) -> Tensor:
        return self._steps(image if image.mode == self.mode else image.convert(self.mode))

    @cached_property
    def _steps(self) -> Callable[[Any], Tensor]:
        return self.steps()

    def steps(self, *, use_prefetcher: bool = False) -> Callable[[Any], Any]:
        """timm's transform for an image that has the right mode; with `use_prefetcher`, the one
        that leaves normalising to timm's ``PrefetchLoader``.

        Raises:
            ImportError: timm is not installed.
        """
        return require("timm.data", "train").create_transform(
            (self.in_chans, *self.image_size),
            is_training=False,
            use_prefetcher=use_prefetcher,
            interpolation=self.interpolation,
            mean=self.mean,
            std=self.std,
            crop_pct=self.crop_pct,
        )
