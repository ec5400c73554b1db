"""Parameter and multiply-add counts against published values and the extracted model itself."""

from __future__ import annotations

import random

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from growtas import Supernet
from growtas.cost import macs, num_params
from growtas.space import SearchSpace, Subnet

RETRAIN = {
    "tiny": Subnet(
        192,
        (3,) * 10 + (4, 3, 3),
        (3.5, 3.5, 3.0, 3.5, 3.0, 3.0, 4.0, 4.0, 3.5, 4.0, 3.5, 4.0, 3.5),
    ),
    "small": Subnet(
        384,
        (6, 6, 5, 7, 5, 5, 5, 6, 6, 7, 7, 6, 7),
        (3.0, 3.5, 3.0, 3.5, 4, 4, 4, 4, 4, 4, 4, 3.5, 4),
    ),
    "base": Subnet(
        576,
        (9, 9, 9, 9, 9, 10, 9, 9, 10, 9, 10, 9, 9, 10),
        (3.5, 3.5, 4, 3.5, 4, 3.5, 3.5, 3, 4, 4, 3, 4, 3, 3.5),
    ),
}


@pytest.fixture(autouse=True)
def one_thread():
    """Tiny models on shared cores run faster on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def corner(name: str, which: str) -> Subnet:
    return getattr(SearchSpace.preset(f"autoformer-{name}"), which)()


@pytest.mark.parametrize(
    ("name", "subnet", "expected"),
    [
        ("tiny", RETRAIN["tiny"], 5_867_944),
        ("small", RETRAIN["small"], 22_891_432),
        ("base", RETRAIN["base"], 53_691_688),
        ("tiny", corner("tiny", "smallest"), 5_366_056),
        ("tiny", corner("tiny", "largest"), 10_517_272),
        ("small", corner("small", "smallest"), 13_057_320),
        ("small", corner("small", "largest"), 34_790_440),
        ("base", corner("base", "smallest"), 39_792_856),
        ("base", corner("base", "largest"), 76_882_264),
    ],
)
def test_autoformer_parameter_counts(name, subnet, expected):
    """The counts of AutoFormer's own models, published subnets and corners of the spaces."""
    assert num_params(SearchSpace.preset(f"autoformer-{name}"), subnet) == expected


@pytest.mark.parametrize(
    ("name", "without", "with_relative"),
    [("tiny", 1.283e9, 1.412e9), ("small", 4.774e9, 5.025e9), ("base", 11.045e9, 11.463e9)],
)
def test_published_subnets_multiply_adds(name, without, with_relative):
    space = SearchSpace.preset(f"autoformer-{name}")
    assert macs(space, RETRAIN[name], relative_position=False) == pytest.approx(without, rel=1e-3)
    # the reference value pads the attention's head dim from 93 to 96
    assert macs(space, RETRAIN[name]) == pytest.approx(with_relative, rel=1e-2)


VARIANTS = {
    "autoformer": {},
    "rectangle": {"image_size": (16, 32)},
    "no class token": {"class_token": False},
    "no relative position": {"relative_position": False},
    "no absolute position": {"absolute_position": False},
    "bare": {"class_token": False, "absolute_position": False, "relative_position": False},
    "short reach": {"max_relative_position": 1},
    "grey": {"in_chans": 1, "num_classes": 3},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_counts_equal_the_extracted_model(variant):
    options = {"image_size": 24, "patch_size": 4, "num_classes": 7, "in_chans": 3}
    options |= VARIANTS[variant]
    space = SearchSpace.preset("digits")
    model = Supernet(space, **options)
    sides = options["image_size"]
    height, width = (sides, sides) if isinstance(sides, int) else sides
    image = torch.zeros(1, options["in_chans"], height, width)
    for subnet in (space.smallest(), space.sample(random.Random(0))):
        alone = model.extract(subnet).eval()
        counted = sum(parameter.numel() for parameter in alone.parameters())
        assert num_params(space, subnet, **options) == counted == model.num_params(subnet)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            alone(image)
        assert 2 * macs(space, subnet, **options) == counter.get_total_flops()
        assert model.macs(subnet) == macs(space, subnet, **options)


def test_counts_at_imagenet_size_equal_the_extracted_model():
    space = SearchSpace.preset("autoformer-tiny")
    subnet = space.sample(random.Random(5))
    with torch.device("meta"):  # shapes only, nothing is computed
        alone = Supernet(space).extract(subnet).eval()
        image = torch.zeros(1, 3, 224, 224)
    assert sum(parameter.numel() for parameter in alone.parameters()) == num_params(space, subnet)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        alone(image)
    assert counter.get_total_flops() == 2 * macs(space, subnet)


def test_a_difference_of_spaces_has_costs():
    space = SearchSpace.preset("digits")
    plus = space - space.restrict(embed_dim=32)
    assert num_params(plus, plus.largest()) == num_params(space, space.largest())
    assert macs(plus, plus.largest()) == macs(space, space.largest())


@pytest.mark.parametrize("count", [num_params, macs])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 30}, "image_size 30 is not a multiple of patch_size 16"),
        ({"image_size": (32, 32, 3)}, "one side or .height, width."),
        ({"image_size": 0}, "image_size must be at least 1, got 0"),
        ({"patch_size": 0}, "patch_size must be at least 1, got 0"),
        ({"num_classes": 0}, "num_classes must be at least 1, got 0"),
        ({"in_chans": -1}, "in_chans must be at least 1, got -1"),
    ],
)
def test_impossible_models_are_refused(count, options, message):
    space = SearchSpace.preset("autoformer-tiny")
    with pytest.raises(ValueError, match=message):
        count(space, space.smallest(), **options)


@pytest.mark.parametrize("count", [num_params, macs])
def test_too_large_subnets_are_refused(count):
    tiny, small = SearchSpace.preset("autoformer-tiny"), SearchSpace.preset("autoformer-small")
    with pytest.raises(ValueError, match="embed_dim = 320 is larger than the supernet's 256"):
        count(tiny, small.smallest())
