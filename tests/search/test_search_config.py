from __future__ import annotations

import math
import warnings

import pytest

from growtas.base.checks import Doubt
from growtas.base.config import build, load_yaml, to_plain
from growtas.search import Limit, SearchConfig, format_count, parse_count


@pytest.mark.parametrize(
    ("value", "count"),
    [
        (6_000_000, 6_000_000),
        (6e6, 6_000_000),
        ("6M", 6_000_000),
        ("6e6", 6_000_000),
        (" 5.5m ", 5_500_000),
        ("1.3G", 1_300_000_000),
        ("2B", 2_000_000_000),
        ("120k", 120_000),
        ("7", 7),
        (0, 0),
    ],
)
def test_counts_are_numbers_or_texts_with_a_unit(value: object, count: int) -> None:
    assert parse_count(value) == count  # type: ignore[arg-type]
    assert parse_count(format_count(count)) == count


@pytest.mark.parametrize("value", ["six", "6Q", "", "M", -1, "-6M", 1.5, "1.23456789M", math.inf])
def test_other_counts_are_refused_by_value(value: object) -> None:
    with pytest.raises(ValueError, match="max_params"):
        parse_count(value, "max_params")  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [True, None, [6]])
def test_counts_of_another_type_are_refused(value: object) -> None:
    with pytest.raises(TypeError, match="'6M'"):
        parse_count(value)  # type: ignore[arg-type]


def test_both_ends_of_a_window_are_inside() -> None:
    limit = Limit(min_params="5M", max_params="6M", max_macs="1.3G")
    assert limit.admits(5_000_000, 0)
    assert limit.admits(6_000_000, 1_300_000_000)
    assert not limit.admits(4_999_999, 0)
    assert not limit.admits(6_000_001, 0)
    assert not limit.admits(5_500_000, 1_300_000_001)


def test_excess_grows_with_the_distance_and_is_zero_inside() -> None:
    limit = Limit(min_params=100, max_params=200)
    values = [limit.excess(params, 0) for params in (50, 80, 99, 100, 200, 201, 300)]
    assert values[3] == values[4] == 0
    assert values[0] > values[1] > values[2] > 0
    assert values[6] > values[5] > 0


def test_limits_are_named_after_their_bounds() -> None:
    names = [
        Limit(min_params=5e6, max_params=6e6).name,
        Limit(max_params="6M").name,
        Limit(min_macs="1.3G").name,
        Limit(max_params="6M", max_macs="1.3G").name,
        Limit().name,
        Limit(name="mobile", max_params="6M").name,
    ]
    assert names == ["5M-6M", "<=6M", ">=1.3G MACs", "<=6M, <=1.3G MACs", "unlimited", "mobile"]


def test_a_window_that_ends_before_it_begins_is_refused() -> None:
    with pytest.raises(ValueError, match="min_params = 7M, max_params = 6M"):
        Limit(min_params="7M", max_params="6M")


