"""Files written in one piece: a reader sees the old file or the new one, and a failure leaves none
half-written."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A file to write that takes the place of `path` when the block ends; folders are created.

    It is written beside `path` as ``NAME.partial``, and removed if the block or the writing fails.

    Raises:
        OSError: it cannot be written, for example because the disk is full; names `path`.
    """
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(partial, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        except BaseException:
            # Removing can fail for the same reason as writing: the first error is the one to tell.
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
            raise


def write_atomically(path: str | os.PathLike[str], text: str) -> None:
    """Writes `text` as UTF-8 in the place of `path`. Raises OSError as `replacing` does."""
    with replacing(path) as file:
        file.write(text.encode())


@contextlib.contextmanager
def naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Lets an OSError of the block say that `path` could not be written: one of ``write`` names no
    file."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, f"cannot write: {error.strerror}", os.fspath(path)) from error
