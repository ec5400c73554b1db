"""Subnets, search spaces and their algebra."""

from __future__ import annotations

import itertools
import json
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from growtas.space import AXES, SearchSpace, SpaceDifference, Subnet, SupernetSize

SUPERNET = SupernetSize(embed_dim=64, num_heads=4, mlp_ratio=4.0, depth=3)
TINY = SearchSpace.preset("autoformer-tiny")

AUTOFORMER_YAML = """
SUPERNET:
  MLP_RATIO: 4.0
  NUM_HEADS: 4
  EMBED_DIM: 256
  DEPTH: 14
SEARCH_SPACE:
  MLP_RATIO:
    - 3.5
    - 4
  NUM_HEADS:
    - 3
    - 4
  DEPTH:
    - 12
    - 13
    - 14
  EMBED_DIM:
    - 192
    - 216
    - 240
RETRAIN:
  MLP_RATIO: [3.5, 3.5, 3.0]
  NUM_HEADS: [3, 3, 4]
  DEPTH: 3
  EMBED_DIM: 192
"""


def choices(values: tuple[float, ...]) -> st.SearchStrategy[list[float]]:
    return st.lists(st.sampled_from(values), min_size=1, unique=True)


def spaces() -> st.SearchStrategy[SearchSpace]:
    """Sub-spaces of one supernet that are small enough to enumerate."""
    return st.builds(
        SearchSpace,
        embed_dim=choices((32, 48, 64)),
        depth=choices((1, 2, 3)),
        num_heads=choices((2, 4)),
        mlp_ratio=choices((2.0, 3.5)),
        supernet=st.just(SUPERNET),
    )


def members(space: SearchSpace) -> set[Subnet]:
    return {
        Subnet(embed, heads, ratios)
        for depth in space.depth
        for embed in space.embed_dim
        for heads in itertools.product(space.num_heads, repeat=depth)
        for ratios in itertools.product(space.mlp_ratio, repeat=depth)
    }


# Subnet


def test_subnet_normalises_numbers_and_is_hashable():
    subnet = Subnet(48, [3, 3], [4, 3.5])
    assert subnet == Subnet(48, (3, 3), (4.0, 3.5))
    assert hash(subnet) == hash(Subnet(48, (3, 3), (4.0, 3.5)))
    assert [type(r) for r in subnet.mlp_ratio] == [float, float]
    assert (subnet.depth, subnet.hidden_dims) == (2, (192, 168))
    with pytest.raises(AttributeError):
        subnet.embed_dim = 64


def test_hidden_width_is_truncated():
    assert Subnet(50, (1,), (2.51,)).hidden_dims == (125,)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((48, (3, 3), (4.0,)), ValueError, "num_heads has 2 entries and mlp_ratio 1"),
        ((48, (), ()), ValueError, "at least one block"),
        ((0, (3,), (4.0,)), ValueError, "embed_dim must be at least 1, got 0"),
        ((48, (3, -1), (4, 4)), ValueError, r"num_heads\[1\] must be at least 1, got -1"),
        ((48, (3,), (float("nan"),)), ValueError, r"mlp_ratio\[0\] must be positive and finite"),
        ((48, (3,), (0.01,)), ValueError, "leaves no hidden unit at embed_dim 48"),
        ((48.0, (3,), (4,)), TypeError, "embed_dim must be an integer, got 48.0"),
        ((48, (True,), (4,)), TypeError, r"num_heads\[0\] must be an integer, got True"),
        ((48, (3,), ("4",)), TypeError, r"mlp_ratio\[0\] must be a number, got '4'"),
        ((48, 3, (4,)), TypeError, "num_heads must be a list, got 3"),
    ],
)
def test_subnet_refuses(arguments, error, message):
    with pytest.raises(error, match=message):
        Subnet(*arguments)


def test_subnet_dict_survives_json():
    subnet = TINY.sample(random.Random(1))
    assert Subnet.from_dict(json.loads(json.dumps(subnet.to_dict()))) == subnet


