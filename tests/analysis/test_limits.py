"""What stands for a supernet inside a limit, and the accuracy it is given."""

from __future__ import annotations

import json

import pytest
import torch

from growtas import Subnet
from growtas.analysis import Subject, best_of_random, random_subnets, score_choices
from growtas.analysis.limits import plot, search_winners
from growtas.search import Evaluator, Limit, SearchConfig, search

LIMITS = (Limit(max_params=3000), Limit(min_params=4000, max_params=8000))


def test_the_best_of_random_subnets_is_the_best(subject):
    for objective, key in (
        ("accuracy", lambda c: (-c.score.accuracy, c.score.loss)),
        ("loss", lambda c: c.score.loss),
    ):
        choices = best_of_random(subject, LIMITS, count=4, seed=5, objective=objective)
        for choice, limit in zip(choices, LIMITS, strict=True):
            subnets = random_subnets(subject.space, limit, subject.cost, count=4, seed=5)
            best = min(subject.score(subnets), key=key)
            assert choice.limit == limit
            assert choice.candidate == best
            assert choice.chosen_by == "best of 4 random subnets"


def test_winners_of_a_search_are_taken_over(subject):
    config = SearchConfig(limits=LIMITS, population=4, generations=2, parents=2)
    result = search(subject.space, subject.evaluator, config, subject.cost, progress=False)
    choices = search_winners(result)
    assert [choice.limit for choice in choices] == list(LIMITS)
    rows = score_choices(subject, choices)
    for row, entry in zip(rows, result.limits, strict=True):
        assert Subnet.from_dict(json.loads(row.subnet)) == entry.subnet
        assert row.accuracy_percent == 100 * entry.score.accuracy
        assert row.chosen_by == "search"
        assert row.limit == entry.limit.name


def test_chosen_on_one_split_and_read_on_another(subject):
    """Labels that are all wrong: the choice must not follow them."""
    labels = torch.full((10,), 4)
    images = torch.randn(10, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    test = Subject("first", subject.model, Evaluator(subject.model, images, labels), "test")
    choices = best_of_random(subject, LIMITS, count=10)
    rows = score_choices(test, choices)
    for row, choice in zip(rows, choices, strict=True):
        score = test.evaluator.score(choice.candidate.subnet)
        assert Subnet.from_dict(json.loads(row.subnet)) == choice.candidate.subnet
        assert (row.accuracy_percent, row.images, row.split) == (100 * score.accuracy, 10, "test")
        share = score.accuracy
        assert row.standard_error_percent == pytest.approx(100 * (share * (1 - share) / 10) ** 0.5)


def test_plot(subject, other):
    pytest.importorskip("matplotlib")
    rows = [
        row
        for s in (subject, other)
        for row in score_choices(s, best_of_random(s, LIMITS, count=5))
    ]
    axes = plot(rows).axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["<=3K", "4K-8K"]
    for container, name in zip(axes.containers, ("first", "second"), strict=True):
        expected = [row.accuracy_percent for row in rows if row.supernet == name]
        assert list(container.lines[0].get_ydata()) == expected
    assert axes.get_ylabel() == "top-1 accuracy [%]"
    assert "best of 5 random subnets" in axes.figure.get_suptitle()
    assert "40 search images" in axes.figure.get_suptitle()
