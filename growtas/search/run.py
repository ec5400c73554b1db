"""The search loop: breed, score, record; saved as it goes, so that it can be resumed."""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from growtas.base import distributed
from growtas.base.atomic import write_atomically
from growtas.base.config import ConfigError, content_of, differences, read_text, to_plain
from growtas.base.progress import Progress
from growtas.search import autoformer, breeding
from growtas.search.candidate import Candidate, Scorer, json_number, rank_key
from growtas.search.config import Limit, SearchConfig
from growtas.search.result import LimitResult, SearchResult, to_json
from growtas.search.scoring import PART_SECONDS, Scoring
from growtas.search.window import Window
from growtas.space import SearchSpace, Subnet
from growtas.space.cost import CostFunction
from growtas.space.size_table import SizeTable

STATE_FILE = "search_state.json"
RESULT_FILE = "search.json"
SAVE_SECONDS = PART_SECONDS  # about twice as much scoring is lost when the process is killed

_A_STATE = "the state of a search"

# A resumed search may go on for more generations, and batches change nothing but speed.
_MAY_CHANGE = ("generations", "batch_size")


def search(
    space: SearchSpace,
    evaluator: Scorer,
    config: SearchConfig,
    cost: CostFunction,
    *,
    run_dir: str | Path | None = None,
    resume: bool = False,
    progress: bool = True,
) -> SearchResult:
    """Finds the best subnet of `space` inside each limit of `config`, by `config.method`.

    Every limit gets `config.population * config.generations` evaluations of subnets that were not
    evaluated before for any limit, fewer only where its window has no more subnets. The limits take
    turns, generation by generation; each has its own random sequence, and draws parents and its
    winner from all subnets evaluated inside its window.

    Under torch.distributed every rank calls this; ranks take the same decisions, rank 0 writes and
    shows.

    Args:
        space: where to search; may be smaller than the space the supernet was trained on.
        evaluator: scores a subnet, see `Evaluator`.
        config: method, budget, limits, seed.
        cost: parameters and MACs of a subnet, see `model_cost`.
        run_dir: folder for ``search_state.json`` (written during the search) and ``search.json``
            (the result).
        resume: continue from ``search_state.json`` if it is there; the outcome is that of an
            uninterrupted search.
        progress: show a progress bar on a terminal (needs tqdm), lines elsewhere.

    Raises:
        ValueError: a limit that no subnet meets (the message states the reachable sizes), or a
            state to resume that belongs to another search (the message states what differs).
    """
    run = Search(space, evaluator, config, cost, None if run_dir is None else Path(run_dir))
    if resume:
        run.load()
    return run.go(progress)


def changed_settings(folder: Path, config: SearchConfig) -> list[str]:
    """In what `config` differs from the settings of the search in `folder`, finished or begun:
    ``field: stored -> asked`` each; [] if it can go on with `config`, or if there is none.

    Raises:
        ConfigError: the file of the search is something else.
    """
    asked = to_plain(config)
    if (folder / RESULT_FILE).is_file():
        stored = to_plain(SearchResult.load(folder / RESULT_FILE).config)
    elif (folder / STATE_FILE).is_file():
        state = _parse_state(folder / STATE_FILE, read_text(folder / STATE_FILE))
        begun = math.ceil(state["turn"] / len(config.windows))
        stored = {**asked, **state["identity"]["config"], "generations": begun}
    else:
        return []
    for name in _MAY_CHANGE:
        if name != "generations" or asked[name] > stored[name]:
            asked[name] = stored[name]
    return differences(stored, asked, where="search.")


def windows(space: SearchSpace, config: SearchConfig, cost: CostFunction) -> list[Window]:
    """The window of each limit. Raises ValueError for one that no subnet of `space` is in."""
    table = SizeTable.build(space, cost)
    return [Window(space, limit, cost, table) for limit in config.windows]


