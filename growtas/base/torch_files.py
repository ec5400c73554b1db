"""Files of ``torch.save``: written in one piece, read without running code in them.

They are zip archives with a CRC-32 of every record. PyTorch does not look at these; `load` does.
"""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from growtas.base.atomic import replacing
from growtas.base.checks import listed

_ZIP = b"PK\x03\x04"
_FOLDER = 0x10  # attribute of a zip record


def save(content: Any, path: str | os.PathLike[str]) -> None:
    """``torch.save`` in one piece.

    Raises:
        OSError: the file cannot be written.
    """
    with replacing(path) as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:
            # Its writer, stopped in the middle, complains that something is missing.
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def load(
    path: str | os.PathLike[str],
    *,
    verify: bool = True,
    device: Any = "cpu",
    allowed: Sequence[type] = (),
) -> Any:
    """What ``torch.save`` wrote, if it is tensors and plain values.

    Args:
        path: the file.
        verify: compare its records with their checksums; files that PyTorch wrote before 1.6 have
            none.
        device: where its tensors go.
        allowed: further classes that the file may hold.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not such a file, damaged, or it holds anything else; names the file and why.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {str(path)!r}")
    if verify:
        _check_records(path)
    try:
        with torch.serialization.safe_globals(list(allowed)):
            return torch.load(path, map_location=device, weights_only=True)
    except (OSError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # a damaged file may raise anything
        foreign = re.search(r"GLOBAL (\S+)", str(error))
        extra = listed(f"{cls.__module__}.{cls.__qualname__}" for cls in allowed)
        reason = (
            f"it holds a {foreign[1]}; allowed: tensors, plain values"
            + (f" and {extra}" if extra else "")
            if foreign
            else "it is not a PyTorch checkpoint, or damaged"
        )
        raise ValueError(f"cannot load {str(path)!r}: {reason}") from error


def _check_records(path: Path) -> None:
    with open(path, "rb") as file:
        if file.read(4) != _ZIP:
            return
    try:
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
            # torch.serialization.set_crc32_options(False) writes zeros in the checksums' place.
            summed = any(record.CRC for record in records)
            damaged = archive.testzip() if summed else None
            # PyTorch takes a record with this mark for empty, and returns what was in memory.
            damaged = damaged or next(
                (r.filename for r in records if r.external_attr & _FOLDER), None
            )
    except Exception as error:  # a damaged archive may raise anything
        raise ValueError(
            f"cannot load {str(path)!r}: it is not a PyTorch checkpoint, or damaged ({error})"
        ) from error
    if damaged is not None:
        raise ValueError(
            f"{str(path)!r} is damaged: its record {damaged} does not match its checksum. Copy or "
            "make it again; verify=False (--no-verify) reads it as it is"
        )
