"""The search loop: budget, ranking, limits, and that an interruption changes nothing."""

from __future__ import annotations

import json
import random
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from search.synthetic import KnownOptimum, cost_of

from growtas import SearchSpace, Subnet
from growtas.search import (
    Candidate,
    Limit,
    Score,
    SearchConfig,
    SearchResult,
    evolution,
    random_search,
    rank_key,
    run,
    score_random,
    search,
)
from growtas.search.breeding import next_generation
from growtas.search.window import Window

TWO = ({"max_params": "150K"}, {"min_params": "150K", "max_params": "250K"})
SHORT = SearchConfig(population=10, generations=4, parents=4, limits=TWO)


def target_in(space: SearchSpace, limit: Limit, seed: int = 0) -> Subnet:
    rng = random.Random(seed)
    while not limit.admits(*cost_of(space)(subnet := space.sample(rng))):
        pass
    return subnet


def searched(space: SearchSpace, config: SearchConfig, **options) -> SearchResult:
    options = {"progress": False, **options}
    return search(space, KnownOptimum(space.largest()), config, cost_of(space), **options)


@pytest.mark.parametrize("method", ["evolution", "random"])
def test_the_budget_is_spent_exactly_and_nothing_is_scored_twice(
    digits: SearchSpace, method: str
) -> None:
    scorer = KnownOptimum(digits.largest())
    config = replace(SHORT, method=method)
    result = search(digits, scorer, config, cost_of(digits), progress=False)
    assert len(scorer.asked) == len(set(scorer.asked)) == 10 * 4 * 2
    assert [c.subnet for c in result.candidates] == scorer.asked
    for outcome in result.limits:
        assert [entry["evaluated"] for entry in outcome.history] == [10] * 4
        assert [entry["generation"] for entry in outcome.history] == [0, 1, 2, 3]


def test_the_winner_is_the_best_inside_each_limit_of_all_that_was_scored(
    digits: SearchSpace,
) -> None:
    result = searched(digits, replace(SHORT, limits=({"max_params": "150K"}, {"max_params": "2M"})))
    for outcome in result.limits:
        inside = [c for c in result.candidates if outcome.limit.admits(c.params, c.macs)]
        assert outcome.best == min(inside, key=rank_key)
        assert (outcome.params, outcome.macs) == cost_of(digits)(outcome.subnet)
        accuracies = [entry["best"]["accuracy"] for entry in outcome.history]
        assert accuracies == sorted(accuracies)
    # The wider window contains the narrower one, so its winner cannot be worse.
    assert result["<=2M"].score.accuracy >= result["<=150K"].score.accuracy


def test_evolution_beats_random_search_of_equal_budget(tiny: SearchSpace) -> None:
    wins = 0
    for seed in range(5):
        config = SearchConfig(
            population=20,
            generations=8,
            seed=seed,
            limits=({"min_params": "7M", "max_params": "8M"},),
        )
        target = target_in(tiny, config.limits[0], seed)
        scorers = [KnownOptimum(target), KnownOptimum(target)]
        bred = evolution(tiny, scorers[0], config, cost_of(tiny), progress=False)
        drawn = random_search(tiny, scorers[1], config, cost_of(tiny), progress=False)
        assert len(scorers[0].asked) == len(scorers[1].asked) == 160
        wins += bred.limits[0].score.accuracy > drawn.limits[0].score.accuracy
    assert wins == 5


def test_evolution_finds_the_known_optimum(digits: SearchSpace) -> None:
    space = digits.restrict(depth=4)
    limit = Limit(max_params="180K")
    for seed in range(3):
        target = target_in(space, limit, seed)
        config = SearchConfig(generations=12, seed=seed, limits=(limit,))
        result = search(space, KnownOptimum(target), config, cost_of(space), progress=False)
        assert result.limits[0].subnet == target
        assert result.limits[0].score.accuracy == 1.0


