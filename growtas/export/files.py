"""A stand-alone model as a folder: ``model.safetensors`` and a readable ``config.json``."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from growtas.base.atomic import write_atomically
from growtas.base.config import arguments, build, convert, to_plain
from growtas.base.image_transform import ImageTransform
from growtas.base.tensor_files import TensorFile, save_tensors
from growtas.supernet.vit.standalone import VisionTransformer

WEIGHTS, CONFIG = "model.safetensors", "config.json"
_ARCHITECTURE = "growtas.VisionTransformer"
# Tables of relative positions are computed from the image size, of which the weights need not tell.
_MOST_TABLES = 4 << 30  # bytes


def save(
    module: VisionTransformer,
    folder: str | os.PathLike[str],
    info: Mapping[str, Any] | None = None,
) -> None:
    """Write a stand-alone model, and its ``transform`` and ``classes`` if it has them.

    :func:`load` needs neither csrc nor Triton to read it. The same model always gives the same
    bytes.

    Args:
        module: from :meth:`growtas.Supernet.extract`.
        folder: created if missing.
        info: further JSON values for ``config.json``'s ``"info"`` (scores, subnet, recipe).

    Raises:
        OSError: a file cannot be written.
    """
    folder = Path(folder)
    values = {
        "architecture": _ARCHITECTURE,
        "config": module.config,
        "transform": _transform_values(module),
        "classes": to_plain(module.classes),
        "info": dict(info or {}),
    }
    save_tensors(module.state_dict(), folder / WEIGHTS, {"format": "pt"})
    write_atomically(folder / CONFIG, json.dumps(values, indent=2) + "\n")


def load(
    folder: str | os.PathLike[str], device: str = "cpu", *, verify: bool = True
) -> VisionTransformer:
    """The stand-alone model of :func:`save`'s folder, in evaluation mode.

    ``model.transform(image)`` prepares a PIL image as the evaluation did, and ``model.classes``
    names its classes; both are None for a folder that does not tell.

    Args:
        folder: the folder.
        device: where the model is to be.
        verify: compare the weights with their checksum, if they have one (older files have none).

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: ``config.json`` describes something else or has a wrong field, the weights are
            damaged, or they are not the weights of the model that it describes.
    """
    folder = Path(folder)
    for name in (WEIGHTS, CONFIG):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{name} is missing in {os.fspath(folder)!r}")
    values = _read_config(folder / CONFIG)
    source = repr(str(folder / CONFIG))
    file = TensorFile(folder / WEIGHTS)
    if verify:
        file.check_checksum()
    try:
        config = arguments(VisionTransformer, values.get("config"), where="config")
        file.check_blocks(len(config["num_heads"]), CONFIG)
        with torch.device("meta"):  # shapes only: nothing is allocated for wrong ones
            outline = VisionTransformer(**config)
        tables = sum(buffer.nbytes for buffer in outline.buffers())
        if tables > _MOST_TABLES:
            raise ValueError(
                f"config.image_size {config['image_size']} with patches of "
                f"{config['patch_size']} needs {tables / 2**30:.0f} GiB for relative positions; at "
                f"most {_MOST_TABLES >> 30} are allowed"
            )
        transform, classes = _read_transform(values, config), _read_classes(values, config)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{source}: {error}") from error
    file.check_shapes(outline.state_dict(), CONFIG)
    module = VisionTransformer(**config)
    module.load_state_dict(file.tensors(), strict=True)
    module.transform, module.classes = transform, classes
    return module.to(device).eval()


def _read_config(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{str(path)!r} is not JSON: {error}") from error
    architecture = values.get("architecture") if isinstance(values, dict) else values
    if architecture != _ARCHITECTURE:
        raise ValueError(f"{str(path)!r} describes {architecture!r}, expected {_ARCHITECTURE!r}")
    return values


# The sizes are the model's: the file says them once.


def _transform_values(module: VisionTransformer) -> dict[str, Any] | None:
    if module.transform is None:
        return None
    values = to_plain(module.transform)
    return {name: value for name, value in values.items() if name not in module.config}


def _read_transform(values: Mapping[str, Any], config: Mapping[str, Any]) -> ImageTransform | None:
    stored = values.get("transform")
    if stored is None:
        return None
    if not isinstance(stored, Mapping):
        raise ValueError(f"transform must map names to values, got {stored!r}")
    sizes = {"image_size": config["image_size"], "in_chans": config["in_chans"]}
    return build(ImageTransform, {**stored, **sizes}, where="transform")


def _read_classes(values: Mapping[str, Any], config: Mapping[str, Any]) -> tuple[str, ...] | None:
    classes = convert(values.get("classes"), tuple[str, ...] | None, where="classes")
    if classes is not None and len(classes) > config["num_classes"]:
        raise ValueError(
            f"classes names {len(classes)}, but config.num_classes is {config['num_classes']}"
        )
    return classes