class Search:
    """A search that can be looked at before it begins: what it cannot do, it says when it is made
    (a limit that nothing meets) and when it is loaded; see `search` for the arguments."""

    def __init__(
        self,
        space: SearchSpace,
        evaluator: Scorer,
        config: SearchConfig,
        cost: CostFunction,
        folder: Path | None,
    ) -> None:
        self.space = space
        self.evaluator = evaluator
        self.scoring = Scoring(evaluator)
        self.config = config
        self.cost = cost
        self.folder = folder
        self.windows = windows(space, config, cost)
        self.breed = (autoformer if config.compat else breeding).next_generation
        self.rngs = [random.Random(_seed(config, limit)) for limit in config.windows]
        self.histories: list[list[dict[str, Any]]] = [[] for _ in self.windows]
        self.archive: dict[Subnet, Candidate] = {}
        self.turn = 0  # generation * number of limits + limit
        self.pending: list[Subnet] | None = None  # the generation of this turn, once it is bred
        self.identity = self._identity()
        self.saved_at = 0.0
        self.process = distributed.current()

    def go(self, progress: bool) -> SearchResult:
        """Takes all remaining turns and saves the result."""
        show = progress and self.process.is_main
        budget = self.config.population * self.config.generations * len(self.windows)
        shown = Progress(budget, len(self.archive), unit="subnet", show=show)
        try:
            while self.turn < self.config.generations * len(self.windows):
                index = self.turn % len(self.windows)
                if not self._exhausted(index):
                    self._take_turn(index, shown)
                self.pending = None
                self.turn += 1
        finally:
            shown.close()
        self.save()
        result = self.result()
        if self.folder is not None and self.process.is_main:
            result.save(self.folder / RESULT_FILE)
        return result

    def _take_turn(self, index: int, shown: Progress) -> None:
        window, rng = self.windows[index], self.rngs[index]
        if self.pending is None:
            parents = [c.subnet for c in self._ranked(window.limit)[: self.config.parents]]
            is_known = self.archive.__contains__
            self.pending = self.breed(self.config, window, parents, is_known, rng)
            if not self.pending and not parents:
                raise window.empty_error()
            self.save()
        try:
            new = [subnet for subnet in self.pending if subnet not in self.archive]
            for subnet, score in zip(new, self.scoring(new), strict=True):
                self.archive[subnet] = Candidate(subnet, *self.cost(subnet), score)
                shown.step()
                if time.monotonic() - self.saved_at > SAVE_SECONDS:
                    self.save()
        except BaseException:  # an interrupt too must not lose what was scored
            self.save()
            raise
        best = self._ranked(window.limit)[0]
        self.histories[index].append(self._record(best))
        figures = f"best accuracy {best.score.accuracy:.2%}, loss {best.score.loss:.4g}"
        shown.show(f"search {window.limit.name}", figures)

    def _record(self, best: Candidate) -> dict[str, Any]:
        scores = [self.archive[subnet].score for subnet in self.pending or ()]
        return {
            "generation": self.turn // len(self.windows),
            "evaluated": len(scores),
            "mean_accuracy": _mean([score.accuracy for score in scores]),
            "mean_loss": _mean([score.loss for score in scores]),
            "best": best.to_dict(),
        }

    def _ranked(self, limit: Limit) -> list[Candidate]:
        inside = (c for c in self.archive.values() if limit.admits(c.params, c.macs))
        if self.config.compat:
            return autoformer.ranked(inside)  # the archive is in the order of evaluation
        return sorted(inside, key=lambda c: rank_key(c, self.config.objective))

    def _exhausted(self, index: int) -> bool:
        """Whether this limit's last generation was not full: its window has no new subnet left."""
        history = self.histories[index]
        return bool(history) and history[-1]["evaluated"] < self.config.population

    def result(self) -> SearchResult:
        limits = tuple(
            LimitResult(window.limit, self._ranked(window.limit)[0], tuple(history))
            for window, history in zip(self.windows, self.histories, strict=True)
        )
        return SearchResult(self.space, self.config, limits, tuple(self.archive.values()))

    def save(self) -> None:
        self.saved_at = time.monotonic()
        if self.folder is not None and self.process.is_main:
            write_atomically(self.folder / STATE_FILE, to_json(self._state()))

    def _identity(self) -> dict[str, Any]:
        """What tells this search from another one, in JSON's types."""
        config = {k: v for k, v in to_plain(self.config).items() if k not in _MAY_CHANGE}
        fingerprint = getattr(self.evaluator, "fingerprint", None)
        return {
            "space": self.space.to_dict(),
            "config": config,
            "evaluator": None if fingerprint is None else fingerprint(),
        }

    def _state(self) -> dict[str, Any]:
        pending = self.pending
        return {
            "identity": self.identity,
            "turn": self.turn,
            "pending": None if pending is None else [subnet.to_dict() for subnet in pending],
            "rng": [rng.getstate() for rng in self.rngs],
            "histories": self.histories,
            "candidates": [candidate.to_dict() for candidate in self.archive.values()],
        }

    def load(self) -> None:
        """Continues from the state on disk, if any. Rank 0 reads, so one disk is enough.

        Raises:
            ValueError: see `search`.
        """
        if self.folder is None:
            return
        path = self.folder / STATE_FILE
        text = read_text(path) if self.process.is_main and path.is_file() else None
        text = self.process.broadcast_text(text)
        if text is None:
            return
        state = _parse_state(path, text)
        self._check_same(state["identity"])
        with content_of(path, _A_STATE):
            self.turn = state["turn"]
            pending = state["pending"]
            self.pending = None if pending is None else [Subnet.from_dict(v) for v in pending]
            for rng, (version, words, gauss) in zip(self.rngs, state["rng"], strict=True):
                rng.setstate((version, tuple(words), gauss))
            self.histories = state["histories"]
            candidates = [Candidate.from_dict(values) for values in state["candidates"]]
            self.archive = {candidate.subnet: candidate for candidate in candidates}
        if self.turn > self.config.generations * len(self.windows):
            done = self.turn // len(self.windows)
            raise ValueError(
                f"{path} has {done} generations already, "
                f"more than the {self.config.generations} asked for"
            )

    def _check_same(self, stored: dict[str, Any]) -> None:
        ours = self.identity
        changed = [
            line
            for part in ("space", "config")
            for line in differences(stored[part], ours[part], where=f"{part}.")
        ]
        if changed:
            raise ConfigError(
                "cannot resume this search, it has other settings (then -> now): "
                + "; ".join(changed)
            )
        if stored["evaluator"] != ours["evaluator"]:
            raise ValueError(
                "cannot resume this search: its scores are of other weights or other images"
            )


