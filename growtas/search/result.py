"""What a search returns, and its JSON form."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from growtas.base.atomic import write_atomically
from growtas.base.config import content_of, read_text, to_plain
from growtas.search.candidate import Axis, Candidate, Score, pareto_front, rank_key
from growtas.search.config import Limit, SearchConfig
from growtas.space import SearchSpace, Subnet


@dataclass(frozen=True)
class LimitResult:
    """The outcome for one limit."""

    limit: Limit
    best: Candidate
    # One entry per generation: its number (`generation`), how many subnets it evaluated
    # (`evaluated`), their `mean_accuracy` and `mean_loss`, and the best subnet inside the limit so
    # far (`best`, a `Candidate` dict).
    history: tuple[Mapping[str, Any], ...]

    @property
    def subnet(self) -> Subnet:
        """The best subnet."""
        return self.best.subnet

    @property
    def params(self) -> int:
        """Its parameters."""
        return self.best.params

    @property
    def macs(self) -> int:
        """Its multiply-adds."""
        return self.best.macs

    @property
    def score(self) -> Score:
        """Its score on the search images."""
        return self.best.score

    @property
    def random_accuracy(self) -> float | None:
        """Mean accuracy of the first generation on the search images: random subnets inside the
        limit, so what a model of this size has without a search. None if it is not known."""
        mean = self.history[0]["mean_accuracy"] if self.history else None
        return None if mean is None else float(mean)


@dataclass(frozen=True)
class SearchResult:
    """The best subnet for each limit, and everything that was evaluated on the way."""

    space: SearchSpace
    config: SearchConfig
    limits: tuple[LimitResult, ...]
    candidates: tuple[Candidate, ...]  # in order of evaluation

    def including(self, candidates: Iterable[Candidate]) -> SearchResult:
        """The result with further subnets, scored on the same images: the front is then that of
        everything evaluated, and no winner is beaten by a subnet inside its limit.

        With ``config.compat`` the winners stay those of the other program.

        Args:
            candidates: subnets evaluated elsewhere; those that are here already change nothing.
        """
        known = {candidate.subnet for candidate in self.candidates}
        new = [candidate for candidate in candidates if candidate.subnet not in known]
        if not new:
            return self

        def best(entry: LimitResult) -> Candidate:
            inside = [entry.best, *(c for c in new if entry.limit.admits(c.params, c.macs))]
            return min(inside, key=lambda c: rank_key(c, self.config.objective))

        limits = self.limits
        if self.config.compat is None:
            limits = tuple(replace(entry, best=best(entry)) for entry in limits)
        return replace(self, limits=limits, candidates=(*self.candidates, *new))

    def __getitem__(self, name: str) -> LimitResult:
        """The result for the limit of this name. Raises KeyError stating the names there are."""
        by_name = {result.limit.name: result for result in self.limits}
        if name not in by_name:
            raise KeyError(f"no limit {name!r}; there are {list(by_name)}")
        return by_name[name]

    def front(self, axis: Axis = "params") -> list[Candidate]:
        """Pareto front of all candidates: size on `axis` against the objective of the search."""
        return pareto_front(self.candidates, axis, self.config.objective)

    def ranked(self) -> list[Candidate]:
        """All candidates, best first."""
        return sorted(self.candidates, key=lambda c: rank_key(c, self.config.objective))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON; `from_dict` reads them back."""
        return {
            "space": self.space.to_dict(),
            "config": to_plain(self.config),
            "limits": [
                {
                    "name": result.limit.name,
                    "best": result.best.to_dict(),
                    "history": [dict(entry) for entry in result.history],
                }
                for result in self.limits
            ],
            "candidates": [candidate.to_dict() for candidate in self.candidates],
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SearchResult:
        """Reads `to_dict`'s form. Raises KeyError if a field is missing."""
        config = SearchConfig(**values["config"])
        limits = zip(config.windows, values["limits"], strict=True)
        return cls(
            SearchSpace.from_dict(values["space"]),
            config,
            tuple(
                LimitResult(limit, Candidate.from_dict(v["best"]), tuple(v["history"]))
                for limit, v in limits
            ),
            tuple(Candidate.from_dict(v) for v in values["candidates"]),
        )

    def to_json(self) -> str:
        """The result as JSON text."""
        return to_json(self.to_dict())

    @classmethod
    def from_json(cls, text: str) -> SearchResult:
        """Reads what `to_json` wrote."""
        return cls.from_dict(json.loads(text))

    def save(self, path: str | Path) -> None:
        """Writes the result to a JSON file; the file is either complete or not there."""
        write_atomically(path, self.to_json())

    @classmethod
    def load(cls, path: str | Path) -> SearchResult:
        """Reads a file that `save` wrote. Raises ValueError if it is something else."""
        text = read_text(path)
        with content_of(path, "the result of a search"):
            return cls.from_json(text)


def to_json(values: Mapping[str, Any]) -> str:
    """JSON with one line per entry of the top-level lists: small, yet readable and diffable."""
    lines = []
    for key, value in values.items():
        if isinstance(value, Sequence) and not isinstance(value, str) and value:
            entries = ",\n  ".join(json.dumps(entry, allow_nan=False) for entry in value)
            lines.append(f"{json.dumps(key)}: [\n  {entries}\n ]")
        else:
            lines.append(f"{json.dumps(key)}: {json.dumps(value, allow_nan=False)}")
    return "{\n " + ",\n ".join(lines) + "\n}\n"
