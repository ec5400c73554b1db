"""AutoFormer's checkpoint files: what is read, what is written, and what is refused."""

from __future__ import annotations

import argparse
import json
import pathlib
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from torch import nn

import growtas
from growtas.compat.autoformer_layout import Layout, from_autoformer, hidden_ratio, to_autoformer

KEYS = json.loads(
    (Path(__file__).parents[1] / "golden" / "autoformer_micro_2026.json").read_text()
)["keys"]  # 2 heads, embedding dim 128, 4 blocks, patches of 8 pixels on a 4 x 4 grid, 10 classes
IMAGE = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(3))
SUBNET = growtas.Subnet(96, (1, 2, 1), (3.5, 4.0, 2.0))


@pytest.fixture
def state():
    generator = torch.Generator().manual_seed(0)
    return {key: torch.randn(shape, generator=generator) * 0.1 for key, shape in KEYS.items()}


def logits(model):
    with torch.inference_mode():
        return model(IMAGE, SUBNET)


def same(left, right):
    return list(left) == list(right) and all(torch.equal(left[key], right[key]) for key in left)


# Conversion


@pytest.mark.parametrize("qkv_bias", ["autoformer", "blocks"])
def test_conversion_and_back_changes_no_bit(state, qkv_bias):
    ours = from_autoformer(state, num_heads=2, head_dim=64, qkv_bias=qkv_bias)
    space = growtas.SearchSpace((128,), (4,), (2,), (4.0,))
    model = growtas.Supernet(space, 32, 8, 10, qkv_bias=qkv_bias)
    model.load_state_dict(ours)
    back = to_autoformer(model.state_dict(), patch_size=8, in_chans=3)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], state[key]) for key in state)


def test_conversion_puts_every_element_where_the_layouts_say(state):
    """Directly by the index rules: head i, dim j, role t is AutoFormer's row 3 (64 i + j) + t."""
    row = {(t, i, j): 3 * (64 * i + j) + t for t in range(3) for i in range(2) for j in range(64)}
    theirs = state["blocks.1.attn.qkv.weight"], state["blocks.1.attn.qkv.bias"]
    ours = from_autoformer(state, num_heads=2, head_dim=64, qkv_bias="blocks")
    weight, bias = ours["blocks.1.attn.qkv.weight"], ours["blocks.1.attn.qkv.bias"]
    assert weight.shape == (3, 2, 64, 128)
    assert bias.shape == (3, 2, 64)
    for at, index in row.items():
        assert torch.equal(weight[at], theirs[0][index])
        assert bias[at] == theirs[1][index]
    flat = from_autoformer(state, num_heads=2, head_dim=64, qkv_bias="autoformer")
    assert torch.equal(flat["blocks.1.attn.qkv.bias"], theirs[1])
    tables = [
        f"blocks.1.attn.rel_pos_embed_{side}.embeddings_table_{axis}"
        for side, axis in ("kv", "kh", "vv", "vh")
    ]
    for table, key in zip(ours["blocks.1.attn.rel_pos"], tables, strict=True):
        assert torch.equal(table, state[key])


def test_conversion_of_a_part_and_its_errors(state):
    part = {"norm.weight": state["norm.weight"], "other": torch.ones(1)}
    assert same(from_autoformer(part, num_heads=2, head_dim=64, qkv_bias="blocks"), part)
    with pytest.raises(ValueError, match=r"qkv_bias is 'flat', allowed: blocks, autoformer"):
        from_autoformer(part, num_heads=2, head_dim=64, qkv_bias="flat")
    with pytest.raises(ValueError, match=r"qkv.weight has 384 rows; 3 x 4 heads of 64 need 768"):
        from_autoformer(state, num_heads=4, head_dim=64, qkv_bias="autoformer")
    del state["blocks.2.attn.rel_pos_embed_v.embeddings_table_h"]
    message = r"blocks.2.attn.: rel_pos_embed_v.embeddings_table_h missing"
    with pytest.raises(ValueError, match=message):
        from_autoformer(state, num_heads=2, head_dim=64, qkv_bias="autoformer")


# Loading


