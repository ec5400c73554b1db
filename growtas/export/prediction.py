"""Classes of image files by an exported model."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from growtas.base.checks import listed, positive_int
from growtas.base.optional import require
from growtas.supernet.vit.standalone import VisionTransformer

# Files with other endings are left out of folders; named one by one they are read.
IMAGE_FILES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")


class Prediction(NamedTuple):
    """The most likely classes of one image, the likeliest first."""

    path: Path
    classes: tuple[str, ...]  # names, or indices where the model has no name
    probabilities: tuple[float, ...]  # of these classes, 0 to 1


def predict(
    model: VisionTransformer,
    images: Sequence[str | os.PathLike[str]],
    *,
    top: int = 1,
    batch_size: int = 64,
) -> Iterator[Prediction]:
    """Classify image files, in the order given.

    Args:
        model: of :func:`growtas.export.load`.
        images: files, and folders whose images are taken with those of their sub-folders, by name.
        top: classes per image, at most all.
        batch_size: images computed together; they are read as they are needed.

    Raises:
        FileNotFoundError: a file or folder is not there, or a folder has no image.
        ValueError: an image that cannot be read (the message names the file), or a model that does
            not know how images are prepared or has no classifier.
        ImportError: timm or Pillow is not installed.
    """
    positive_int("top", top)
    positive_int("batch_size", batch_size)
    if model.transform is None:
        raise ValueError(
            "the model does not say how its images are prepared: export it again, or set "
            "model.transform to a growtas.base.image_transform.ImageTransform"
        )
    if model.num_classes == 0:
        raise ValueError("the model has no classifier: its num_classes is 0")
    return _predictions(model, image_files(images), min(top, model.num_classes), batch_size)


def image_files(images: Sequence[str | os.PathLike[str]]) -> list[Path]:
    """The files that `predict` reads.

    Raises:
        FileNotFoundError: as for `predict`.
    """
    files: list[Path] = []
    for path in map(Path, images):
        if not path.is_dir():
            if not path.exists():
                raise FileNotFoundError(f"no image or folder at {str(path)!r}")
            files.append(path)
            continue
        found = sorted(p for p in path.rglob("*") if p.suffix.lower() in IMAGE_FILES)
        if not found:
            raise FileNotFoundError(
                f"no image in the folder {str(path)!r}: none ends in {listed(IMAGE_FILES)}"
            )
        files += found
    return files


def _predictions(
    model: VisionTransformer, files: Sequence[Path], top: int, batch_size: int
) -> Iterator[Prediction]:
    weight = model.norm.weight
    names = model.classes or ()
    for start in range(0, len(files), batch_size):
        part = files[start : start + batch_size]
        batch = torch.stack([_read(model, path) for path in part])
        with torch.inference_mode():
            logits = model(batch.to(weight.device, weight.dtype))
            probabilities, indices = logits.float().softmax(-1).topk(top)
        for path, shares, chosen in zip(
            part, probabilities.tolist(), indices.tolist(), strict=True
        ):
            classes = tuple(names[i] if i < len(names) else str(i) for i in chosen)
            yield Prediction(path, classes, tuple(shares))


def _read(model: VisionTransformer, path: Path) -> torch.Tensor:
    reader = require("PIL.Image", "train")
    assert model.transform is not None
    try:
        with reader.open(path) as image:
            image.load()
    except Exception as error:  # decoders raise anything on a damaged file
        raise ValueError(f"cannot read the image {str(path)!r}: {error}") from error
    return model.transform(image)
