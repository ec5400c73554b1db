"""The stand-alone model has timm's methods, with timm's meaning."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from growtas import VisionTransformer, export

timm = pytest.importorskip("timm")

TIMM_POOL = {"mean": "avg", "cls": "token"}


def ours(**options) -> VisionTransformer:
    torch.manual_seed(0)
    arguments = {
        "embed_dim": 24, "num_heads": [3, 3], "hidden_dims": [48, 48], "head_dim": 8,
        "image_size": [16, 16], "patch_size": 4, "num_classes": 7,
    }  # fmt: skip
    model = VisionTransformer(**{**arguments, **options})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


@pytest.fixture
def images():
    return torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("pool", TIMM_POOL)
def test_methods_give_what_timms_give(images, pool):
    """For a model that timm has too: equal heads, no relative position."""
    model = ours(pool=pool, relative_position=False)
    theirs = timm.models.VisionTransformer(
        img_size=16, patch_size=4, num_classes=7, embed_dim=24, depth=2, num_heads=3, mlp_ratio=2,
        fc_norm=False, global_pool=TIMM_POOL[pool], norm_layer=partial(nn.LayerNorm, eps=1e-5),
    ).eval()  # fmt: skip
    theirs.load_state_dict(model.state_dict())
    features = model.forward_features(images)
    for got, want in (
        (features, theirs.forward_features(images)),
        (model.forward_head(features), theirs.forward_head(features)),
        (
            model.forward_head(features, pre_logits=True),
            theirs.forward_head(features, pre_logits=True),
        ),
        (model(images), theirs(images)),
    ):
        assert got.shape == want.shape
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    assert torch.equal(model.forward_head(features), model(images))
    for name in ("num_classes", "num_features", "embed_dim"):
        assert getattr(model, name) == getattr(theirs, name)
    names = dict(model.named_parameters())
    assert model.no_weight_decay() == {name for name in theirs.no_weight_decay() if name in names}


def test_timms_optimizer_groups_read_no_weight_decay():
    from timm.optim import param_groups_weight_decay

    model = ours()
    groups = param_groups_weight_decay(model, 0.05, no_weight_decay_list=model.no_weight_decay())
    kept = {id(p) for group in groups if group["weight_decay"] == 0 for p in group["params"]}
    assert {id(model.pos_embed), id(model.cls_token), id(model.norm.weight)} <= kept
    assert id(model.blocks[0].attn.qkv.weight) not in kept


def test_another_classifier(images, tmp_path):
    model = ours()
    model.classes = tuple("abcdefg")
    features = model.forward_features(images)
    model.reset_classifier(4)
    assert model.classes is None  # they were the old one's
    assert model(images).shape == (3, 4)
    assert torch.equal(model.forward_features(images), features)
    export.save(model, tmp_path)
    again = export.load(tmp_path)
    assert again.num_classes == 4
    assert torch.equal(again(images), model(images))


def test_no_classifier_gives_features(images, tmp_path):
    model = ours().double()
    model.reset_classifier(0)
    features = model.forward_features(images.double())
    want = model.forward_head(features, pre_logits=True)
    assert torch.equal(model(images.double()), want)
    assert want.shape == (3, model.num_features)
    export.save(model.float(), tmp_path)
    assert export.load(tmp_path)(images).shape == (3, 24)
    model.double().reset_classifier(2)
    assert model(images.double()).dtype == torch.float64


def test_another_pooling(images):
    model = ours(pool="mean")
    model.reset_classifier(7, global_pool="token")
    x = model.forward_features(images)
    assert torch.equal(model(images), model.head(x[:, 0]))
    assert model.config["pool"] == "cls"


def test_impossible_classifiers_are_refused():
    model = ours(class_token=False)
    with pytest.raises(ValueError, match="num_classes must be at least 1, got -1"):
        model.reset_classifier(-1)
    with pytest.raises(ValueError, match="global_pool is 'max', allowed: avg, token"):
        model.reset_classifier(3, "max")
    with pytest.raises(ValueError, match="needs class_token"):
        model.reset_classifier(3, "token")
    assert model.num_classes == 7