def test_all_forms_of_a_checkpoint_are_the_same_model(state, tmp_path):
    torch.save(state, tmp_path / "plain.pth")
    torch.save({"model": state}, tmp_path / "released.pth")
    wrapped = {f"module.{key}": value for key, value in state.items()}
    torch.save({"model": wrapped, "epoch": 3}, tmp_path / "wrapped.pth")
    files = [tmp_path / f"{name}.pth" for name in ("plain", "released", "wrapped")]
    want = logits(growtas.load_autoformer(state))
    for source in ({"model": state}, wrapped, *files, str(files[0])):
        model = growtas.load_autoformer(source)
        assert not model.training
        assert torch.equal(logits(model), want)


def test_training_files(state, tmp_path):
    """What AutoFormer's training script saves, written by the very classes that it uses."""
    timm_scheduler = pytest.importorskip("timm.scheduler")
    layer = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW([{"params": [layer.weight]}, {"params": [layer.bias]}])
    layer(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    scheduler = timm_scheduler.CosineLRScheduler(optimizer, 500, warmup_t=20, warmup_lr_init=1e-6)
    arguments = argparse.Namespace(lr=1e-3, opt_betas=None, gp=True, cfg="supernet-T.yaml", gpu=0)
    checkpoint = {
        "model": state,
        "optimizer": optimizer.state_dict(),
        "lr_scheduler": scheduler.state_dict(),
        "epoch": 12,
        "scaler": torch.amp.GradScaler("cpu").state_dict(),
        "args": arguments,
    }
    torch.save(checkpoint, tmp_path / "checkpoint.pth")
    model = growtas.load_autoformer(tmp_path / "checkpoint.pth")
    assert torch.equal(logits(model), logits(growtas.load_autoformer(state)))
    # the permission ends with the call
    with pytest.raises(Exception, match=r"argparse\.Namespace"):
        torch.load(tmp_path / "checkpoint.pth", weights_only=True)


def test_the_model_owns_its_tensors_and_draws_no_random_number(state):
    kept = {key: value.clone() for key, value in state.items()}
    torch.manual_seed(0)
    model = growtas.load_autoformer(state)
    after = torch.rand(8)  # rather than the generator's state, whose padding bytes are arbitrary
    torch.manual_seed(0)
    assert torch.equal(after, torch.rand(8))
    with torch.no_grad():
        for parameter in model.parameters():
            assert parameter.requires_grad
            assert parameter.is_contiguous()
            parameter.zero_()
    assert same(state, kept)


def test_options_that_tensors_do_not_show(state):
    model = growtas.load_autoformer(state, pool="cls", drop_path=0.1, qkv_bias="blocks")
    assert [model.config[name] for name in ("pool", "drop_path", "qkv_bias")] == [
        "cls", 0.1, "blocks"
    ]  # fmt: skip
    assert model.blocks[-1].drop_path == pytest.approx(0.1)
    readings = [logits(model), logits(growtas.load_autoformer(state, pool="cls"))]
    assert not torch.allclose(*readings, atol=1e-3)


def test_both_readings_agree_on_a_bias_that_was_permuted_for_them(state):
    """For one fixed head count the two readings are permutations of each other."""
    subnet = growtas.Subnet(128, (2,) * 4, (4.0,) * 4)
    permuted = dict(state)
    for i in range(4):
        key = f"blocks.{i}.attn.qkv.bias"
        permuted[key] = state[key].view(3, 2, 64).permute(1, 2, 0).flatten()
    legacy = growtas.load_autoformer(state)
    prenas = growtas.load_autoformer(permuted, qkv_bias="blocks")
    with torch.inference_mode():
        torch.testing.assert_close(prenas(IMAGE, subnet), legacy(IMAGE, subnet))


def test_without_positions(state):
    for key in list(state):
        if "rel_pos_embed" in key or key == "pos_embed":
            del state[key]
    with pytest.raises(ValueError, match=r"no pos_embed to tell the image size: give image_size"):
        growtas.load_autoformer(state)
    model = growtas.load_autoformer(state, image_size=32)
    assert not model.config["relative_position"]
    assert not model.config["absolute_position"]
    assert logits(model).shape == (2, 10)
    assert growtas.load_autoformer(state, image_size=(16, 48)).grid == (2, 6)


def test_head_dim_and_reach_are_read_from_the_tables(state):
    for key, value in state.items():
        if "rel_pos_embed" in key:
            state[key] = value[:8, :32]
    model = growtas.load_autoformer(state)
    assert (model.space.head_dim, model.space.supernet.num_heads) == (32, 4)
    assert model.config["max_relative_position"] == 3
    with pytest.raises(ValueError, match=r"embeddings_table_v is \[8, 32\], expected \[8, 64\]"):
        growtas.load_autoformer(state, head_dim=64)


def test_image_size_must_fit_the_positions(state):
    assert growtas.load_autoformer(state, image_size=32).image_size == (32, 32)
    with pytest.raises(ValueError, match=r"image_size 64 x 64 has 64 patches .* positions for 16"):
        growtas.load_autoformer(state, image_size=64)
    state["pos_embed"] = state["pos_embed"][:, :9]
    with pytest.raises(ValueError, match="8 patches, which is no square: give image_size"):
        growtas.load_autoformer(state)
    assert growtas.load_autoformer(state, image_size=(16, 32)).grid == (2, 4)


def test_a_space_is_used_if_it_has_the_tensors_sizes(state):
    size = growtas.SupernetSize(embed_dim=128, num_heads=2, mlp_ratio=4.0, depth=4)
    space = growtas.SearchSpace((64, 96), (2, 3), (1, 2), (3.5, 4.0), supernet=size)
    assert growtas.load_autoformer(state, space).space is space
    other = growtas.SearchSpace((64, 128), (2, 3), (1, 2), (3.5, 4.0), name="other")
    message = r"'other' is of a supernet of embed_dim 128, .* depth 3, .*has .* depth 4"
    with pytest.raises(ValueError, match=message):
        growtas.load_autoformer(state, other)
    with pytest.raises(TypeError, match="space must be a SearchSpace or None"):
        growtas.load_autoformer(state, "tiny")


@pytest.mark.parametrize(("width", "hidden"), [(19, 106), (22, 15), (192, 577)])
def test_hidden_widths_survive_as_ratios(width, hidden):
    """22 x (15 / 22) is 14.999... in floating point."""
    size = growtas.SupernetSize(width, 3, hidden_ratio(width, hidden), 1)
    options = {"num_classes": 2, "in_chans": 1, "patch_size": 4, "max_relative_position": 1}
    options |= {"absolute_position": True, "relative_position": True}
    layout = Layout(size, 64, 5, options)
    state = {key: torch.zeros(shape) for key, shape in layout.shapes().items()}
    assert state["blocks.0.fc1.weight"].shape == (hidden, width)
    assert Layout.infer(state, "it") == layout
    assert growtas.load_autoformer(state).space.supernet.hidden_dim == hidden


def test_dtype_is_kept(state):
    half = {key: value.bfloat16() for key, value in state.items()}
    model = growtas.load_autoformer(half)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    half["norm.weight"] = half["norm.weight"].float()
    model = growtas.load_autoformer(half)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


# What is refused


def test_one_error_lists_every_wrong_tensor(state):
    state["blocks.2.fc1.weight"] = torch.zeros(500, 128)
    state["head.bias"] = torch.zeros(11)
    state["norm.bias"] = torch.zeros(128, dtype=torch.int64)
    state["blocks.0.attn.qk_scaling.weight"] = torch.zeros(3)
    state["blocks.7.fc1.bias"] = torch.zeros(512)
    del state["cls_token"], state["blocks.3.attn.rel_pos_embed_k.embeddings_table_h"]
    with pytest.raises(ValueError, match="the state_dict is not of AutoFormer's") as caught:
        growtas.load_autoformer(state)
    lines = str(caught.value).splitlines()[1:]
    for line in (
        "blocks.2.fc1.weight is [500, 128], expected [512, 128]",
        "head.bias is [11], expected [10]",
        "norm.bias is torch.int64, expected floating point numbers",
        "blocks.0.attn.qk_scaling.weight [3] is unexpected",
        "blocks.7.fc1.bias [512] is unexpected",
        "cls_token is missing, expected [1, 1, 128]",
        "blocks.3.attn.rel_pos_embed_k.embeddings_table_h is missing, expected [30, 64]",
    ):
        assert f"  {line}" in lines


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "it has nothing"),
        ({"model": {}}, "it has nothing"),
        ({"model": 3, "epoch": 1}, "no tensor at model, epoch"),
        ({0: torch.zeros(2)}, "no tensor at 0"),
        ([1, 2], "holds a list, expected a state_dict"),
        (
            {"patch_embed.proj.weight": torch.zeros(8, 3, 4, 4), "head.weight": torch.zeros(2, 8)},
            "missing or of another rank: patch_embed_super.proj.weight, .*its keys: patch_embed.pr",
        ),
    ],
)
def test_other_content(tmp_path, content, message):
    path = tmp_path / "other.pth"
    torch.save(content, path)
    with pytest.raises(ValueError, match=message) as caught:
        growtas.load_autoformer(path)
    assert str(path) in str(caught.value)


