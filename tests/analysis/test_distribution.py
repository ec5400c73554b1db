"""Accuracies of random subnets: those of the evaluator, drawn as binned."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest

from growtas import Subnet
from growtas.analysis.distribution import BINS, _edges, plot, score_window
from growtas.run.report import save_figure
from growtas.search import Limit


def window_of(subject) -> Limit:
    space = subject.space
    low, high = (subject.model.num_params(s) for s in (space.smallest(), space.largest()))
    return Limit(min_params=low + (high - low) // 4, max_params=(low + high) // 2)


class TestDistribution:
    def test_every_row_is_what_the_evaluator_says(self, subject):
        window = window_of(subject)
        rows = score_window(subject, window, count=25, seed=1)
        assert len({row.subnet for row in rows}) == len(rows) == 25
        for row in rows:
            subnet = Subnet.from_dict(json.loads(row.subnet))
            score = subject.evaluator.score(subnet)
            assert row.accuracy_percent == 100 * score.accuracy
            assert row.loss_nats == score.loss
            assert row.images == 40
            assert row.params == subject.model.num_params(subnet)
            assert row.macs_per_image == subject.model.macs(subnet)
            assert window.admits(row.params, row.macs_per_image)
            assert (row.supernet, row.split) == ("first", "search")

    def test_equal_spaces_get_equal_subnets(self, subject, other):
        window = window_of(subject)
        ours, theirs = (score_window(s, window, count=10) for s in (subject, other))
        assert [row.subnet for row in ours] == [row.subnet for row in theirs]
        assert [row.loss_nats for row in ours] != [row.loss_nats for row in theirs]

    def test_an_empty_window(self, subject):
        with pytest.raises(ValueError, match="reachable are"):
            score_window(subject, Limit(max_params=10))


class TestPlot:
    @pytest.fixture
    def rows(self, subject, other):
        pytest.importorskip("matplotlib")
        return [row for s in (subject, other) for row in score_window(s, Limit(), count=30)]

    @pytest.mark.parametrize("kind", ["histogram", "box", "violin"])
    def test_kinds(self, rows, kind, tmp_path, png_size):
        figure = plot(rows, kind)
        assert "30 random subnets (unlimited)" in figure.get_suptitle()
        assert "40 search images" in figure.get_suptitle()
        labels = (figure.axes[0].get_xlabel(), figure.axes[0].get_ylabel())
        assert "top-1 accuracy [%]" in labels
        save_figure(figure, tmp_path / "figures" / "distribution.png")
        assert min(png_size(tmp_path / "figures" / "distribution.png")) > 300
        assert [path.name for path in (tmp_path / "figures").iterdir()] == ["distribution.png"]

    def test_the_histogram_counts_every_subnet(self, rows):
        axes = plot(rows).axes[0]
        assert len(axes.patches) == 2
        for patch, name in zip(axes.patches, ("first", "second"), strict=True):
            heights = patch.get_xy()[:, 1]
            mine = [row.accuracy_percent for row in rows if row.supernet == name]
            assert max(heights) == max(
                sum(low <= value < high for value in mine)
                for edges in [_edges([row.accuracy_percent for row in rows], 40)]
                for low, high in pairwise(edges)
            )

    def test_unknown_kind(self, rows):
        with pytest.raises(ValueError, match="histogram, box, violin, got 'pie'"):
            plot(rows, "pie")


@pytest.mark.parametrize("levels", [1, 2, BINS, BINS + 1, 5 * BINS + 3])
def test_bins_hold_equally_many_possible_accuracies(levels):
    images = 1000
    possible = [70 + 0.1 * level for level in range(levels)]
    edges = _edges(possible, images)
    assert len(edges) - 1 <= BINS
    counts = [sum(low < value < high for value in possible) for low, high in pairwise(edges)]
    assert sum(counts) == levels
    assert len(set(counts[:-1])) <= 1
    assert counts[-1] <= counts[0]
