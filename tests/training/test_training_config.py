"""Settings refuse what cannot work, naming the field, the value and what is allowed."""

import pytest
import torch

from growtas.base import distributed
from growtas.base.config import build, to_plain
from growtas.training import AugmentConfig, DataConfig, OptimConfig, TrainConfig
from growtas.training.config import check_pieces


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        (DataConfig, {"dataset": "hfids/imagenet-1k"}, r"'hfids/imagenet-1k'.*front to back"),
        (DataConfig, {"batch_size": 0}, r"data\.batch_size is 0; allowed: .*at least 1"),
        (DataConfig, {"in_chans": 2}, r"data\.in_chans is 2; allowed: 1 \(grey\), 3 \(RGB\)"),
        (DataConfig, {"std": (0.2, 0.0)}, r"data\.std is 0\.0; allowed: .*above 0"),
        (DataConfig, {"search_fraction": 0.0}, r"data\.search_fraction is 0\.0"),
        (
            DataConfig,
            {"search_fraction": 0.8, "test_fraction": 0.2},
            r"data\.test_fraction is 0\.2",
        ),
        (AugmentConfig, {"reprob": 1.5}, r"augment\.reprob is 1\.5; allowed: .*at most 1"),
        (AugmentConfig, {"mixup_mode": "half"}, r"'half'; allowed: 'batch', 'pair', 'elem'"),
        (AugmentConfig, {"scale": (1.0, 0.5)}, r"augment\.scale is \(1\.0, 0\.5\).*ascending"),
        (AugmentConfig, {"smoothing": 1.0}, r"augment\.smoothing is 1\.0; allowed: below 1"),
        (OptimConfig, {"lr": 0.0}, r"optim\.lr is 0\.0; allowed: .*above 0"),
        (OptimConfig, {"betas": (0.9, 1.0)}, r"optim\.betas is \(0\.9, 1\.0\)"),
        (OptimConfig, {"inactive": "off"}, r"'off'; allowed: 'dense', 'masked', 'skip'"),
        (OptimConfig, {"clip_grad": float("nan")}, r"optim\.clip_grad is nan"),
        (TrainConfig, {"amp": "int8"}, r"train\.amp is 'int8'; allowed: 'auto', 'bf16'"),
        (TrainConfig, {"graph": "yes"}, r"train\.graph is 'yes'; allowed: 'auto', 'on', 'off'"),
        (TrainConfig, {"ema_decay": 1.0}, r"train\.ema_decay is 1\.0"),
        (TrainConfig, {"device": "tpu"}, r"train\.device is 'tpu'; allowed: 'auto', 'cpu'"),
        (TrainConfig, {"epochs": 0}, r"train\.epochs is 0"),
        (TrainConfig, {"seed": 2**32}, r"train\.seed is 4294967296; .*integer of 0 to 4294967295"),
        (DataConfig, {"num_classes": 1}, r"data\.num_classes is 1; allowed: .*at least 2"),
        (AugmentConfig, {"auto_augment": "randd-m9"}, r"'randd-m9'; allowed: null, 'rand'"),
    ],
)
def test_a_bad_value_is_named(section, values, message):
    with pytest.raises(ValueError, match=message):
        section(**values)


POLICIES = [
    "rand-m9-mstd0.5-inc1",
    "rand",
    "rand-m7-n3-p0.4-mmax12-tweights",
    "augmix-m5-w4-d2-a0.5-b1-mstd1",
    "original-mstd0.5",
    "originalr",
    "v0",
    "v0r-mstd1",
    "3a",
]


@pytest.mark.parametrize("policy", POLICIES)
def test_policies_of_timm_are_taken(policy):
    create_transform = pytest.importorskip("timm.data").create_transform
    create_transform(
        8, is_training=True, auto_augment=AugmentConfig(auto_augment=policy).auto_augment
    )


@pytest.mark.parametrize(
    "policy",
    ["", "randaugment", "rand-m", "rand-m9.5", "rand-x3", "rand-tbest", "v1", "v0-m9", "rand-inc2"],
)
def test_other_policies_are_refused(policy):
    with pytest.raises(ValueError, match=r"augment\.auto_augment is '.*'; allowed: .*inc1'$"):
        AugmentConfig(auto_augment=policy)


def test_more_pieces_than_images_are_refused():
    data = DataConfig("digits", batch_size=32)
    check_pieces(data, TrainConfig(accumulate=32))
    check_pieces(data, TrainConfig(accumulate=16), processes=2)
    with pytest.raises(
        ValueError, match=r"train\.accumulate is 33; allowed: at most 32, the images"
    ):
        check_pieces(data, TrainConfig(accumulate=33))
    with pytest.raises(ValueError, match=r"train\.accumulate is 17; allowed: at most 16"):
        check_pieces(data, TrainConfig(accumulate=17), processes=2)


def test_a_wrong_type_is_named():
    with pytest.raises(TypeError, match=r"train\.epochs is '3'; an integer is needed"):
        TrainConfig(epochs="3")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"optim\.lr is True; a number is needed"):
        OptimConfig(lr=True)


@pytest.mark.parametrize("section", [DataConfig, AugmentConfig, OptimConfig, TrainConfig])
def test_settings_survive_plain_values(section):
    config = section()
    assert build(section, to_plain(config)) == config


def test_values_of_the_data_set():
    digits = DataConfig("digits").resolved()
    assert (digits.image_size, digits.in_chans, digits.crop_pct) == (8, 1, 1.0)
    assert len(digits.mean) == len(digits.std) == 1
    folder = DataConfig("", root="images").resolved()
    assert (folder.image_size, folder.in_chans, folder.crop_pct) == (224, 3, 0.875)
    assert folder.mean == (0.485, 0.456, 0.406)
    with pytest.raises(ValueError, match=r"data\.root is ''.*folder"):
        DataConfig("").resolved()
    assert DataConfig("digits", image_size=16, mean=(0.1,)).resolved().mean == (0.1,)
    with pytest.raises(ValueError, match=r"data\.mean is \(0\.1,\); allowed: 3 numbers"):
        DataConfig("", root="images", mean=(0.1,)).resolved()


def test_learning_rate_scales_with_the_batch():
    assert OptimConfig(lr=5e-4, lr_base_batch=512).peak_lr(1024) == 1e-3
    assert OptimConfig(lr=5e-4, lr_base_batch=0).peak_lr(1024) == 5e-4


def test_threads_are_set_for_the_process():
    before = torch.get_num_threads()
    try:
        distributed.start("cpu", threads=1)
        assert torch.get_num_threads() == 1
        distributed.start("cpu")
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
    with pytest.raises(ValueError, match=r"train\.threads is 0"):
        TrainConfig(threads=0)


def test_testing_on_the_training_split_is_refused():
    with pytest.raises(ValueError, match=r"data\.test_split is 'train', the training split"):
        DataConfig("", root="images", train_split="train", test_split="train")
