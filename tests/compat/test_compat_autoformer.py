"""The drop-in class is AutoFormer's: values, keys, order, counts, and clear refusals."""

from __future__ import annotations

import copy
import json
import pickle
import random
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from compat.compat_setup import SIZES, batch, build, draw
from torch import nn

import growtas
from benchmarks.baselines.naive import NaiveSupernet
from growtas.compat.autoformer import Vision_TransformerSuper

GOLDEN = json.loads((Path(__file__).parents[1] / "golden/autoformer_micro_2026.json").read_text())
SMALL = {"layer_num": 2, "embed_dim": [64] * 2, "mlp_ratio": [2.0] * 2, "num_heads": [1, 2]}


def golden_tensor(key: str, seed: int) -> torch.Tensor:
    rng = np.random.default_rng([seed, zlib.crc32(key.encode())])
    values = rng.standard_normal(GOLDEN["keys"][key], dtype=np.float32) * np.float32(0.05)
    if "norm" in key and key.endswith("weight"):
        values += np.float32(1)
    return torch.from_numpy(values)


def test_parameters_have_the_originals_names_shapes_and_order():
    # the order decides what an optimizer's saved state belongs to
    model = build()
    shapes = {name: list(parameter.shape) for name, parameter in model.named_parameters()}
    assert list(shapes.items()) == list(GOLDEN["keys"].items())
    assert list(model.state_dict()) == list(GOLDEN["keys"])


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: str(case["subnet"]["embed_dim"]))
def test_logits_and_every_gradient_are_the_originals(case):
    model, seed = build(), GOLDEN["seed"]
    model.load_state_dict({key: golden_tensor(key, seed) for key in GOLDEN["keys"]})
    rng = np.random.default_rng([seed, 11])
    shape = (GOLDEN["batch"], 3, GOLDEN["img_size"], GOLDEN["img_size"])
    images = torch.from_numpy(rng.standard_normal(shape, dtype=np.float32))
    labels = torch.from_numpy(rng.integers(0, GOLDEN["num_classes"], GOLDEN["batch"]))
    sizes = case["subnet"]
    depth = len(sizes["num_heads"])
    config = {
        "layer_num": depth,
        "embed_dim": [sizes["embed_dim"]] * depth,
        "num_heads": sizes["num_heads"],
        "mlp_ratio": sizes["mlp_ratio"],
    }
    assert model.get_sampled_params_numel(config) == case["num_params"]
    logits = model(images)
    loss = F.cross_entropy(logits, labels)
    loss.backward()

    torch.testing.assert_close(logits, torch.tensor(case["logits"]), rtol=2e-4, atol=2e-5)
    assert loss.item() == pytest.approx(case["loss"], rel=1e-5)
    for name, parameter in model.named_parameters():
        grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        norm = case["grad_norm"][name]
        assert grad.norm().item() == pytest.approx(norm, rel=2e-4, abs=1e-6), name
        dot = (grad * golden_tensor(name, seed + 1)).sum().item()
        assert dot == pytest.approx(case["grad_dot"][name], abs=2e-4 * norm + 1e-6), name


def test_tiny_has_the_published_counts():
    model = Vision_TransformerSuper(
        embed_dim=256, depth=14, num_heads=4, mlp_ratio=4.0, qkv_bias=True, gp=True,
        relative_position=True, change_qkv=True,
    )  # fmt: skip
    assert sum(parameter.numel() for parameter in model.parameters()) == 11_669_224
    assert len(model.state_dict()) == 232
    retrained = {  # AutoFormer-T, as its yaml file gives it
        "layer_num": 13,
        "embed_dim": [192] * 13,
        "mlp_ratio": [3.5, 3.5, 3.0, 3.5, 3.0, 3.0, 4.0, 4.0, 3.5, 4.0, 3.5, 4.0, 3.5],
        "num_heads": [3] * 10 + [4, 3, 3],
    }
    assert model.get_sampled_params_numel(retrained) == 5_867_944
    assert model.get_complexity(196) == 1_344_034_362


