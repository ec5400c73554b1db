"""Supernet files: one safetensors file, the configuration in its metadata."""

from __future__ import annotations

import json
import os
from pathlib import Path

from growtas.space import SearchSpace
from growtas.supernet.vit import Supernet

_FORMAT = "growtas-supernet-1"


def save_supernet(model: Supernet, path: str | os.PathLike[str]) -> None:
    """Write weights, space and configuration to ``path``, atomically."""
    from safetensors.torch import save

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    metadata = {
        "format": _FORMAT,
        "config": json.dumps(model.config),
        "space": json.dumps(model.space.to_dict()),
    }
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(save(tensors, metadata))
    os.replace(partial, path)


def load_supernet(path: str | os.PathLike[str], device: str = "cpu") -> Supernet:
    """Rebuild a supernet from :func:`save_supernet`'s file, in evaluation mode.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a growtas supernet file.
    """
    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        raise FileNotFoundError(f"no supernet file at {os.fspath(path)!r}")
    try:
        with safe_open(path, framework="pt", device=device) as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != _FORMAT:
                raise ValueError(
                    f"{os.fspath(path)!r} is not a growtas supernet: its format is "
                    f"{metadata.get('format')!r}, expected {_FORMAT!r}"
                )
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{os.fspath(path)!r} is not a safetensors file: {error}") from error
    space = SearchSpace.from_dict(json.loads(metadata["space"]))
    model = Supernet.from_config(json.loads(metadata["config"]), space).to(device)
    model.load_state_dict(tensors, strict=True)
    return model.eval()
