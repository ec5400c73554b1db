"""Files of torch.save: no code in them is run, and a damaged one is refused by name."""

from __future__ import annotations

import random

import pytest
import torch

from growtas.base import torch_files
from growtas.training.checkpoint import load_checkpoint, save_checkpoint

STATE = {"weights": {"a": torch.arange(12.0), "b": torch.ones(3)}, "epoch": 3, "names": ["x"]}


def same(left, right) -> bool:
    weights, others = left["weights"], right["weights"]
    return (
        {**left, "weights": None} == {**right, "weights": None}
        and weights.keys() == others.keys()
        and all(torch.equal(weights[name], others[name]) for name in weights)
    )


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(STATE, path)
    return path


def test_a_flipped_bit_anywhere_is_found_or_changes_nothing(path):
    """Padding may change; what is read may not."""
    content, state = path.read_bytes(), load_checkpoint(path)
    assert same({**state, "weights": STATE["weights"]}, state)
    rng, refusals = random.Random(0), []
    for place in range(0, len(content), 7):
        changed = bytearray(content)
        changed[place] ^= 1 << rng.randrange(8)
        path.write_bytes(changed)
        try:
            again = load_checkpoint(path)
        except ValueError as error:
            refusals.append(str(error))
        else:
            assert same(again, state), place
    assert len(refusals) > 50
    assert all("checkpoint.pt" in text for text in refusals)


def test_a_changed_weight_is_read_only_on_request(path):
    content = path.read_bytes()
    at = content.index(torch.arange(12.0).numpy().tobytes())
    path.write_bytes(content[:at] + b"\1" + content[at + 1 :])
    with pytest.raises(ValueError, match=r"checkpoint.pt' is damaged: its record .* checksum"):
        load_checkpoint(path)
    assert load_checkpoint(path, verify=False)["weights"]["a"][0] != 0


def test_a_record_marked_as_a_folder_is_found(path):
    """PyTorch reads nothing there and returns whatever was in memory."""
    content = bytearray(path.read_bytes())
    entry = content.rindex(b"PK\x01\x02", 0, content.rindex(b"data/0"))
    content[entry + 38] |= 0x10
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is damaged"):
        load_checkpoint(path)


def test_the_same_state_gives_the_same_bytes(path):
    content = path.read_bytes()
    save_checkpoint(STATE, path)
    assert path.read_bytes() == content


@pytest.mark.parametrize("cut", [0, 1, 100, -100, -1])
def test_truncated(path, cut):
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(ValueError, match=r"cannot load '.*checkpoint.pt'.*or damaged"):
        load_checkpoint(path)


@pytest.mark.parametrize("content", [bytes(1000), b"epoch: 3\n", b"\x80\x02N.", b"PK\x03\x04"])
def test_other_files(path, content):
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"checkpoint.pt' ?(: it is not|is not a growtas)"):
        load_checkpoint(path)


def test_files_without_checksums_load(path):
    """PyTorch can leave them out, and its format before 1.6 has none."""
    torch.serialization.set_crc32_options(False)
    try:
        save_checkpoint(STATE, path)
    finally:
        torch.serialization.set_crc32_options(True)
    without = load_checkpoint(path)
    assert same(without, {**STATE, "format": without["format"]})
    torch.save({**without}, path, _use_new_zipfile_serialization=False)
    assert same(load_checkpoint(path), without)


def test_what_may_be_in_a_file(tmp_path):
    path = tmp_path / "file.pt"
    torch.save({"path": tmp_path}, path)
    with pytest.raises(ValueError, match=r"file.pt': it holds a pathlib\S+; allowed: tensors"):
        torch_files.load(path)
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        torch_files.load(tmp_path / "none.pt")