def naive_features(model, config, images):
    """All tokens after the last norm, by the slow implementation with the same weights."""
    naive = NaiveSupernet(
        embed_dim=SIZES["embed_dim"], depth=SIZES["depth"], num_heads=SIZES["num_heads"],
        mlp_ratio=SIZES["mlp_ratio"], image_size=32, patch_size=8, num_classes=10,
    )  # fmt: skip
    missing = naive.load_state_dict(model.state_dict(), strict=False).missing_keys
    with torch.no_grad():
        for name, parameter in naive.named_parameters():
            if name in missing:
                parameter.zero_()
    tokens = []
    naive.norm.register_forward_hook(lambda module, inputs, output: tokens.append(output))
    naive.set_sample_config(growtas.Subnet.from_dict(config))
    naive(images)
    return tokens[0], missing


@pytest.mark.parametrize("option", ["gp", "abs_pos", "relative_position", "qkv_bias"])
def test_an_option_that_is_off_is_the_model_without_it(option):
    model = build(**{option: False})
    random.seed(3)
    config, (images, _) = draw(), batch()
    numel = model.get_sampled_params_numel(config)
    tokens, missing = naive_features(model, config, images)
    pooled = tokens[:, 0] if option == "gp" else tokens[:, 1:].mean(1)
    head = model.get_classifier()
    want = pooled @ head.weight[:, : pooled.shape[-1]].T + head.bias
    torch.testing.assert_close(model(images), want, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model.forward_features(images), pooled, rtol=1e-4, atol=1e-5)

    full = build().get_sampled_params_numel(config)
    per_block = {"relative_position": 4 * 30 * 64 * config["layer_num"]}
    per_block["qkv_bias"] = 3 * 64 * sum(config["num_heads"])
    assert full - numel == per_block.get(option, 0)  # the original ignores abs_pos here
    part = {"abs_pos": "pos_embed", "relative_position": "embeddings_table", "qkv_bias": "qkv.bias"}
    assert bool(missing) == (option in part)
    assert all(part[option] in name for name in missing)


def test_drop_path_acts_in_training_only():
    model, plain = build(drop_path_rate=0.5), build()
    images, _ = batch()
    model.set_sample_config(SMALL)
    plain.set_sample_config(SMALL)
    assert torch.equal(model.eval()(images), plain.eval()(images))
    model.train()
    torch.manual_seed(0)
    assert not torch.equal(model(images), plain(images))
    assert torch.equal(model.eval()(images), plain(images))


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("qk_scale", 0.1), ("drop_rate", 0.1), ("attn_drop_rate", 0.1), ("pre_norm", False),
        ("scale", True), ("change_qkv", False),
    ],
)  # fmt: skip
def test_options_that_nothing_published_uses_are_refused_by_name(option, value):
    with pytest.raises(NotImplementedError, match=rf"{option}={value} .*use {option}="):
        build(**{option: value})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"embed_dim": 100}, "embed_dim is 100; 2 heads of 64 need 128"),
        ({"img_size": 30}, "not a multiple of patch_size 8"),
        ({"num_classes": 0}, "num_classes must be at least 1"),
        ({"drop_path_rate": 1.0}, r"drop_path is 1.0"),
    ],
)
def test_bad_sizes_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        build(**changes)