def test_files_that_are_no_checkpoints(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no checkpoint at '.*none.pth'"):
        growtas.load_autoformer(tmp_path / "none.pth")
    for content in (b"", b"junk, not a checkpoint", b"PK\x03\x04 cut off"):
        (tmp_path / "junk.pth").write_bytes(content)
        with pytest.raises(ValueError, match=r"cannot load '.*junk.pth'.*not a PyTorch checkpoint"):
            growtas.load_autoformer(tmp_path / "junk.pth")


class Payload:
    """Unpickling it creates a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (pathlib.Path.touch, (self.path,))


@pytest.mark.parametrize("extra", ["code", "a class"])
def test_code_in_a_file_is_refused_and_not_run(state, tmp_path, extra):
    proof = tmp_path / "proof"
    value = Payload(proof) if extra == "code" else Fraction(1, 3)
    # inside what is allowed, too
    torch.save({"model": state, "args": argparse.Namespace(value=value)}, tmp_path / "bad.pth")
    with pytest.raises(ValueError, match=r"it holds a \S+; allowed: tensors, plain values and"):
        growtas.load_autoformer(tmp_path / "bad.pth")
    assert not proof.exists()


# Saving


@pytest.mark.parametrize("qkv_bias", ["autoformer", "blocks"])
def test_saved_files_are_the_originals(state, tmp_path, qkv_bias):
    model = growtas.load_autoformer(state, qkv_bias=qkv_bias)
    path = tmp_path / "deep" / "again.pth"
    growtas.save_autoformer(model, path)
    assert [entry.name for entry in path.parent.iterdir()] == ["again.pth"]
    content = torch.load(path, weights_only=True)
    assert list(content) == ["model"]
    assert same(content["model"], state)  # names, order and bits
    assert all(value.is_contiguous() for value in content["model"].values())
    again = growtas.load_autoformer(path, qkv_bias=qkv_bias)
    assert again.config == model.config
    assert torch.equal(logits(again), logits(model))


def test_a_model_trained_here_is_saved_in_autoformers_form(tmp_path):
    space = growtas.SearchSpace((64, 128), (2, 4), (1, 2), (3.0, 4.0))
    model = growtas.Supernet(space, 32, 8, 10, absolute_position=False, max_relative_position=5)
    growtas.save_autoformer(model, tmp_path / "ours.pth")
    again = growtas.load_autoformer(tmp_path / "ours.pth", space, qkv_bias="blocks", image_size=32)
    assert all(
        torch.equal(left, right)
        for left, right in zip(again.parameters(), model.parameters(), strict=True)
    )
    assert again.config == model.config


def test_models_without_an_autoformer_form_are_refused(tmp_path):
    space = growtas.SearchSpace((48,), (2,), (3,), (4.0,), head_dim=16)
    model = growtas.Supernet(space, (16, 32), 8, 10, class_token=False, layer_norm_eps=1e-6)
    with pytest.raises(ValueError, match="the model has no AutoFormer form") as caught:
        growtas.save_autoformer(model, tmp_path / "no.pth")
    for reason in (
        "no class token", "head dim is 16, AutoFormer's 64", "layer_norm_eps is 1e-06",
        "on a 2 x 4 grid",
    ):  # fmt: skip
        assert reason in str(caught.value)
    assert list(tmp_path.iterdir()) == []
    wide = growtas.Supernet(growtas.SearchSpace((192,), (1,), (2,), (1.0,)), 32, 8, 10)
    with pytest.raises(ValueError, match="2 heads of 64 are not its embedding dim 192"):
        growtas.save_autoformer(wide, tmp_path / "no.pth")