def test_subnet_from_autoformer_forms():
    expected = Subnet(192, (3, 4), (3.5, 4.0))
    config = {"layer_num": 2, "embed_dim": [192] * 2, "num_heads": [3, 4], "mlp_ratio": [3.5, 4]}
    retrain = {"MLP_RATIO": [3.5, 4], "NUM_HEADS": [3, 4], "DEPTH": 2, "EMBED_DIM": 192}
    assert Subnet.from_dict(config) == expected
    assert Subnet.from_dict(retrain) == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depth": 3}, "depth is 3, but num_heads and mlp_ratio list 2"),
        ({"embed_dim": [192, 216]}, r"embed_dim is \[192, 216\]; all blocks share one"),
        ({"heads": 3}, "unknown subnet field 'heads'"),
        ({"mlp_ratios": 3}, "did you mean 'mlp_ratio'"),
    ],
)
def test_subnet_from_dict_refuses(changes, message):
    values = {"embed_dim": 192, "num_heads": [3, 4], "mlp_ratio": [3.5, 4]}
    with pytest.raises(ValueError, match=message):
        Subnet.from_dict({**values, **changes})


def test_subnet_text_is_compact():
    text = str(Subnet(192, (3, 3, 4), (3.5, 4.0, 4.0)))
    assert text == "embed=192 depth=3 heads=3x2,4 ratio=3.5,4x2"


# Presets


@pytest.mark.parametrize(
    ("name", "size", "supernet"),
    [
        ("autoformer-tiny", 1_056_964_608, SupernetSize(256, 4, 4.0, 14)),
        ("autoformer-small", 77_103_263_459_313, SupernetSize(448, 7, 4.0, 14)),
        ("autoformer-base", 6_245_364_340_204_353, SupernetSize(640, 10, 4.0, 16)),
    ],
)
def test_autoformer_presets(name, size, supernet):
    space = SearchSpace.preset(name)
    assert len(space) == space.size == size
    assert (space.supernet, space.head_dim, space.name) == (supernet, 64, name)


def test_base_space_has_the_published_heads():
    base = SearchSpace.preset("autoformer-base")
    assert base.num_heads == (8, 9, 10)
    assert base.supernet.hidden_dim == 2560
    assert base.restrict(num_heads=(9, 10)).size == 3 * (6**14 + 6**15 + 6**16)


def test_digits_space():
    digits = SearchSpace.preset("digits")
    assert digits.head_dim == 16
    assert digits.supernet == SupernetSize(64, 4, 4.0, 6)


def test_unknown_preset_suggests_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'autoformer-tiny'"):
        SearchSpace.preset("autoformer-tin")


# Construction


def test_choices_are_sorted_and_supernet_defaults_to_the_largest():
    space = SearchSpace((64, 32), [3, 1], (2,), (4, 2))
    assert (space.embed_dim, space.depth, space.mlp_ratio) == ((32, 64), (1, 3), (2.0, 4.0))
    assert space.supernet == SupernetSize(embed_dim=64, num_heads=2, mlp_ratio=4.0, depth=3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"embed_dim": ()}, "embed_dim has no choices"),
        ({"depth": (2, 2)}, "depth lists a value more than once: 2, 2"),
        ({"mlp_ratio": (4, 4.0)}, "mlp_ratio lists a value more than once"),
        ({"embed_dim": (128,)}, "embed_dim choice 128 is larger than the supernet's 64"),
        ({"head_dim": 0}, "head_dim must be at least 1, got 0"),
        ({"mlp_ratio": (0.01, 2.0)}, "mlp_ratio.* = 0.01 leaves no hidden unit at embed_dim 32"),
    ],
)
def test_space_refuses(changes, message):
    values = {"embed_dim": (32,), "depth": (2,), "num_heads": (2,), "mlp_ratio": (2.0,)}
    with pytest.raises(ValueError, match=message):
        SearchSpace(**{**values, "supernet": SUPERNET, **changes})