def test_defaults_are_the_papers() -> None:
    config = SearchConfig()
    assert (config.population, config.generations, config.parents) == (50, 20, 10)
    assert (config.mutation_prob, config.depth_prob, config.embed_prob) == (0.2, 0.4, 0.4)
    assert (config.num_mutations, config.num_crossovers) == (25, 25)
    assert [limit.name for limit in config.windows] == ["unlimited"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "annealing"}, "method must be evolution or random, got 'annealing'"),
        ({"objective": "f1"}, "objective must be accuracy or loss, got 'f1'"),
        ({"population": 0}, "population must be at least 1, got 0"),
        ({"generations": -1}, "generations must be at least 1, got -1"),
        ({"parents": 0}, "parents must be at least 1"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"max_images": 0}, "max_images must be at least 1"),
        ({"mutation_prob": 1.5}, "mutation_prob must be between 0 and 1, got 1.5"),
        ({"depth_prob": -0.1}, "depth_prob must be between 0 and 1"),
        ({"mutation_size": -1}, "mutation_size must be at least 0"),
        ({"population": 10, "mutation_size": 8}, "mutation_size [+] crossover_size is 8 [+] 5"),
        ({"limits": [{"max_parms": 6}]}, "'max_parms' in limits.0. .did you mean 'max_params'"),
        ({"limits": [{"max_params": "six"}]}, "limits.0.: max_params must be a number"),
        ({"limits": [{"max_params": 6}, {"max_params": 6}]}, "different names, got '<=6' twice"),
    ],
)
def test_values_out_of_range_are_named(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SearchConfig(**change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"compat": "ofa"}, "compat must be autoformer or null, got 'ofa'"),
        ({"method": "random"}, "needs the method evolution, got 'random'"),
        ({"objective": "loss"}, "needs the objective accuracy, got 'loss'"),
        (
            {"limits": [{"max_params": "6M"}, {"max_params": "8M"}]},
            "needs one limit, got 2 .<=6M, <=8M.",
        ),
        ({"limits": [{"max_macs": "1G"}]}, "needs a limit on parameters only, got '<=1G MACs'"),
        ({"limits": [{"max_params": "6M", "min_macs": 5}]}, "on parameters only, got '<=6M, >=5 M"),
        ({"parents": 50}, "needs parents other than 50"),
    ],
)
def test_what_autoformers_search_cannot_do_is_refused_in_its_place(
    change: dict, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        SearchConfig(**{"compat": "autoformer", **change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"population": 5.0}, "population must be an integer, got 5.0"),
        ({"seed": "a"}, "seed must be an integer"),
        ({"mutation_prob": "0.2"}, "mutation_prob must be a number"),
        ({"limits": {"max_params": 6}}, "limits must be a list of windows"),
        ({"limits": ["6M"]}, "limits.0. must be a window"),
    ],
)
def test_values_of_another_type_are_named(change: dict, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        SearchConfig(**change)


def test_the_recipe_form_is_read_and_written() -> None:
    text = "{population: 8, limits: [{max_params: 6M}, {min_params: 6e6, max_params: 8.0e+6}]}"
    config = build(SearchConfig, load_yaml(text))
    assert config.limits == (Limit(max_params="6M"), Limit(min_params="6M", max_params="8M"))
    assert build(SearchConfig, to_plain(config)) == config


def test_a_recipe_asks_for_autoformers_draws_in_one_line() -> None:
    config = build(SearchConfig, load_yaml("{compat: autoformer, limits: [{max_params: 6M}]}"))
    assert config == SearchConfig(compat="autoformer", limits=({"max_params": "6M"},))
    assert build(SearchConfig, to_plain(config)) == config


@pytest.mark.parametrize(
    ("parents", "generations", "message"),
    [
        (5, 20, "parents is 5, more than search.population, 4: .* before generation 3 of 20"),
        (8, 20, "before generation 4 of 20, as every subnet scored so far is a parent"),
        (10, 3, "nothing is selected in any generation"),
    ],
)
def test_more_parents_than_subnets_of_a_generation_are_warned_of(
    parents: int, generations: int, message: str
) -> None:
    with pytest.warns(Doubt, match=message):
        SearchConfig(population=4, parents=parents, generations=generations)


@pytest.mark.parametrize(
    "change", [{"parents": 4}, {"parents": 9, "method": "random"}, {"parents": 9, "generations": 1}]
)
def test_parents_that_can_be_meant_are_not(change: dict) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        SearchConfig(**{"population": 4, "generations": 5, **change})


class TestNames:
    """A limit's name becomes the folder of its winner, and a word of the command line."""

    @pytest.mark.parametrize("name", ["small", "6M", "1.3G-macs", "a_b", "x" * 100])
    def test_plain_names(self, name):
        assert Limit(name=name, max_params="6M").name == name

    @pytest.mark.parametrize(
        "name",
        ["../../x", "a/b", "a\\b", "/x", ".", "..", ".x", "-x", "a b", "a\n", "x" * 101, "é"],
    )
    def test_paths_and_worse(self, name):
        with pytest.raises(ValueError, match=r"name of a limit is .* allowed: at most 100 letters"):
            Limit(name=name)

    def test_names_of_other_things_in_a_run(self):
        from growtas.run import files as run_files

        files = [
            value
            for name, value in vars(run_files).items()
            if name.isupper() and isinstance(value, str)
        ]
        assert {"best", "config.yaml", "supernet.safetensors", "analysis"} <= set(files)
        for name in [*files, *run_files.TRAINED, "smallest", "Largest", "a.json", "B.YAML"]:
            with pytest.raises(ValueError, match="means something else in a run"):
                Limit(name=name)

    def test_names_made_from_bounds_come_back_from_results(self):
        for bounds in ({"max_params": "6M"}, {"min_params": 5, "max_macs": "1.3G"}, {}):
            limit = Limit(**bounds)
            assert Limit(**vars(limit)) == limit
        with pytest.raises(ValueError, match="the name of a limit is '<=6M'"):
            Limit(name="<=6M", max_params="7M")
