"""A small supernet with images of its own, as what an analysis looks at."""

from __future__ import annotations

import pytest
import torch
from analysis.models import build_model

from growtas.analysis import Subject
from growtas.search import Evaluator


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(40, 1, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def labels() -> torch.Tensor:
    return torch.randint(5, (40,), generator=torch.Generator().manual_seed(2))


@pytest.fixture
def subject(images, labels) -> Subject:
    model = build_model()
    return Subject("first", model, Evaluator(model, images, labels))


@pytest.fixture
def other(images, labels) -> Subject:
    """Another supernet of the same space on the same images."""
    model = build_model(seed=7)
    return Subject("second", model, Evaluator(model, images, labels))


@pytest.fixture
def png_size():
    """Checks that a file is a whole PNG that shows something; returns its size in pixels."""
    image = pytest.importorskip("PIL.Image")

    def size(path) -> tuple[int, int]:
        with image.open(path) as picture:
            assert picture.format == "PNG"
            assert len(picture.convert("L").getcolors()) > 10
            return picture.size

    return size