# Membership


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"mlp_ratio": (5.0,) + (4.0,) * 11},
            r"mlp_ratio\[0\] = 5.0 .* larger than the supernet's 4.0; allowed: 3.5, 4.0",
        ),
        ({"mlp_ratio": (4.0,) * 11 + (3.0,)}, r"mlp_ratio\[11\] = 3.0 .*allowed: 3.5, 4.0"),
        ({"num_heads": (3,) * 5 + (2,) + (3,) * 6}, r"num_heads\[5\] = 2 .*allowed: 3, 4"),
        ({"embed_dim": 512}, "embed_dim = 512 .* larger than the supernet's 256; allowed: 192"),
        ({"num_heads": (3,) * 11, "mlp_ratio": (4.0,) * 11}, "depth = 11 .*allowed: 12, 13, 14"),
    ],
)
def test_validate_names_the_value_and_what_is_allowed(changes, message):
    values = {"embed_dim": 192, "num_heads": (3,) * 12, "mlp_ratio": (4.0,) * 12}
    TINY.validate(Subnet(**values))
    wrong = Subnet(**{**values, **changes})
    assert wrong not in TINY
    with pytest.raises(ValueError, match=message):
        TINY.validate(wrong)


def test_supernet_holds_subnets_outside_the_space():
    published = Subnet(192, (3,) * 13, (3.0,) + (3.5,) * 12)  # 3.0 is not a choice of the space
    assert published not in TINY
    TINY.supernet.validate(published)
    with pytest.raises(ValueError, match="embed_dim = 264 is larger than the supernet's 256"):
        TINY.supernet.validate(Subnet(264, (3,), (4.0,)))
    with pytest.raises(ValueError, match=r"num_heads\[1\] = 5 is larger than the supernet's 4"):
        TINY.supernet.validate(Subnet(192, (3, 5), (4.0, 4.0)))


def test_only_subnets_are_members():
    assert "autoformer" not in TINY
    with pytest.raises(TypeError, match="expected a Subnet, got 3"):
        TINY.validate(3)


# Algebra, checked against enumeration


@given(spaces())
def test_size_membership_and_corners_agree_with_enumeration(space):
    everything = members(SearchSpace((32, 48, 64), (1, 2, 3), (2, 4), (2.0, 3.5)))
    inside = members(space)
    assert space.size == len(space) == len(inside)
    assert {subnet for subnet in everything if subnet in space} == inside
    weights = {s: s.embed_dim * (sum(s.num_heads) + sum(s.hidden_dims)) for s in inside}
    assert weights[space.smallest()] == min(weights.values())
    assert weights[space.largest()] == max(weights.values())


@settings(deadline=None)
@given(spaces(), spaces())
def test_order_is_set_inclusion(left, right):
    inside, other = members(left), members(right)
    assert (left <= right) == (inside <= other)
    assert (left < right) == (inside < other)
    assert (left == right) == (inside == other)


@settings(deadline=None)
@given(spaces(), spaces(), st.integers(0, 99))
def test_difference_is_set_difference(left, right, seed):
    inside = members(left) - members(right)
    difference = left - right
    assert difference.size == len(difference) == len(inside)
    assert {s for s in members(left) | members(right) if s in difference} == inside
    assert bool(difference) == bool(inside)
    assume(inside)
    assert difference.sample(random.Random(seed)) in inside

    def weights(s: Subnet) -> int:
        return s.embed_dim * (4 * left.head_dim * sum(s.num_heads) + 2 * sum(s.hidden_dims))

    assert difference.smallest() in inside
    assert difference.largest() in inside
    assert weights(difference.smallest()) == min(map(weights, inside))
    assert weights(difference.largest()) == max(map(weights, inside))