def evolution(
    space: SearchSpace, evaluator: Scorer, config: SearchConfig, cost: CostFunction, **options: Any
) -> SearchResult:
    """`search` with the paper's evolution, whatever ``config.method`` says."""
    return search(space, evaluator, replace(config, method="evolution"), cost, **options)


def random_search(
    space: SearchSpace, evaluator: Scorer, config: SearchConfig, cost: CostFunction, **options: Any
) -> SearchResult:
    """`search` with random subnets only, whatever ``config.method`` says: the baseline."""
    return search(space, evaluator, replace(config, method="random"), cost, **options)


def score_random(
    space: SearchSpace,
    evaluator: Scorer,
    cost: CostFunction,
    *,
    count: int = 100,
    seed: int = 0,
    known: Iterable[Candidate] = (),
) -> list[Candidate]:
    """Scores `count` different random subnets of `space` (all of them if it has fewer).

    Args:
        space, evaluator, cost: as for `search`.
        count: how many subnets.
        seed: of the draws.
        known: candidates whose score is taken over instead of computed again.
    """
    drawn = Window(space, Limit(), cost).draw_many(random.Random(seed), count)
    scored = {candidate.subnet: candidate for candidate in known}
    new = [subnet for subnet in drawn if subnet not in scored]
    for subnet, score in zip(new, Scoring(evaluator)(new), strict=True):
        scored[subnet] = Candidate(subnet, *cost(subnet), score)
    return [scored[subnet] for subnet in drawn]


def _parse_state(path: Path, text: str) -> dict[str, Any]:
    with content_of(path, _A_STATE):
        state = json.loads(text)
        missing = {"space", "config", "evaluator"} - set(state["identity"])
        if missing or not isinstance(state["turn"], int):
            raise ValueError(f"it has no {', '.join(sorted(missing)) or 'turn'}")
        return state


def _seed(config: SearchConfig, limit: Limit) -> int | str:
    if config.compat:
        return config.seed
    # By the bounds: adding or renaming a limit leaves the draws of the others alone.
    return f"{config.seed} {limit.window('params')} {limit.window('macs')}"


def _mean(values: Sequence[float]) -> float | str | None:
    return json_number(sum(values) / len(values)) if values else None
