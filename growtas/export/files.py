"""A stand-alone model as a folder: ``model.safetensors`` and a readable ``config.json``."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from growtas.supernet.standalone import VisionTransformer

WEIGHTS, CONFIG = "model.safetensors", "config.json"
_ARCHITECTURE = "growtas.VisionTransformer"


def save(
    module: VisionTransformer,
    folder: str | os.PathLike[str],
    info: Mapping[str, Any] | None = None,
) -> None:
    """Write a stand-alone model; :func:`load` needs neither csrc nor Triton to read it.

    Args:
        module: from :meth:`growtas.Supernet.extract`.
        folder: created if missing.
        info: further JSON values for ``config.json``'s ``"info"`` (scores, subnet, recipe).
    """
    from safetensors.torch import save as serialise

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.contiguous() for name, tensor in module.state_dict().items()}
    partial = folder / (WEIGHTS + ".partial")
    partial.write_bytes(serialise(tensors, {"format": "pt"}))
    os.replace(partial, folder / WEIGHTS)
    config = {"architecture": _ARCHITECTURE, "config": module.config, "info": dict(info or {})}
    partial = folder / (CONFIG + ".partial")
    partial.write_text(json.dumps(config, indent=2) + "\n")
    os.replace(partial, folder / CONFIG)


def load(folder: str | os.PathLike[str], device: str = "cpu") -> VisionTransformer:
    """The stand-alone model of :func:`save`'s folder, in evaluation mode.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: ``config.json`` describes something else.
    """
    from safetensors.torch import load_file

    folder = Path(folder)
    for name in (WEIGHTS, CONFIG):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{name} is missing in {os.fspath(folder)!r}")
    config = json.loads((folder / CONFIG).read_text())
    if config.get("architecture") != _ARCHITECTURE:
        raise ValueError(
            f"{os.fspath(folder / CONFIG)!r} describes {config.get('architecture')!r}, "
            f"expected {_ARCHITECTURE!r}"
        )
    module = VisionTransformer(**config["config"])
    module.load_state_dict(load_file(folder / WEIGHTS, device="cpu"), strict=True)
    return module.to(device).eval()