def test_forward_needs_a_subnet():
    with pytest.raises(RuntimeError, match="set_sample_config"):
        build()(batch()[0])
    with pytest.raises(RuntimeError, match="set_sample_config"):
        build().get_complexity(16)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"embed_dim": [64, 96]}, "all blocks share one embed_dim"),
        ({"layer_num": 3}, "depth is 3, but num_heads and mlp_ratio list 2"),
        ({"num_heads": [1]}, "num_heads has 1 entries and mlp_ratio 2"),
        ({"num_heads": [1, 3]}, r"num_heads\[1\] = 3 is larger than the supernet's 2"),
        ({"embed_dim": [192] * 2}, "embed_dim = 192 is larger than the supernet's 128"),
        ({"mlp_ratio": [2.0, -1.0]}, "must be positive"),
    ],
)
def test_a_bad_config_is_refused_and_the_one_before_stays(change, message):
    model, (images, _) = build(), batch()
    model.set_sample_config(SMALL)
    before = model(images)
    with pytest.raises(ValueError, match=message):
        model.set_sample_config(SMALL | change)
    assert model.sample_num_heads == [1, 2]
    assert torch.equal(model(images), before)
    incomplete = {name: value for name, value in SMALL.items() if name != "layer_num"}
    with pytest.raises(ValueError, match="'layer_num' is missing"):
        model.set_sample_config(incomplete)


def test_load_state_dict_reports_keys_as_torch_does():
    model = build()
    state = model.state_dict()
    tables = state.pop("blocks.1.attn.rel_pos_embed_k.embeddings_table_v")
    state["blocks.1.attn.extra"] = tables
    with pytest.raises(RuntimeError) as error:
        model.load_state_dict(state)
    assert 'Missing key(s) in state_dict: "blocks.1.attn.rel_pos_embed_k.' in str(error.value)
    assert 'Unexpected key(s) in state_dict: "blocks.1.attn.extra"' in str(error.value)
    result = model.load_state_dict(state, strict=False)
    assert result.missing_keys == ["blocks.1.attn.rel_pos_embed_k.embeddings_table_v"]
    assert result.unexpected_keys == ["blocks.1.attn.extra"]
    with pytest.raises(RuntimeError, match=r"size mismatch for head\.weight"):
        model.load_state_dict(state | {"head.weight": torch.zeros(3, 128)}, strict=False)


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))]
)
def test_a_copy_after_a_training_step_is_whole_and_its_own(duplicate):
    # the original's cached slices make both fail
    model, (images, labels) = build(), batch()
    model.set_sample_config(SMALL)
    F.cross_entropy(model(images), labels).backward()
    twin = duplicate(model)
    want = model(images)
    assert torch.equal(twin(images), want)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    assert torch.equal(twin(images), want)
    assert not torch.equal(model(images), want)  # weights changed after the config was set count


def test_weights_follow_an_optimizer_step_without_a_new_config():
    model, (images, labels) = build(), batch()
    model.set_sample_config(SMALL)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for _ in range(5):
        loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    fresh = build(seed=7)
    fresh.load_state_dict(model.state_dict())
    fresh.set_sample_config(SMALL)
    assert torch.equal(fresh(images), model(images))


def test_a_new_classifier():
    model, (images, _) = build().double(), batch(torch.float64)
    model.reset_classifier(3)
    assert isinstance(model.get_classifier(), nn.Linear)
    numel = model.get_sampled_params_numel(SMALL)
    assert numel == build().get_sampled_params_numel(SMALL) - 7 * (64 + 1)
    assert model(images).shape == (4, 3)
    assert model(images).dtype == torch.float64
    with pytest.raises(ValueError, match="num_classes"):
        model.reset_classifier(0)
    with pytest.raises(ValueError, match="global_pool is 'avg'"):
        model.reset_classifier(3, "avg")


def test_hooks_run_or_are_refused():
    model, (images, _) = build(), batch()
    model.set_sample_config(SMALL)
    seen = []
    model.register_forward_hook(lambda module, inputs, output: seen.append(output))
    logits = model(images)
    assert seen == [logits]
    for module in (model.blocks[0], model.blocks[0].attn.qkv, model.norm, model.head):
        for register in (module.register_forward_hook, module.register_full_backward_hook):
            with pytest.raises(NotImplementedError, match="would never run; hook the model itself"):
                register(print)


def test_integer_images_are_refused():
    model, (images, _) = build(), batch()
    model.set_sample_config(SMALL)
    with pytest.raises(TypeError, match="images must be of floats"):
        model((255 * images).to(torch.uint8))
