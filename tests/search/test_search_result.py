from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from search.synthetic import KnownOptimum, cost_of

from growtas import SearchSpace, Subnet
from growtas.search import Candidate, Score, SearchConfig, SearchResult, pareto_front, search


def candidate(params: int, accuracy: float, macs: int = 0, loss: float = 1.0) -> Candidate:
    return Candidate(Subnet(params, (1,), (1.0,)), params, macs, Score(accuracy, loss, 100))


@pytest.fixture
def result(digits: SearchSpace) -> SearchResult:
    config = SearchConfig(
        population=6, generations=2, limits=({"max_params": "150K"}, {"name": "big", "min_macs": 1})
    )
    scorer = KnownOptimum(digits.largest())
    return search(digits, scorer, config, cost_of(digits), progress=False)


def test_the_front_holds_what_nothing_smaller_beats() -> None:
    a, b, c, d = candidate(1, 0.5), candidate(2, 0.4), candidate(3, 0.7), candidate(4, 0.7)
    assert pareto_front([d, b, c, a]) == [a, c]
    assert pareto_front([]) == []


def test_of_equal_sizes_the_better_one_is_on_the_front() -> None:
    a, b = candidate(5, 0.5, macs=9), candidate(5, 0.6, macs=10)
    assert pareto_front([a, b]) == [b]
    assert pareto_front([a, b], axis="macs") == [a, b]


def test_the_front_of_the_loss_is_another_one() -> None:
    a, b = candidate(1, 0.9, loss=0.9), candidate(2, 0.8, loss=0.1)
    assert pareto_front([a, b]) == [a]
    assert pareto_front([a, b], objective="loss") == [a, b]


def test_the_front_is_the_one_of_the_definition(result: SearchResult) -> None:
    def beaten(c: Candidate) -> bool:
        return any(
            (o.params <= c.params and o.score.accuracy > c.score.accuracy)
            or (o.params < c.params and o.score.accuracy >= c.score.accuracy)
            for o in result.candidates
        )

    front = result.front()
    assert {(c.params, c.score.accuracy) for c in front} == {
        (c.params, c.score.accuracy) for c in result.candidates if not beaten(c)
    }
    assert [c.params for c in front] == sorted({c.params for c in front})


def test_further_candidates_join_once_and_win_where_they_are_better(result: SearchResult) -> None:
    better, worse = candidate(160_000, 1.0, macs=5), candidate(1, 0.0, macs=5)
    whole = result.including([better, worse, result.candidates[0]])
    assert whole.candidates == (*result.candidates, better, worse)
    assert whole["<=150K"].best == result["<=150K"].best
    assert whole["big"].best == better
    assert whole.including([worse]) is whole
    assert whole["big"].history == result["big"].history


def test_the_winner_of_another_programs_search_stays(result: SearchResult) -> None:
    config = SearchConfig(
        population=2, generations=1, limits=({"max_params": "1M"},), compat="autoformer"
    )
    theirs = search(
        result.space, KnownOptimum(result.space.largest()), config, cost_of(result.space),
        progress=False,
    )  # fmt: skip
    whole = theirs.including([candidate(1, 1.0)])
    assert whole.limits == theirs.limits
    assert whole.front() == [candidate(1, 1.0)]


def test_random_accuracy_is_that_of_the_first_generation(result: SearchResult) -> None:
    first = [c.score.accuracy for c in result.candidates[:6]]
    assert result.limits[0].random_accuracy == pytest.approx(sum(first) / 6)


@pytest.mark.parametrize(
    ("accuracy", "count", "ends"),
    [
        (0.6, 1000, (0.5693, 0.6299)),
        (1.0, 10, (0.7225, 1.0)),
        (1.0, 84, (0.9563, 1.0)),
        (0.0, 10, (0.0, 0.2775)),
        (0.9, 0, (0.0, 1.0)),
    ],
)
def test_the_interval_is_wilsons(accuracy: float, count: int, ends: tuple[float, float]) -> None:
    """The ends are those of SciPy's ``binomtest(...).proportion_ci(method="wilson")``."""
    low, high = Score(accuracy, 1.0, count).interval
    assert (low, high) == pytest.approx(ends, abs=1e-4)
    assert 0 <= low <= accuracy <= high <= 1


@pytest.mark.parametrize("options", [{"axis": "flops"}, {"objective": "f1"}])
def test_other_axes_are_refused(options: dict) -> None:
    with pytest.raises(ValueError, match="must be"):
        pareto_front([], **options)


def test_the_result_survives_json(result: SearchResult, tmp_path: Path) -> None:
    result.save(tmp_path / "runs" / "search.json")
    assert SearchResult.load(tmp_path / "runs" / "search.json") == result
    assert SearchResult.from_json(result.to_json()) == result
    plain = json.loads(result.to_json())
    assert [entry["name"] for entry in plain["limits"]] == ["<=150K", "big"]
    assert len(plain["candidates"]) == 24


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_no_number_is_valid_json(loss: float) -> None:
    stored = json.dumps(candidate(1, 0.5, loss=loss).to_dict(), allow_nan=False)
    read = Candidate.from_dict(json.loads(stored)).score.loss
    assert repr(read) == repr(loss)


def test_limits_are_found_by_name(result: SearchResult) -> None:
    assert result["big"].limit.min_macs == 1
    assert result.ranked()[0] == result["big"].best
    with pytest.raises(KeyError, match="'<=150K', 'big'"):
        result["small"]


def test_another_file_is_refused_by_name(tmp_path: Path) -> None:
    for text in ('{"a": 1}', "nonsense", "[]"):
        (tmp_path / "x.json").write_text(text)
        with pytest.raises(ValueError, match=r"x\.json is not the result of a search"):
            SearchResult.load(tmp_path / "x.json")