def test_a_small_space_is_searched_to_its_end(small_space: SearchSpace) -> None:
    scorer = KnownOptimum(small_space.largest())
    config = SearchConfig(population=12, generations=10, limits=({"max_params": "1G"},))
    result = search(small_space, scorer, config, cost_of(small_space), progress=False)
    assert len(set(scorer.asked)) == len(scorer.asked) == small_space.size == 40
    assert [entry["evaluated"] for entry in result.limits[0].history] == [12, 12, 12, 4]
    assert result.limits[0].subnet == small_space.largest()


def test_overlapping_limits_share_what_was_scored(small_space: SearchSpace) -> None:
    scorer = KnownOptimum(small_space.largest())
    limits = ({"name": "a", "max_params": "1G"}, {"name": "b", "max_params": "1G"})
    config = SearchConfig(population=20, generations=1, limits=limits)
    result = search(small_space, scorer, config, cost_of(small_space), progress=False)
    assert len(set(scorer.asked)) == len(scorer.asked) == 40
    assert result["a"].best == result["b"].best
    assert result["a"].subnet == small_space.largest()


def test_every_candidate_of_a_narrow_window_is_inside(tiny: SearchSpace) -> None:
    limit = Limit(min_params="6.98M", max_params="7M", min_macs="1.65G", max_macs="1.75G")
    config = SearchConfig(population=10, generations=4, limits=(limit,))
    result = searched(tiny, config)
    assert len(result.candidates) == 40
    assert all(limit.admits(c.params, c.macs) for c in result.candidates)


def test_disjoint_limits_do_not_change_each_other(digits: SearchSpace) -> None:
    both, alone = searched(digits, SHORT), searched(digits, replace(SHORT, limits=TWO[1:]))
    assert alone.limits[0] == both.limits[1]


def test_the_seed_decides_the_search(digits: SearchSpace) -> None:
    assert searched(digits, SHORT) == searched(digits, SHORT)
    assert searched(digits, SHORT) != searched(digits, replace(SHORT, seed=1))


def test_an_unreachable_limit_is_refused_before_anything_is_scored(digits: SearchSpace) -> None:
    scorer = KnownOptimum(digits.largest())
    config = replace(SHORT, limits=({"max_params": 10},))
    with pytest.raises(ValueError, match="reachable are"):
        search(digits, scorer, config, cost_of(digits), progress=False)
    assert scorer.asked == []


def test_a_generation_has_mutants_children_and_random_subnets(tiny: SearchSpace) -> None:
    window = Window(tiny, Limit(), cost_of(tiny))
    parent = tiny.smallest()
    none = {"mutation_prob": 0.0, "depth_prob": 0.0, "embed_prob": 1.0}
    config = SearchConfig(population=10, mutation_size=2, crossover_size=0, **none)
    bred = next_generation(config, window, [parent], lambda s: s == parent, random.Random(0))
    # Only the embedding dim mutates, and there are two others.
    assert {s.embed_dim for s in bred[:2]} == {216, 240}
    assert all(replace(s, embed_dim=192) == parent for s in bred[:2])
    assert len(set(bred)) == 10
    assert len({s.num_heads for s in bred[2:]}) > 4

    config = SearchConfig(population=8, mutation_size=0, crossover_size=8)
    ends = [tiny.smallest(), tiny.largest()]
    children = next_generation(config, window, ends, ends.__contains__, random.Random(0))
    assert {s.embed_dim for s in children} <= {192, 240}
    assert {s.depth for s in children} <= {12, 14}
    assert not set(ends) & set(children)


