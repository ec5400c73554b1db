from __future__ import annotations

from pathlib import Path

import pytest
from search.synthetic import KnownOptimum, cost_of

from growtas import SearchSpace
from growtas.run import report
from growtas.run.winners import Winner
from growtas.search import Candidate, Score, SearchConfig, SearchResult, score_random, search


@pytest.fixture
def space() -> SearchSpace:
    return SearchSpace.preset("digits")


@pytest.fixture
def result(space: SearchSpace) -> SearchResult:
    config = SearchConfig(
        population=8,
        generations=2,
        parents=4,
        limits=({"max_params": "150K"}, {"max_params": "1M"}),
    )
    return search(space, KnownOptimum(space.largest()), config, cost_of(space), progress=False)


def winners_of(result: SearchResult) -> list[Winner]:
    """The winners, as if all had 60 % of 1,000 images in the test."""
    return [
        Winner(
            limit=entry.limit.name,
            subnet=entry.subnet,
            num_params=entry.params,
            macs=entry.macs,
            search_accuracy=entry.score.accuracy,
            test_accuracy=0.6,
            test_loss=1.0,
            test_images=1000,
        )
        for entry in result.limits
    ]


def surprise(space: SearchSpace) -> Candidate:
    """A random subnet, smaller than all others and without a mistake."""
    cost = cost_of(space)(space.smallest())
    return Candidate(space.smallest(), cost.params, cost.macs, Score(1.0, 0.0, 100))


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
    whole = result.including(subnets)

    def places(candidates) -> list[list[float]]:
        return [[getattr(c, axis), 100 * c.score.accuracy] for c in candidates]

    assert lines["12 random subnets"] == places(subnets)
    proposed = [c for c in result.candidates if c.subnet not in {s.subnet for s in subnets}]
    assert lines[f"{len(proposed)} of the search"] == places(proposed)
    assert lines[f"Pareto front of all {len(whole.candidates)}"] == places(whole.front(axis))
    assert lines["best inside each limit, on 100 search images"] == places(
        r.best for r in whole.limits
    )
    assert {text.get_text() for text in axes.texts} == {"<=150K", "<=1M"}


def test_the_picture_shows_the_tests_with_their_intervals(
    result: SearchResult, tmp_path: Path, monkeypatch
) -> None:
    figures = drawn(monkeypatch)
    report.plot_front(result, tmp_path / "front.png", winners=winners_of(result))
    (axes,) = figures[0].axes
    (bars,) = axes.containers
    points, _, (reach,) = bars.lines
    assert points.get_xydata().tolist() == [[entry.params, 60] for entry in result.limits]
    ends = [segment[:, 1].tolist() for segment in reach.get_segments()]
    assert ends == [pytest.approx([56.93, 62.99], abs=0.01)] * 2
    assert bars.get_label() == "the same on 1,000 test images, 95 % interval"
    assert {text.get_text() for text in axes.texts} == {"<=150K: 60.0%", "<=1M: 60.0%"}


def test_sizes_far_apart_are_on_a_logarithmic_axis_with_short_counts(
    space: SearchSpace, result: SearchResult, tmp_path: Path, monkeypatch
) -> None:
    figures = drawn(monkeypatch)
    ends = [surprise(space), Candidate(space.largest(), 2_000_000, 1, Score(0.5, 1.0, 100))]
    report.plot_front(result.including(ends), tmp_path / "front.png")
    axis = figures[0].axes[0].xaxis
    assert axis.get_scale() == "log"
    texts = [axis.get_major_formatter()(100_000), axis.get_minor_formatter()(2_000_000)]
    assert texts == ["100K", "2M"]


def test_a_random_subnet_never_lies_above_the_front(
    space: SearchSpace, result: SearchResult, tmp_path: Path, monkeypatch
) -> None:
    """Neither in the result nor in the picture nor in the table."""
    best = surprise(space)
    whole = result.including([best])
    assert whole.front() == [best]
    assert [entry.best for entry in whole.limits] == [best, best]
    assert SearchResult.from_json(whole.to_json()).front() == [best]
    figures = drawn(monkeypatch)
    report.plot_front(result, tmp_path / "front.png", random_subnets=[best])
    lines = {line.get_label(): line.get_xydata().tolist() for line in figures[0].axes[0].lines}
    assert lines[f"Pareto front of all {len(whole.candidates)}"] == [[best.params, 100]]
    assert lines["best inside each limit, on 100 search images"] == [[best.params, 100]] * 2
    assert report.winners_table(whole).count(str(best.subnet)) == 2


def test_the_training_is_drawn_stage_by_stage(tmp_path: Path, monkeypatch) -> None:
    figures = drawn(monkeypatch)
    rows = [
        {"epoch": 1, "phase": "stage 1/2"},
        {"epoch": 2, "phase": "stage 1/2", "smallest_accuracy": 0.5, "largest_accuracy": 0.1},
        {"epoch": 3, "phase": "stage 2/2", "smallest_accuracy": 0.6, "largest_accuracy": 0.7},
    ]
    report.plot_training(rows, tmp_path / "training.png")
    (axes,) = figures[0].axes
    lines = {line.get_label(): line.get_xydata().tolist() for line in axes.lines}
    assert lines["smallest subnet"] == [[2, 50], [3, 60]]
    assert lines["largest subnet"] == [[2, 10], [3, 70]]
    places = {text.get_text(): text.get_position()[0] for text in axes.texts}
    assert places == {"stage 1/2": 1, "stage 2/2": 2.5}


def test_the_table_has_a_line_for_each_limit(result: SearchResult) -> None:
    text = report.winners_table(result, winners_of(result))
    header, rule, first, second = text.splitlines()
    assert header.split()[:4] == ["limit", "parameters", "MACs", "random"]
    assert set(rule) == {"-", " "}
    assert first.startswith("<=150K  ")
    assert first.endswith(str(result["<=150K"].subnet))
    generation = result["<=150K"].history[0]
    assert f"{generation['mean_accuracy']:.2%}" in first
    assert "60.00% (56.9-63.0)" in second
    score = result["<=1M"].score
    low, high = (100 * end for end in score.interval)
    assert f"{score.accuracy:.2%} ({low:.1f}-{high:.1f})" in second
    end = header.index("test acc.") + len("test acc.")
    assert end == second.index("(56.9-63.0)") + len("(56.9-63.0)")
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
