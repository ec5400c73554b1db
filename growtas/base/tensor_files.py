"""Tensors on disk as safetensors, with a checksum in the header.

The checksum is blake2b over everything else that the file holds: the header (its JSON with sorted
keys, without the checksum itself), then the tensors' bytes. So the same tensors and metadata always
give the same file, and a bit that flips anywhere is found on load.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import string
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from growtas.base.atomic import replacing
from growtas.base.checks import listed

CHECKSUM = "blake2b"  # key of the metadata
_METADATA = "__metadata__"  # of the format
_HEX = re.compile("[0-9a-f]{64}")  # a checksum
_CHUNK = 1 << 22  # bytes
_TEXT = frozenset(string.printable.encode())


def save_tensors(
    tensors: Mapping[str, Tensor], path: str | os.PathLike[str], metadata: Mapping[str, str]
) -> None:
    """Write tensors and metadata with their checksum, in one piece.

    Raises:
        OSError: the file cannot be written.
    """
    from safetensors.torch import save

    content = save({name: tensor.contiguous() for name, tensor in tensors.items()}, dict(metadata))
    start = 8 + int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8:start]), memoryview(content)[start:]
    digest = _digest(header)
    digest.update(data)
    header[_METADATA][CHECKSUM] = digest.hexdigest()
    text = _canonical(header)
    text += b" " * (-len(text) % 8)  # the format wants the tensors' bytes aligned
    with replacing(path) as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        file.write(data)


class TensorFile:
    """The header of a safetensors file, whose tensors are read only if they are the expected ones.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a safetensors file, or a damaged one; names the file.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        from safetensors import SafetensorError, safe_open

        self.path = Path(path)
        try:
            with safe_open(self.path, framework="pt") as file:
                self.metadata: dict[str, str] = file.metadata() or {}
                self.shapes = {
                    name: tuple(file.get_slice(name).get_shape())
                    for name in file.keys()  # noqa: SIM118
                }
        except SafetensorError as error:
            reason = _appearance(self.path) or f"it is damaged ({error})"
            raise ValueError(f"{str(self.path)!r} is not a safetensors file: {reason}") from error

    def check_checksum(self) -> None:
        """Compare the file with its checksum; one that has none, as older versions wrote, passes.

        Raises:
            ValueError: the file has changed since it was written.
        """
        stated = self.metadata.get(CHECKSUM)
        # A bit of its key may have flipped, too.
        if stated is None and not any(map(_HEX.fullmatch, self.metadata.values())):
            return
        with open(self.path, "rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
            header[_METADATA].pop(CHECKSUM, None)
            digest = _digest(header)
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
        if digest.hexdigest() != stated:
            raise ValueError(
                f"{str(self.path)!r} is damaged: its content does not match its checksum. Copy or "
                "make it again; verify=False (--no-verify) reads it as it is"
            )

    def check_shapes(self, expected: Mapping[str, Tensor], source: str) -> None:
        """Compare names and shapes with those of a model, which may be on the meta device.

        Args:
            expected: a state_dict.
            source: what the model was built from, for the message.

        Raises:
            ValueError: a tensor is missing, unexpected or of another shape; lists the first five.
        """
        wanted = {name: tuple(tensor.shape) for name, tensor in expected.items()}
        differing = [
            f"{name} is {_shown(self.shapes.get(name))} in the file, {_shown(wanted.get(name))} "
            "there"
            for name in [*wanted, *(name for name in self.shapes if name not in wanted)]
            if wanted.get(name) != self.shapes.get(name)
        ]
        if differing:
            more = f"; and {len(differing) - 5} more" if len(differing) > 5 else ""
            raise ValueError(
                f"{str(self.path)!r} does not hold the model of {source}: "
                f"{'; '.join(differing[:5])}{more}"
            )

    def check_blocks(self, count: int, source: str) -> None:
        """Compare the number of blocks, before a model of `count` blocks is outlined.

        Raises:
            ValueError: the file holds another number.
        """
        found = {match[1] for name in self.shapes if (match := re.match(r"blocks\.(\d+)\.", name))}
        if len(found) != count:
            raise ValueError(
                f"{str(self.path)!r} holds {len(found)} blocks, the model of {source} has {count}"
            )

    def tensors(self, device: str = "cpu") -> dict[str, Tensor]:
        """All tensors by name, on `device`."""
        from safetensors import safe_open

        with safe_open(self.path, framework="pt", device=device) as file:
            return {name: file.get_tensor(name) for name in self.shapes}


def _canonical(header: Mapping[str, Any]) -> bytes:
    return json.dumps(header, sort_keys=True, separators=(",", ":")).encode()


def _digest(header: Mapping[str, Any]) -> Any:
    """The checksum so far, of a header without one."""
    return hashlib.blake2b(_canonical(header), digest_size=32)


def _shown(shape: tuple[int, ...] | None) -> str:
    return "missing" if shape is None else f"[{listed(shape)}]"


def _appearance(path: Path) -> str:
    """What a file looks like that is not safetensors; empty if like nothing in particular."""
    with open(path, "rb") as file:
        start = file.read(4096)
    if start[8:9] == b"{":  # like safetensors, after eight bytes that may look like anything
        return ""
    if not start:
        return "it is empty"
    if not any(start):
        return "it begins with zeros only"
    if start.startswith((b"PK\x03\x04", b"\x80")):
        return "it is a pickle or a file of torch.save, which is not read here"
    if all(byte in _TEXT for byte in start):
        return "it is text"
    return ""
