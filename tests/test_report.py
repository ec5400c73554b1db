from __future__ import annotations

from pathlib import Path

import pytest
from search.synthetic import KnownOptimum, cost_of

from growtas import SearchSpace, report
from growtas.search import SearchConfig, SearchResult, score_random, search


@pytest.fixture
def space() -> SearchSpace:
    return SearchSpace.preset("digits")


@pytest.fixture
def result(space: SearchSpace) -> SearchResult:
    config = SearchConfig(
        population=8, generations=2, limits=({"max_params": "150K"}, {"max_params": "1M"})
    )
    return search(space, KnownOptimum(space.largest()), config, cost_of(space), progress=False)


def drawn(monkeypatch: pytest.MonkeyPatch) -> list:
    """The figures that are saved."""
    from matplotlib.figure import Figure

    figures, save = [], Figure.savefig

    def recording(figure, *args, **options) -> None:
        figures.append(figure)
        save(figure, *args, **options)

    monkeypatch.setattr(Figure, "savefig", recording)
    return figures


@pytest.mark.parametrize("axis", ["params", "macs"])
def test_the_picture_shows_front_winners_and_random_subnets(
    space: SearchSpace, result: SearchResult, tmp_path: Path, monkeypatch, axis: str
) -> None:
    figures = drawn(monkeypatch)
    subnets = score_random(space, KnownOptimum(space.largest()), cost_of(space), count=12)
    path = tmp_path / "new" / "front.png"
    report.plot_front(result, path, random_subnets=subnets, axis=axis)
    assert path.read_bytes().startswith(b"\x89PNG")
    (axes,) = figures[0].axes
    lines = {line.get_label(): line.get_xydata().tolist() for line in axes.lines}
    random_points = [[getattr(c, axis), 100 * c.score.accuracy] for c in subnets]
    assert lines["12 random subnets"] == random_points
    front = [[getattr(c, axis), 100 * c.score.accuracy] for c in result.front(axis)]
    assert lines["Pareto front of 32 evaluated subnets"] == front
    winners = [[getattr(r, axis), 100 * r.score.accuracy] for r in result.limits]
    assert lines["best inside each limit"] == winners
    assert {text.get_text() for text in axes.texts} == {"<=150K", "<=1M"}


def test_the_table_has_a_line_for_each_limit(result: SearchResult) -> None:
    text = report.winners_table(result, {"<=150K": 0.5, "<=1M": 0.9712})
    header, rule, first, second = text.splitlines()
    assert header.split()[:3] == ["limit", "parameters", "MACs"]
    assert set(rule) == {"-", " "}
    assert first.startswith("<=150K  ")
    assert first.endswith(str(result["<=150K"].subnet))
    assert "97.12%" in second
    assert f"{result['<=1M'].score.accuracy:.2%}" in second
    assert header.index("test acc.") + len("test acc.") == second.index("97.12%") + len("97.12%")
    assert "test acc." not in report.winners_table(result)


def test_a_table_is_aligned_and_refuses_ragged_rows() -> None:
    text = report.table(("name", "n", "what"), [("a", "1", "x"), ("long name", "100", "y")])
    assert text.splitlines() == [
        "name         n  what",
        "---------  ---  ----",
        "a            1  x",
        "long name  100  y",
    ]
    with pytest.raises(ValueError, match="expected 2 cells"):
        report.table(("a", "b"), [("1",)])
