"""Supernet files: everything needed to rebuild, nothing executed on load."""

from __future__ import annotations

import json
import random

import pytest
import torch

import growtas
from growtas.base.tensor_files import CHECKSUM

from .conftest import SPACE, build


def test_round_trip(tmp_path, images, subnets):
    model = build(drop_path=0.1, pool="cls", qkv_bias="autoformer").eval()
    path = tmp_path / "deep" / "supernet.safetensors"
    growtas.save_supernet(model, path)
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    again = growtas.load_supernet(path)
    assert again.config == model.config
    assert again.space == SPACE
    assert again.space.supernet == SPACE.supernet
    for subnet in subnets:
        assert torch.equal(again(images, subnet), model(images, subnet))


def test_wrong_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no supernet file"):
        growtas.load_supernet(tmp_path / "none.safetensors")
    junk = tmp_path / "junk.safetensors"
    for content, reason in (
        (b"", "it is empty"),
        (b"not a checkpoint at all\n", "it is text"),
        (bytes(5000), "it begins with zeros only"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "it is damaged"),
        (b"\x80\x02\0\0\0\0\0\0{" + b" " * 99, "it is damaged"),  # cut off, and no pickle
    ):
        junk.write_bytes(content)
        with pytest.raises(
            ValueError, match=rf"junk.safetensors' is not a safetensors .* {reason}"
        ):
            growtas.load_supernet(junk)
    torch.save({"a": torch.zeros(1)}, junk)
    with pytest.raises(ValueError, match=r"junk.safetensors' .* a file of torch.save, which"):
        growtas.load_supernet(junk)
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="is not a growtas supernet"):
        growtas.load_supernet(tmp_path / "other.safetensors")


def header_of(content: bytes) -> tuple[dict, int]:
    """The header of a safetensors file, and where it ends."""
    end = 8 + int.from_bytes(content[:8], "little")
    return json.loads(content[8:end]), end


def with_header(content: bytes, change) -> bytes:
    """The file after `change` of its header, which is a dict."""
    header, end = header_of(content)
    change(header)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + content[end:]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "supernet.safetensors"
    growtas.save_supernet(build().eval(), path)
    return path.read_bytes()


def test_the_same_model_gives_the_same_bytes(tmp_path, saved):
    model = build().eval()
    model.config = dict(reversed(model.config.items()))  # the order of making is no matter
    again = tmp_path / "again.safetensors"
    growtas.save_supernet(model, again)
    assert again.read_bytes() == saved
    growtas.save_supernet(growtas.load_supernet(again), again)
    assert again.read_bytes() == saved
    header, end = header_of(saved)
    assert list(header) == sorted(header)
    assert end % 8 == 0


def test_flipped_bits_are_found(tmp_path, saved):
    """In the header, where a flip may leave valid JSON with another setting, and in the weights."""
    path = tmp_path / "flipped.safetensors"
    end = header_of(saved)[1]
    rng = random.Random(0)
    places = [*range(0, end, 97), end - 1, end, len(saved) - 1]
    places += [saved.index(text) + 2 for text in (b"drop_path", CHECKSUM.encode())]
    for place in [*places, *(rng.randrange(end, len(saved)) for _ in range(20))]:
        content = bytearray(saved)
        content[place] ^= 1 << rng.randrange(8)
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"flipped\.safetensors"):
            growtas.load_supernet(path)


def test_a_changed_weight_is_read_only_on_request(tmp_path, saved):
    path = tmp_path / "flipped.safetensors"
    path.write_bytes(saved[:-1] + bytes([saved[-1] ^ 0x80]))
    with pytest.raises(ValueError, match=r"is damaged: .* checksum.*verify=False"):
        growtas.load_supernet(path)
    states = growtas.load_supernet(path, verify=False).state_dict(), build().state_dict()
    differing = [name for name in states[0] if not torch.equal(*(s[name] for s in states))]
    assert len(differing) == 1


def test_files_without_a_checksum_load(tmp_path, saved):
    """What version 0.1 wrote."""
    from safetensors.torch import save_file

    model = build().eval()
    metadata = {
        "format": "growtas-supernet-1",
        "config": json.dumps(model.config),
        "space": json.dumps(model.space.to_dict()),
    }
    save_file(model.state_dict(), tmp_path / "old.safetensors", metadata)
    again = growtas.load_supernet(tmp_path / "old.safetensors")
    assert again.config == model.config
    assert all(
        torch.equal(p, q) for p, q in zip(again.parameters(), model.parameters(), strict=True)
    )


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("num_classes", 10**9, r"head.bias is \[7\] in the file, \[1000000000\] there"),
        ("num_classes", 10**30, "wrong header: "),
        ("num_classes", "x", r"config.num_classes: expected an integer, got 'x'"),
        ("pool", "max", r"pool is 'max', allowed: mean, cls"),
        ("pools", "cls", r"unknown field config.pools \(did you mean 'pool'\?\)"),
        ("depth", 10**9, r"holds 4 blocks, the model of its header has 1000000000"),
        ("depth", None, "wrong header: "),
        ("embed_dim", 10**7, r"blocks.0.* is \[.*56.*\] in the file, \[.*10000000.*\] there"),
    ],
)
def test_headers_that_are_not_the_weights_are_refused_without_allocating(
    tmp_path, saved, field, value, message
):
    def change(header):
        metadata = header["__metadata__"]
        del metadata[CHECKSUM]  # or only that would be told
        space, config = json.loads(metadata["space"]), json.loads(metadata["config"])
        (space["supernet"] if field in space["supernet"] else config)[field] = value
        metadata |= {"space": json.dumps(space), "config": json.dumps(config)}

    path = tmp_path / "wrong.safetensors"
    path.write_bytes(with_header(saved, change))
    with pytest.raises(ValueError, match=message) as caught:
        growtas.load_supernet(path)
    assert str(path) in str(caught.value)


def test_loading_draws_no_random_number(tmp_path, saved):
    path = tmp_path / "supernet.safetensors"
    path.write_bytes(saved)
    before = torch.get_rng_state()
    growtas.load_supernet(path)
    assert torch.equal(torch.get_rng_state(), before)
