"""Supernet files: one safetensors file, the configuration in its metadata."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch

from growtas.base.config import arguments
from growtas.base.tensor_files import TensorFile, save_tensors
from growtas.space import SearchSpace
from growtas.supernet.vit.model import Supernet

_FORMAT = "growtas-supernet-1"


def save_supernet(model: Supernet, path: str | os.PathLike[str]) -> None:
    """Write weights, space and configuration to ``path``, in one piece and with a checksum.

    The same model always gives the same bytes.

    Raises:
        OSError: the file cannot be written; an earlier one stays.
    """
    metadata = {
        "format": _FORMAT,
        "config": json.dumps(model.config, sort_keys=True),
        "space": json.dumps(model.space.to_dict(), sort_keys=True),
    }
    save_tensors(model.state_dict(), path, metadata)


def load_supernet(
    path: str | os.PathLike[str], device: str = "cpu", *, verify: bool = True
) -> Supernet:
    """Rebuild a supernet from :func:`save_supernet`'s file, in evaluation mode.

    Args:
        device: where the supernet is to be.
        verify: compare the content with its checksum, if it has one (older files have none).

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a growtas supernet file, a damaged one, or tensors that are not those of its
            configuration; found before any of them is read.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no supernet file at {str(path)!r}")
    file = TensorFile(path)
    if file.metadata.get("format") != _FORMAT:
        raise ValueError(
            f"{str(path)!r} is not a growtas supernet: its format is "
            f"{file.metadata.get('format')!r}, expected {_FORMAT!r}"
        )
    if verify:
        file.check_checksum()
    try:
        space = SearchSpace.from_dict(json.loads(file.metadata["space"]))
        config = arguments(
            Supernet, {**json.loads(file.metadata["config"]), "space": space}, where="config"
        )
        file.check_blocks(space.supernet.depth, "its header")
        with torch.device("meta"):  # shapes only: nothing is allocated for wrong ones
            outline = Supernet(**config)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{str(path)!r} has a wrong header: {error}") from error
    file.check_shapes(outline.state_dict(), "its header")
    model = outline.to_empty(device=device)
    model.load_state_dict(file.tensors(device), strict=True)
    return model.eval()
