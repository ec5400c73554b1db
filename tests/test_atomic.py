"""Files appear in one piece or not at all, and a failure names the file."""

from __future__ import annotations

import contextlib
import errno
import io
import os

import pytest
import torch

import growtas
from growtas import export
from growtas.base import torch_files
from growtas.base.atomic import replacing, write_atomically
from growtas.training.checkpoint import save_checkpoint

SPACE = growtas.SearchSpace((64,), (1,), (1,), (1.0,), name="one")


@pytest.fixture(scope="module")
def model():
    return growtas.Supernet(SPACE, image_size=8, patch_size=4, num_classes=2).eval()


WRITERS = {
    "supernet.safetensors": growtas.save_supernet,
    "theirs.pth": growtas.save_autoformer,
    "checkpoint.pt": lambda model, path: save_checkpoint(model.state_dict(), path),
    "text.json": lambda model, path: write_atomically(path, "{}\n"),
    "model.safetensors": lambda model, path: export.save(
        model.extract(SPACE.largest()), path.parent
    ),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_leaves_the_old_file_and_no_other(tmp_path, monkeypatch, model, name):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / name
    path.write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="cannot write: No space left on device") as caught:
        WRITERS[name](model, path)
    assert caught.value.filename == str(path)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == {name: b"old"}


def test_errors_of_the_block_itself_leave_nothing_either(tmp_path):
    def interrupted():
        with replacing(tmp_path / "deep" / "file") as file:
            file.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list((tmp_path / "deep").iterdir()) == []


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="cannot write") as caught:
        write_atomically(tmp_path / "file" / "below", "")
    assert caught.value.filename == str(tmp_path / "file" / "below")


class SmallDisk(io.BytesIO):
    """A file whose disk is full in the middle of a large write."""

    def write(self, data):
        room = 10_000 - self.tell()
        if super().write(bytes(data)[:room]) < len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return len(data)


def test_a_disk_that_is_full_in_the_middle_of_torch_save(monkeypatch):
    """PyTorch's writer then raises an error of its own, which says nothing of the disk."""
    monkeypatch.setattr(torch_files, "replacing", lambda path: contextlib.nullcontext(SmallDisk()))
    with pytest.raises(OSError, match="No space left on device"):
        torch_files.save({"a": torch.zeros(10_000), "b": torch.zeros(10_000)}, "unused")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")
def test_figures_of_an_epoch_on_a_full_disk(tmp_path, monkeypatch):
    from growtas.training.metrics import MetricsLog

    log = MetricsLog(tmp_path)
    (tmp_path / "metrics.jsonl").unlink()
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"cannot write: No space left.*metrics\.jsonl"):
        log.write({"epoch": 1})