def test_ranking_prefers_the_objective_then_the_other_measure_then_fewer_parameters() -> None:
    subnet, other = Subnet(32, (2,), (2.0,)), Subnet(48, (2,), (2.0,))

    def candidate(accuracy: float, loss: float, params: int, net: Subnet = subnet) -> Candidate:
        return Candidate(net, params, 10, Score(accuracy, loss, 100))

    a, b, c = candidate(0.9, 0.5, 200), candidate(0.9, 0.1, 300), candidate(0.8, 0.2, 100)
    unknown = candidate(0.1, float("nan"), 50)
    by_loss = sorted([a, b, c, unknown], key=lambda x: rank_key(x, "loss"))
    assert sorted([unknown, c, a, b], key=rank_key) == [b, a, c, unknown]
    larger = candidate(0.9, 0.1, 301)
    assert sorted([larger, b], key=rank_key) == [b, larger]
    assert by_loss == [b, c, a, unknown]
    tie = candidate(0.9, 0.5, 200, other)
    assert sorted([tie, a], key=rank_key) == sorted([a, tie], key=rank_key) == [a, tie]


@pytest.mark.parametrize("objective", ["accuracy", "loss"])
@pytest.mark.parametrize(
    "window",
    [
        {"min_params": "150K", "max_params": "250K"},
        {"min_macs": "60M", "max_macs": "90M"},
        {"min_params": "150K", "max_params": "250K", "min_macs": "60M", "max_macs": "90M"},
    ],
)
def test_either_objective_wins_inside_a_window_on_either_size(
    digits: SearchSpace, objective: str, window: dict
) -> None:
    """The two measures disagree, and each side of the window has better subnets."""

    class Disagreeing:
        def score(self, subnet: Subnet) -> Score:
            rng = random.Random(repr(subnet))
            return Score(rng.randrange(100) / 100, rng.random(), 100)

    cost, limit = cost_of(digits), Limit(**window)
    config = replace(SHORT, objective=objective, limits=(limit,), generations=3, population=30)
    result = search(digits, Disagreeing(), config, cost, progress=False)
    assert len(result.candidates) == 90
    assert all(limit.admits(*cost(c.subnet)) for c in result.candidates)
    scores = [c.score for c in result.candidates]
    best = result.limits[0].score
    if objective == "accuracy":
        top = max(score.accuracy for score in scores)
        assert best == min((s for s in scores if s.accuracy == top), key=lambda s: s.loss)
        assert best.loss > min(score.loss for score in scores)
    else:
        assert best.loss == min(score.loss for score in scores)
        assert best.accuracy < max(score.accuracy for score in scores)


@pytest.mark.parametrize("method", ["evolution", "random"])
@pytest.mark.parametrize("stop", [1, 10, 33, 60, 79])
def test_a_resumed_search_is_the_uninterrupted_one(
    digits: SearchSpace, tmp_path: Path, stop: int, method: str
) -> None:
    config = replace(SHORT, method=method)
    whole = searched(digits, config)
    first = KnownOptimum(digits.largest(), fail_after=stop)
    options = {"run_dir": tmp_path, "resume": True, "progress": False}
    with pytest.raises(KeyboardInterrupt):
        search(digits, first, config, cost_of(digits), **options)
    assert len(first.asked) == stop
    second = KnownOptimum(digits.largest())
    result = search(digits, second, config, cost_of(digits), **options)
    assert result == whole
    assert first.asked + second.asked == [c.subnet for c in whole.candidates]


