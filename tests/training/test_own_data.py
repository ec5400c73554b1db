"""Data sets given in Python: what is taken, what is refused, and the example of the documents."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from growtas.base.checks import Doubt
from growtas.search import Evaluator
from growtas.training import AugmentConfig, DataConfig, build_data
from growtas.training.samples import SampleError, UnreadableImage, split_indices

PAGE = Path(__file__).parents[2] / "docs" / "data.md"


class Pictures(torch.utils.data.Dataset):
    """RGB images of two colours, which are their classes."""

    classes = ("dark", "light")

    def __len__(self):
        return 60

    def __getitem__(self, index):
        return Image.new("RGB", (12, 12), (100 + 100 * (index % 2),) * 3), index % 2


class Tensors(torch.utils.data.Dataset):
    """Images that are ready for a model."""

    def __init__(self, count=60, image=None, label=1):
        self.count = count
        self.image = torch.rand(1, 8, 8) if image is None else image
        self.label = label

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return self.image, self.label


def own(train, test=None, **settings):
    config = DataConfig("own", **{"batch_size": 8, "workers": 0, **settings})
    return build_data(config, AugmentConfig.off(), train=train, test=test)


def test_pictures_are_split_by_index_and_transformed():
    data = own(Pictures(), image_size=8, search_fraction=0.2)
    splits = split_indices(60, 0.2, 0.2)
    for name in ("train", "search", "test"):
        assert getattr(data, name).indices == splits[name]
    assert (data.num_classes, data.in_chans) == (2, 3)
    images, labels = next(iter(data.train_loader()))
    assert images.shape == (8, 3, 8, 8)
    assert torch.equal(images[:, 0, 0, 0] > 0.5, labels.bool())


def test_a_test_set_is_kept_apart():
    data = own(Pictures(), torch.utils.data.Subset(Pictures(), range(10)), image_size=8)
    assert len(data.train) + len(data.search) == 60
    assert len(data.test) == 10


def test_tensors_and_pictures_are_not_mixed():
    """Tensors would be scaled like pictures, or pictures normalised unlike the tensors."""
    tensors = Tensors(count=10, image=torch.rand(3, 12, 12))
    with pytest.raises(ValueError, match="images of train are PIL images, those of test tensors"):
        own(Pictures(), tensors)
    with pytest.raises(ValueError, match="images of train are tensors, those of test PIL images"):
        own(tensors, Pictures(), num_classes=2)
    message = r"image of sample \d+ is a Tensor; allowed: a PIL image"
    mixed = torch.utils.data.ConcatDataset([Pictures(), tensors])
    with pytest.raises(SampleError, match=message):
        list(own(mixed, num_classes=2, image_size=8).train_loader())
    mixed = torch.utils.data.ConcatDataset([tensors, Pictures()])
    with pytest.raises(SampleError, match=r"image of sample \d+ is a Image; allowed: a tensor"):
        list(own(mixed, num_classes=2).train_loader())


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_tensors_of_other_floating_dtypes_become_float32(dtype):
    data = own(Tensors(image=torch.rand(1, 8, 8).to(dtype)), num_classes=2)
    images, _ = next(iter(data.train_loader()))
    assert images.dtype == torch.float32
    assert torch.equal(images[0], data.train.dataset.image.float())


class Damaged(Pictures):
    """Opens its last image, which cannot be decoded; `samples` are no names of files."""

    samples = ((torch.zeros(1), 0),) * 60

    def __getitem__(self, index):
        image, label = super().__getitem__(index)
        if index == 59:

            def load():
                raise ValueError("Decompressed data too large")

            image.load = load
        return image, label


def test_an_image_that_cannot_be_decoded_is_named():
    data = own(Damaged(), image_size=8)
    split = next(name for name, found in split_indices(60, 0.08, 0.2).items() if 59 in found)
    with pytest.raises(UnreadableImage, match=r"^cannot read sample 59: Decompressed data too"):
        list(data.eval_loader(split))


def test_tensors_are_taken_as_they_are():
    data = own(Tensors(), num_classes=2)
    assert (data.image_size, data.in_chans) == (8, 1)
    images, labels = next(iter(data.train_loader()))
    assert torch.equal(images[3], data.train.dataset.image)
    assert labels.tolist() == [1] * 8
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 2))
    config = data.config
    evaluator = Evaluator.from_loader(
        model, data.eval_loader("search"), mean=config.mean, std=config.std
    )
    assert evaluator.count == len(data.search)


def test_augmentation_that_does_nothing_to_tensors_is_warned_of():
    config = DataConfig("own", num_classes=2, batch_size=8, workers=0)
    with pytest.warns(Doubt, match="augment: hflip, reprob do nothing, as the data set gives tens"):
        build_data(config, replace(AugmentConfig.off(), hflip=0.5, reprob=0.1), train=Tensors())


class Endless(torch.utils.data.IterableDataset):
    def __iter__(self):
        yield from Pictures()


class WithoutLength(torch.utils.data.Dataset):
    def __getitem__(self, index):
        return Pictures()[index]


@pytest.mark.parametrize(
    ("train", "message"),
    [
        (
            Endless(),
            "train is a Endless, which can only be read front to back; needed: a map-style",
        ),
        (WithoutLength(), "train is a WithoutLength without a length; needed: a map-style"),
        (torch.utils.data.DataLoader(Pictures()), "train is a DataLoader; needed: a map-style"),
    ],
)
def test_what_has_no_index_or_no_length_is_refused(train, message):
    with pytest.raises(TypeError, match=message):
        own(train, image_size=8)


def test_a_data_set_needs_its_name_in_the_settings():
    with pytest.raises(ValueError, match="dataset is 'digits', and train is given"):
        build_data(DataConfig("digits"), train=Pictures())
    with pytest.raises(ValueError, match="dataset is 'own', and no train is given"):
        build_data(DataConfig("own"))
    with pytest.raises(ValueError, match="does not name its classes"):
        own(Tensors())
    with pytest.raises(ValueError, match="has no samples"):
        own(Tensors(count=0), num_classes=2)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": 2}, r"label of sample \d+ is 2; allowed: 0 to 1, as there are 2 classes"),
        ({"label": -1}, r"label of sample \d+ is -1; allowed: 0 to 1"),
        ({"label": "cat"}, r"label of sample \d+ is 'cat'; allowed: 0 to 1"),
        ({"image": torch.rand(1, 8, 6)}, r"is a tensor \[1, 8, 6\].*allowed: \[1, 6, 6\], float"),
        ({"image": torch.ones(1, 8, 8, dtype=torch.uint8)}, r"of torch\.uint8; allowed: .*float"),
        ({"image": [[1]]}, r"image of sample \d+ is a list; allowed: a PIL image, or else every"),
    ],
)
def test_samples_that_are_not_what_was_said_are_named(change, message, workers):
    data = own(Tensors(**change), num_classes=2, workers=workers, in_chans=1)
    with pytest.raises(SampleError, match=message):
        list(data.train_loader())


def test_the_example_of_the_documents_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (text,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    names: dict = {}
    exec(compile(text, str(PAGE), "exec"), names)
    assert names["result"].limits[0].score.count == len(names["data"].search)
    assert (tmp_path / "runs" / "own" / "search.json").is_file()
