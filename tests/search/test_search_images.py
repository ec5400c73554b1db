"""Which images a search sees: those set aside for it, and no others."""

from __future__ import annotations

import pytest
import tiny_recipe
from search.synthetic import KnownOptimum, cost_of

from growtas import SearchSpace
from growtas.run.folder import Run
from growtas.search import SearchConfig, breeding, search

pytest.importorskip("timm")
pytest.importorskip("sklearn")


def test_training_and_search_never_open_the_test_images(tmp_path, monkeypatch) -> None:
    """AutoFormer scores every candidate on the test set too; other data sets only there."""
    run = Run.start(tiny_recipe.load(tmp_path / "run"), say=lambda line: None)
    view, opened = run.data._view, []
    monkeypatch.setattr(
        run.data,
        "_view",
        lambda split, transform: (opened.append(split), view(split, transform))[1],
    )
    run.train()
    assert set(opened) == {"train", "search"}  # the search split for the accuracy in metrics.csv
    opened.clear()
    result = run.search()
    assert set(opened) == {"search"}
    assert {candidate.score.count for candidate in result.candidates} == {len(run.data.search)}
    seen, trained = set(run.data.search.indices), set(run.data.train.indices)
    assert not seen & trained
    assert not (seen | trained) & set(run.data.test.indices)


def test_rejected_proposals_cost_no_score_and_parents_are_counted_once(
    digits: SearchSpace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """AutoFormer counts parameters by setting up the whole model, and with 50 parents lists every
    candidate twice."""
    bred, shown = breeding.next_generation, []

    def watched(config, window, parents, evaluated, rng):
        shown.append(parents)
        return bred(config, window, parents, evaluated, rng)

    monkeypatch.setattr(breeding, "next_generation", watched)
    config = SearchConfig(population=50, parents=50, generations=3, limits=[{"max_params": "200K"}])
    scorer = KnownOptimum(digits.smallest())
    result = search(digits, scorer, config, cost_of(digits), progress=False)
    assert [len(set(parents)) for parents in shown] == [len(p) for p in shown] == [0, 50, 50]
    assert all(cost_of(digits)(subnet).params <= 200_000 for subnet in scorer.asked)
    assert len(scorer.asked) == len(result.candidates) == 150