def test_a_killed_search_repeats_at_most_the_running_generation(
    digits: SearchSpace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A process that is killed writes nothing any more: keep the file as it was before.
    whole, saved = searched(digits, SHORT), []
    monkeypatch.setattr(run, "write_atomically", lambda path, text: saved.append(text))
    searched(digits, SHORT, run_dir=tmp_path)
    monkeypatch.undo()
    for text in saved[:-1]:
        (tmp_path / "search_state.json").write_text(text)
        scorer = KnownOptimum(digits.largest())
        done = len(json.loads(text)["candidates"])
        options = {"run_dir": tmp_path, "resume": True, "progress": False}
        assert search(digits, scorer, SHORT, cost_of(digits), **options) == whole
        assert len(scorer.asked) == 80 - done
    assert len(saved) >= 8


def test_a_finished_search_is_read_back_without_scoring(
    digits: SearchSpace, tmp_path: Path
) -> None:
    whole = searched(digits, SHORT, run_dir=tmp_path)
    scorer = KnownOptimum(digits.largest())
    options = {"run_dir": tmp_path, "resume": True, "progress": False}
    assert search(digits, scorer, SHORT, cost_of(digits), **options) == whole
    assert scorer.asked == []
    assert SearchResult.load(tmp_path / "search.json") == whole
    assert sorted(p.name for p in tmp_path.iterdir()) == ["search.json", "search_state.json"]


def test_a_finished_search_goes_on_for_more_generations(
    digits: SearchSpace, tmp_path: Path
) -> None:
    searched(digits, SHORT, run_dir=tmp_path)
    longer = replace(SHORT, generations=6)
    assert searched(digits, longer, run_dir=tmp_path, resume=True) == searched(digits, longer)
    with pytest.raises(ValueError, match="6 generations already, more than the 4"):
        searched(digits, SHORT, run_dir=tmp_path, resume=True)


def test_another_search_is_not_resumed(digits: SearchSpace, tmp_path: Path) -> None:
    searched(digits, SHORT, run_dir=tmp_path)
    resumed = {"run_dir": tmp_path, "resume": True}
    with pytest.raises(ValueError, match=r"config\.seed: 0 -> 3"):
        searched(digits, replace(SHORT, seed=3), **resumed)
    with pytest.raises(ValueError, match=r"space\.depth: \[4, 5, 6\] -> \[4, 5\]"):
        searched(digits.restrict(depth=(4, 5)), SHORT, **resumed)
    (tmp_path / "search_state.json").write_text('{"turn": 3}')
    with pytest.raises(ValueError, match=r"search_state\.json is not the state of a search"):
        searched(digits, SHORT, **resumed)


def test_scores_of_other_weights_are_not_resumed(digits: SearchSpace, tmp_path: Path) -> None:
    class Printed(KnownOptimum):
        mark = "a"

        def fingerprint(self) -> str:
            return self.mark

    scorer = Printed(digits.largest())
    search(digits, scorer, SHORT, cost_of(digits), run_dir=tmp_path, progress=False)
    scorer.mark = "b"
    with pytest.raises(ValueError, match="scores are of other weights or other images"):
        search(digits, scorer, SHORT, cost_of(digits), run_dir=tmp_path, resume=True)


def test_without_resume_an_earlier_state_is_not_read(digits: SearchSpace, tmp_path: Path) -> None:
    searched(digits, replace(SHORT, seed=5), run_dir=tmp_path)
    assert searched(digits, SHORT, run_dir=tmp_path) == searched(digits, SHORT)


def test_random_subnets_are_different_and_reuse_known_scores(digits: SearchSpace) -> None:
    scorer = KnownOptimum(digits.largest())
    first = score_random(digits, scorer, cost_of(digits), count=30, seed=1)
    assert len({c.subnet for c in first}) == len(scorer.asked) == 30
    again = score_random(digits, scorer, cost_of(digits), count=35, seed=1, known=first)
    assert again[:30] == first
    assert len(scorer.asked) == 35


def test_progress_is_lines_without_a_terminal(digits: SearchSpace, capsys) -> None:
    searched(digits, SHORT, progress=True)
    shown = capsys.readouterr().err
    assert "\r" not in shown
    lines = shown.splitlines()
    assert lines[0].startswith("10/80 subnets, search ")
    assert lines[-1].startswith("80/80 subnets, search ")
    assert all("best accuracy " in line for line in lines)
    searched(digits, SHORT, progress=False)
    assert capsys.readouterr().err == ""


def test_progress_is_a_bar_on_a_terminal(digits: SearchSpace, capsys, monkeypatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    searched(digits, SHORT, progress=True)
    shown = capsys.readouterr().err
    assert "80/80" in shown
    assert "best accuracy " in shown
