"""Splits that can be used but say little: warned of, with numbers, before the training begins."""

from __future__ import annotations

import warnings

import pytest
import torch
from PIL import Image
from training.training_setup import RATE, SPACE, digits, supernet, train_config

from growtas.base.checks import Doubt, few_images
from growtas.schedule import Uniform
from growtas.search import Evaluator
from growtas.supernet import Supernet
from growtas.training import AugmentConfig, DataConfig, Trainer, build_data


def write(folder, **counts: int) -> None:
    for label, count in counts.items():
        (folder / label).mkdir(parents=True)
        for index in range(count):
            Image.new("L", (8, 8), index).save(folder / label / f"{index}.png")


def data_of(root, **settings):
    values = {"dataset": "", "root": str(root), "image_size": 8, "workers": 0, "batch_size": 4}
    return build_data(DataConfig(**{**values, **settings}), AugmentConfig.off())


def test_what_an_accuracy_on_few_images_is_worth():
    """Against the exact spread of a binomial share: 1.96 standard deviations at one half."""
    for count in (1, 6, 25, 99):
        points = round(196 * (0.25 / count) ** 0.5)
        assert f"by up to {points} percentage points" in (few_images("it", count) or "")
    assert "has 1 image:" in (few_images("it", 1) or "")
    assert few_images("it", 100) is None


def test_a_training_warns_of_a_small_search_split(tmp_path):
    data = digits(search_fraction=0.004)
    count = len(data.search)
    assert 1 < count < 12
    message = rf"the search split has {count} images: .*search_fraction is 0\.004"
    with pytest.warns(Doubt, match=message):
        Trainer(supernet(), Uniform(), data, train_config(), tmp_path / "run", optim=RATE)
    assert not (tmp_path / "run").exists()


def test_a_training_on_enough_images_warns_of_nothing(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error", Doubt)
        Trainer(supernet(), Uniform(), digits(), train_config(), tmp_path / "run", optim=RATE)


def test_scores_of_few_images_are_warned_of():
    images, labels = torch.rand(6, 1, 8, 8), torch.zeros(6, dtype=torch.int64)
    with pytest.warns(Doubt, match="the evaluation has 6 images: .* 40 percentage points"):
        Evaluator(supernet(), images, labels)


def test_the_test_split_has_no_share_to_raise_if_it_is_given(tmp_path):
    write(tmp_path / "train", cat=30, dog=30)
    write(tmp_path / "val", cat=5, dog=5)
    with pytest.warns(Doubt, match=r"the test split has 10 images: .*\(95 %\)$"):
        data_of(tmp_path).warn_about("test")
    cut = data_of(tmp_path / "train", test_split=None)
    with pytest.warns(Doubt, match=r"the test split .*data\.test_fraction is 0\.2$"):
        cut.warn_about("test")


def test_empty_class_folders_are_warned_of(tmp_path):
    write(tmp_path / "train", cat=30, dog=30, bird=0, fish=0)
    (tmp_path / "train" / ".cache").mkdir()
    with pytest.warns(Doubt, match=r"^2 of the folders in .*train hold no image .*'bird', 'fish'$"):
        assert data_of(tmp_path).num_classes == 2


def test_classes_without_an_image_in_a_split_are_warned_of(tmp_path):
    write(tmp_path / "train", ant=40, bee=40, cow=1, dog=1)
    data = data_of(tmp_path, search_fraction=0.3)
    missing = {"cow", "dog"} - {"cow" if i == 80 else "dog" for i in data.search.indices if i >= 80}
    assert missing
    names = ", ".join(sorted(missing))
    with pytest.warns(
        Doubt, match=rf"^{len(missing)} of 4 classes have no .* search split: {names}$"
    ):
        data.warn_about("search")


def test_data_of_one_class_are_refused(tmp_path):
    write(tmp_path / "train", cat=30)
    with pytest.raises(ValueError, match="one class, 'cat'; at least 2 are needed"):
        data_of(tmp_path)


def test_fewer_classes_than_the_data_have_are_refused_before_the_training(tmp_path):
    write(tmp_path / "train", ant=30, bee=30, cow=30)
    data = data_of(tmp_path, num_classes=2, in_chans=1)
    model = Supernet(SPACE, image_size=8, patch_size=4, num_classes=2, in_chans=1)
    with pytest.raises(ValueError, match=r"data\.num_classes is 2, but the data set has 3 classes"):
        Trainer(model, Uniform(), data, train_config(), tmp_path / "run", optim=RATE)
    assert not (tmp_path / "run").exists()
