"""Predictions for image files are what evaluation would say of them."""

from __future__ import annotations

import pytest
import torch

import growtas
from growtas import export
from growtas.base.image_transform import ImageTransform
from growtas.training import AugmentConfig, DataConfig, build_data

pytest.importorskip("timm")
numpy = pytest.importorskip("numpy")
Image = pytest.importorskip("PIL.Image")

CLASSES = ("cat", "dog", "owl")
SPACE = growtas.SearchSpace((16,), (1,), (2,), (2.0,), head_dim=8)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A data set of image folders whose images differ in size and colour mode."""
    root = tmp_path_factory.mktemp("images")
    rng = numpy.random.default_rng(0)
    for split in ("train", "val"):
        for number, label in enumerate(CLASSES):
            (root / split / label).mkdir(parents=True)
            for index in range(6):
                shape = (10 + 3 * index, 30 - number, 3)
                image = Image.fromarray(rng.integers(0, 256, shape, dtype=numpy.uint8))
                image = image.convert(("RGB", "L", "RGBA")[index % 3])
                image.save(root / split / label / f"{index}.png")
    return root


@pytest.fixture(scope="module")
def data(images):
    config = DataConfig(
        "", str(images), image_size=16, crop_pct=0.75, interpolation="random", workers=0,
        search_fraction=0.3, batch_size=4,
    )  # fmt: skip
    return build_data(config, AugmentConfig.off())


@pytest.fixture(scope="module")
def model(data, tmp_path_factory):
    """Written and read back."""
    torch.manual_seed(0)
    alone = growtas.Supernet(SPACE, 16, 4, 3, init_std=0.3).eval().extract(SPACE.largest())
    alone.transform, alone.classes = data.transform, data.class_names
    folder = tmp_path_factory.mktemp("model")
    export.save(alone, folder)
    return export.load(folder)


def test_class_names_are_the_folders(model):
    assert model.classes == CLASSES


@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_the_probabilities_of_evaluation(data, model, images, batch_size):
    found = list(export.predict(model, [images / "val"], top=3, batch_size=batch_size))
    assert [p.path for p in found] == sorted((images / "val").rglob("*.png"))
    pixels, labels = next(iter(data.eval_loader("test", batch_size=100)))
    assert len(labels) == len(found) == 18
    with torch.no_grad():
        expected = model(pixels).softmax(-1)
    for prediction, label, row in zip(found, labels, expected, strict=True):
        assert prediction.path.parent.name == CLASSES[label]
        assert list(prediction.probabilities) == sorted(prediction.probabilities, reverse=True)
        by_name = dict(zip(prediction.classes, prediction.probabilities, strict=True))
        got = torch.tensor([by_name[name] for name in CLASSES])
        torch.testing.assert_close(got, row, rtol=1e-5, atol=1e-6)


def test_files_are_taken_in_the_order_given(model, images):
    paths = [images / "val" / "owl" / "3.png", images / "val" / "cat" / "0.png"]
    found = list(export.predict(model, [*paths, images / "train" / "dog"]))
    assert [p.path for p in found[:2]] == paths
    assert len(found) == 8
    assert all(len(p.classes) == 1 for p in found)


def test_indices_where_there_is_no_name(model, images):
    paths = [images / "val" / "cat" / "0.png"]
    names = next(export.predict(model, paths, top=9)).classes
    old = model.classes
    try:
        model.classes = ("cat",)
        assert set(next(export.predict(model, paths, top=9)).classes) == {"cat", "1", "2"}
        model.classes = None
        indices = next(export.predict(model, paths, top=9)).classes
    finally:
        model.classes = old
    assert [CLASSES[int(index)] for index in indices] == list(names)


def test_what_cannot_be_predicted_is_named(model, images, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no image or folder at '.*none.png'"):
        export.predict(model, [tmp_path / "none.png"])
    with pytest.raises(FileNotFoundError, match="no image in the folder"):
        export.predict(model, [tmp_path])
    with pytest.raises(ValueError, match="top must be at least 1, got 0"):
        export.predict(model, [images], top=0)
    whole = (images / "val" / "cat" / "5.png").read_bytes()
    for content in (b"", b"text", whole[: len(whole) // 2]):
        (tmp_path / "broken.png").write_bytes(content)
        with pytest.raises(ValueError, match=r"cannot read the image '.*broken.png'"):
            list(export.predict(model, [images / "val" / "cat", tmp_path / "broken.png"]))


def test_models_that_cannot_predict_say_why(images):
    alone = growtas.Supernet(SPACE, 16, 4, 3).eval().extract(SPACE.largest())
    with pytest.raises(ValueError, match="does not say how its images are prepared"):
        export.predict(alone, [images])
    alone.transform = ImageTransform((16, 16), 3, (0.5,) * 3, (0.5,) * 3, "bicubic", 1.0)
    alone.reset_classifier(0)
    with pytest.raises(ValueError, match="no classifier"):
        export.predict(alone, [images])


def test_transform_without_timm_says_what_to_install(model, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "timm.data", None)
    fresh = ImageTransform((16, 16), 3, (0.5,) * 3, (0.5,) * 3, "bicubic", 1.0)
    with pytest.raises(ImportError, match=r"pip install 'growtas\[train\]'"):
        fresh(Image.new("RGB", (20, 20)))
