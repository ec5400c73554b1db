"""Parameter and multiply-add counts against published values and the extracted model itself."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from growtas import Supernet
from growtas.cost import autoformer_complexity, macs, num_params
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


PRENAS = json.loads((Path(__file__).parent / "golden" / "prenas_candidates.json").read_text())


@pytest.mark.parametrize(
    ("size", "name"),
    [(size, name) for size in ("tiny", "small", "base") for name in PRENAS[size]],
)
def test_prenas_parameter_counts(size, name):
    """The 13 numbers in PreNAS's candidate files, in millions."""
    fields = PRENAS[size][name]
    subnet = Subnet(fields["embed_dim"], fields["num_heads"], fields["mlp_ratio"])
    count = num_params(SearchSpace.preset(f"autoformer-{size}"), subnet)
    assert count == round(fields["num_params"] * 1e6)


@pytest.mark.parametrize(
    ("name", "without", "padded"),
    [
        ("tiny", 1_283_236_352, 1.412e9),
        ("small", 4_773_931_776, 5.025e9),
        ("base", 11_045_397_248, 11.463e9),
    ],
)
def test_published_subnets_multiply_adds(name, without, padded):
    """By hand, with N = 197 tokens, h heads in all blocks together and 14 + 14 + 1 position codes:
    2 N^2 29 h for longer heads and 2 (N - 1) 29 64 h for the products with the tables."""
    space, subnet = SearchSpace.preset(f"autoformer-{name}"), RETRAIN[name]
    heads = sum(subnet.num_heads)
    assert macs(space, subnet, relative_position=False) == without
    plain = 196 * 768 * subnet.embed_dim + 1000 * subnet.embed_dim
    plain += sum(
        256 * h * 197 * subnet.embed_dim + 2 * 197**2 * 64 * h + 2 * 197 * subnet.embed_dim * f
        for h, f in zip(subnet.num_heads, subnet.hidden_dims, strict=True)
    )
    assert plain == without
    count = macs(space, subnet)
    assert count == without + 2 * 197**2 * 29 * heads + 2 * 196 * 29 * 64 * heads
    # the reference values pad heads of 93 to 96 and send the class token through the tables too
    assert count + 2 * 197**2 * 3 * heads + 2 * 29 * 64 * heads == pytest.approx(padded, abs=5e5)


@pytest.mark.parametrize(
    ("name", "subnet", "expected", "digits"),
    [
        ("tiny", RETRAIN["tiny"], 1_344_034_362, 0),
        ("small", RETRAIN["small"], 4_892_144_730, 0),
        ("base", RETRAIN["base"], 11_236_929_660, 0),
        ("tiny", corner("tiny", "smallest"), 1.2254e9, -5),
        ("tiny", corner("tiny", "largest"), 2.3404e9, -5),
        ("small", corner("small", "smallest"), 2.8607e9, -5),
        ("small", corner("small", "largest"), 7.3425e9, -5),
        ("base", corner("base", "smallest"), 8.3991e9, -5),
        ("base", corner("base", "largest"), 15.9717e9, -5),
    ],
)
def test_autoformers_own_complexity(name, subnet, expected, digits):
    """What its get_complexity(196) returned; from -5 on, the digits that were noted."""
    count = autoformer_complexity(SearchSpace.preset(f"autoformer-{name}"), subnet)
    assert round(count, digits) == expected


def test_autoformers_own_complexity_of_other_models():
    """By hand: its rule for n patches, T = n + 2 tokens in blocks and n + 1 at the classifier."""
    space = SearchSpace((64,), (1,), (1,), (2.0,))
    subnet = space.largest()
    for length in (4, 9):  # odd and even T: halves occur
        tokens = length + 2
        block = 2 * tokens * 64 + 192 * tokens * 64 + 2 * tokens**2 * 64 + 64 * tokens * 64
        block += 2 * tokens * 64 * 128
        rest = 64 + length * 27 * 64 + (length + 1) * 5 * 64
        options = {"image_size": 6, "patch_size": 3, "num_classes": 5, "sequence_length": length}
        bare = {"relative_position": False, "absolute_position": False}
        assert autoformer_complexity(space, subnet, **options, **bare) == rest + block
        position = 2 * 3 * tokens**2 + tokens**2 / 2 + tokens * 64 / 2
        assert autoformer_complexity(space, subnet, **options, max_relative_position=3) == (
            rest + block + position + 5 * 64 / 2
        )
    assert autoformer_complexity(space, subnet, image_size=6, patch_size=3, num_classes=5) == (
        autoformer_complexity(space, subnet, **options | {"sequence_length": 4})
    )
    with pytest.raises(ValueError, match="sequence_length must be at least 1, got 0"):
        autoformer_complexity(space, subnet, **options | {"sequence_length": 0})


def counted_macs(model: nn.Module, image: torch.Tensor) -> float:
    """Multiply-adds of a forward pass as PyTorch counts them; of attention it counts plain
    products on every version, but the CPU's flash attention on some only."""
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(image)
    return counter.get_total_flops() / 2


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
        assert macs(space, subnet, **options) == counted_macs(alone, image)
        assert model.macs(subnet) == macs(space, subnet, **options)


def test_counts_at_imagenet_size_equal_the_extracted_model():
    space = SearchSpace.preset("autoformer-tiny")
    subnet = space.sample(random.Random(5))
    with torch.device("meta"):  # shapes only, nothing is computed
        alone = Supernet(space).extract(subnet).eval()
        image = torch.zeros(1, 3, 224, 224)
    assert sum(parameter.numel() for parameter in alone.parameters()) == num_params(space, subnet)
    assert counted_macs(alone, image) == macs(space, subnet)


def test_a_difference_of_spaces_has_costs():
    space = SearchSpace.preset("digits")
    plus = space - space.restrict(embed_dim=32)
    assert num_params(plus, plus.largest()) == num_params(space, space.largest())
    assert macs(plus, plus.largest()) == macs(space, space.largest())


@pytest.mark.parametrize("count", [num_params, macs, autoformer_complexity])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 30}, "image_size 30 x 30 is not a multiple of patch_size 16"),
        (
            {"image_size": (32, 32, 3)},
            r"image_size is \[32, 32, 3\]; a side is needed, or height and width",
        ),
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


@pytest.mark.parametrize("count", [num_params, macs, autoformer_complexity])
def test_too_large_subnets_are_refused(count):
    tiny, small = SearchSpace.preset("autoformer-tiny"), SearchSpace.preset("autoformer-small")
    with pytest.raises(ValueError, match="embed_dim = 320 is larger than the supernet's 256"):
        count(tiny, small.smallest())
