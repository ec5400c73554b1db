"""Checkpoint files: tensors and plain values only, replaced in one piece."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from growtas.base import torch_files

FORMAT = "growtas-checkpoint-1"


def save_checkpoint(state: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Write `state` to `path`; a crash at any moment leaves the old file or the new one.

    Raises:
        TypeError: a value that `load_checkpoint` could not read back safely.
        OSError: the file cannot be written; the old one stays.
    """
    _check_plain(state, "checkpoint")
    torch_files.save({"format": FORMAT, **state}, path)


def load_checkpoint(
    path: str | os.PathLike[str], device: Any = "cpu", *, verify: bool = True
) -> dict[str, Any]:
    """Read a file of `save_checkpoint`, its tensors to `device`; it can hold no code. `verify`
    compares its records with their checksums.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a growtas checkpoint, or a damaged one; names the file.
    """
    state = torch_files.load(path, verify=verify, device=device)
    found = state.get("format") if isinstance(state, dict) else type(state).__name__
    if found != FORMAT:
        raise ValueError(
            f"{os.fspath(path)!r} is not a growtas checkpoint: its format is {found!r}, "
            f"expected {FORMAT!r}"
        )
    return state


def _check_plain(value: Any, name: str) -> None:
    if isinstance(value, Mapping):
        for key, entry in value.items():
            _check_plain(entry, f"{name}[{key!r}]")
    elif isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        for index, entry in enumerate(value):
            _check_plain(entry, f"{name}[{index}]")
    elif value is not None and not isinstance(value, (torch.Tensor, bool, int, float, str)):
        raise TypeError(
            f"{name} is a {type(value).__name__}; allowed: tensors, numbers, text, lists, mappings"
        )