@given(spaces(), st.data())
def test_restrict_gives_a_nested_space_of_the_same_supernet(space, data):
    axis = data.draw(st.sampled_from(AXES))
    kept = data.draw(choices(getattr(space, axis)))
    small = space.restrict(**{axis: kept})
    assert small <= space
    assert getattr(small, axis) == tuple(sorted(kept))
    assert (small.supernet, small.head_dim) == (space.supernet, space.head_dim)
    assert members(small) == {
        s
        for s in members(space)
        if set(kept)
        >= ({getattr(s, axis)} if axis in ("embed_dim", "depth") else set(getattr(s, axis)))
    }


def test_restrict_takes_one_value_and_refuses_others():
    assert TINY.restrict(embed_dim=192).embed_dim == (192,)
    assert TINY.restrict() == TINY
    with pytest.raises(ValueError, match=r"embed_dim = 200 .*allowed: 192, 216, 240"):
        TINY.restrict(embed_dim=(192, 200))
    with pytest.raises(TypeError, match="embed_dim must be a list"):
        TINY.restrict(embed_dim="192")
    with pytest.raises(ValueError, match="depth has no choices"):
        TINY.restrict(depth=())


def test_spaces_of_other_supernets_are_not_comparable():
    alone = SearchSpace(TINY.embed_dim, TINY.depth, TINY.num_heads, TINY.mlp_ratio)  # 240, not 256
    narrow = SearchSpace(
        TINY.embed_dim, TINY.depth, TINY.num_heads, TINY.mlp_ratio, 32, TINY.supernet
    )
    for other in (alone, narrow):
        assert other != TINY
        assert not other <= TINY
        assert not other >= TINY
        with pytest.raises(ValueError, match="not of the same supernet"):
            TINY - other


def test_names_do_not_count():
    renamed = SearchSpace.from_dict({**TINY.to_dict(), "name": "other"})
    assert renamed == TINY
    assert renamed <= TINY
    assert hash(renamed) == hash(TINY)


def test_sizes_beyond_len_stay_exact():
    large = SearchSpace((64,), (30,), (1, 2, 3), (1.0, 2.0, 3.0))
    assert large.size == 9**30
    assert large  # truth must not go through len()
    with pytest.raises(OverflowError, match=str(9**30)):
        len(large)
    left = large - large.restrict(num_heads=1)
    assert left.size == 9**30 - 3**30
    with pytest.raises(OverflowError, match=r"use \.size"):
        len(left)


def test_empty_difference():
    nothing = TINY - TINY
    assert (nothing.size, bool(nothing)) == (0, False)
    for use in (lambda: nothing.sample(random.Random(0)), nothing.smallest, nothing.largest):
        with pytest.raises(ValueError, match="nothing is left"):
            use()


def test_difference_of_growtas_plus():
    small = TINY.restrict(embed_dim=192)
    plus = TINY - small
    assert isinstance(plus, SpaceDifference)
    assert (plus.supernet, plus.head_dim) == (TINY.supernet, 64)
    assert plus.largest() == TINY.largest()
    assert plus.smallest() == TINY.restrict(embed_dim=216).smallest()
    rng = random.Random(0)
    assert {plus.sample(rng).embed_dim for _ in range(50)} == {216, 240}
    with pytest.raises(ValueError, match="is in the removed part"):
        plus.validate(small.largest())
    with pytest.raises(ValueError, match="allowed: 12, 13, 14"):
        plus.validate(Subnet(240, (3,), (4.0,)))


# Sampling


def test_sampling_draws_in_autoformers_order():
    class Recorder(random.Random):
        def choice(self, seq):
            drawn.append(tuple(seq))
            return super().choice(seq)

    drawn: list[tuple[float, ...]] = []
    subnet = TINY.sample(Recorder(3))
    blocks = subnet.depth
    ratios, heads = [TINY.mlp_ratio] * blocks, [TINY.num_heads] * blocks
    assert drawn == [TINY.depth, *ratios, *heads, TINY.embed_dim]


def test_sampling_equals_a_direct_transcription():
    ours, theirs = random.Random(7), random.Random(7)
    for _ in range(20):
        depth = theirs.choice([12, 13, 14])
        ratios = [theirs.choice([3.5, 4]) for _ in range(depth)]
        heads = [theirs.choice([3, 4]) for _ in range(depth)]
        embed = theirs.choice([192, 216, 240])
        assert TINY.sample(ours) == Subnet(embed, heads, ratios)


def test_sampling_is_uniform_per_choice():
    rng = random.Random(0)
    drawn = [TINY.sample(rng) for _ in range(3000)]
    for axis in ("embed_dim", "depth"):
        counts = Counter(getattr(s, axis) for s in drawn)
        assert set(counts) == set(getattr(TINY, axis))
        assert all(abs(n - 1000) < 150 for n in counts.values())
    ratios = Counter(r for s in drawn for r in s.mlp_ratio)
    assert abs(ratios[3.5] / sum(ratios.values()) - 0.5) < 0.02


def test_difference_samples_the_conditional_distribution():
    space = SearchSpace((32, 48), (1,), (1, 2), (1.0,))
    difference = space - space.restrict(embed_dim=32, num_heads=1)
    rng = random.Random(0)
    counts = Counter(difference.sample(rng) for _ in range(3000))
    assert len(counts) == difference.size == 3
    assert all(abs(n - 1000) < 150 for n in counts.values())


# Files


@given(spaces())
def test_space_dict_survives_json(space):
    assert SearchSpace.from_dict(json.loads(json.dumps(space.to_dict()))) == space


def test_yaml_round_trip_keeps_everything(tmp_path: Path):
    for name in ("autoformer-tiny", "autoformer-base", "digits"):
        space = SearchSpace.preset(name).restrict(depth=SearchSpace.preset(name).depth[:1])
        space.to_yaml(tmp_path / "space.yaml")
        back = SearchSpace.from_yaml(tmp_path / "space.yaml")
        assert back == space
        assert back.name == name


def test_reads_autoformer_files(tmp_path: Path):
    path = tmp_path / "supernet-T.yaml"
    path.write_text(AUTOFORMER_YAML)
    space = SearchSpace.from_yaml(path)
    assert space == TINY
    assert space.name == "supernet-T"
    path.write_text(AUTOFORMER_YAML.replace("SUPERNET:", "IGNORED:"))
    assert SearchSpace.from_yaml(path).supernet == SupernetSize(240, 4, 4.0, 14)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("embed_dim: [32", "space.yaml, line"),
        ("- 3", "space must map names to values"),
        ("embed_dim: [32]\ndepth: [2]\nnum_heads: [2]\n", "'mlp_ratio' is missing"),
        (
            "embed_dims: [32]\ndepth: [2]\nnum_heads: [2]\nmlp_ratio: [2]",
            "unknown space field 'embed_dims' .did you mean 'embed_dim'",
        ),
        (
            "embed_dim: [32]\ndepth: [2]\nnum_heads: [2]\nmlp_ratio: [x]",
            "mlp_ratio must be a number, got 'x'",
        ),
        (
            "embed_dim: [32]\ndepth: [2]\nnum_heads: [2]\nmlp_ratio: [2]\nsupernet: {depth: 2}",
            "supernet field 'embed_dim' is missing",
        ),
        ("!!python/object/apply:os.getcwd []", "space.yaml, line 1"),
    ],
)
def test_bad_yaml_is_refused_by_file_name(tmp_path: Path, text, message):
    path = tmp_path / "space.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        SearchSpace.from_yaml(path)
    assert str(path) in str(caught.value)


def test_spaces_costs_and_schedules_need_no_torch():
    code = (
        "import sys, growtas.space, growtas.cost, growtas.schedule, growtas.supernet.vit.geometry\n"
        "assert not {'torch', 'yaml', 'numpy'} & set(sys.modules), 'heavy import'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
