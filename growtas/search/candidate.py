"""What a search knows about a subnet: its size, its score, and how two of them compare."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, get_args

from growtas.space import Subnet
from growtas.space.cost import Axis

Objective = Literal["accuracy", "loss"]


class Score(NamedTuple):
    """How well a subnet does on the search images."""

    accuracy: float  # share of images whose top-1 prediction is right, 0 to 1
    loss: float  # mean cross-entropy, in nats; NaN or infinity if the logits were
    count: int  # type: ignore[assignment]  # images evaluated, over all processes

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval (Wilson's) of the accuracy: its ends, 0 to 1.

        It says how far the few images at hand allow the accuracy on all images like them to lie
        from theirs. It knows nothing of a choice: the best of many subnets was also lucky on the
        images it was chosen by, so only on other images does the interval mean what it says.
        """
        if not self.count:
            return 0.0, 1.0
        z = 1.959964  # the normal distribution has 95 % of its mass within so many deviations
        share = z * z / self.count
        middle = self.accuracy + share / 2
        reach = z * math.sqrt(
            self.accuracy * (1 - self.accuracy) / self.count + share**2 / z**2 / 4
        )
        low, high = (middle - reach) / (1 + share), (middle + reach) / (1 + share)
        # The interval holds the accuracy, as an end where that is 0 or 1; rounding must not change
        # that.
        return max(0.0, min(low, self.accuracy)), min(1.0, max(high, self.accuracy))


class Scorer(Protocol):
    """Anything that scores a subnet; `growtas.search.Evaluator` is the one for supernets.

    A scorer may also have ``score_many(subnets) -> list[Score]``, which a search then calls with
    many subnets at once, and ``fingerprint() -> str``: a resumed search refuses scores of another
    one.
    """

    def score(self, subnet: Subnet) -> Score:
        """Score of `subnet`; in a distributed search the same on every rank."""


@dataclass(frozen=True)
class Candidate:
    """A subnet that has been evaluated."""

    subnet: Subnet
    params: int
    macs: int
    score: Score

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON; a loss that is not finite becomes text ("nan", "inf")."""
        return {
            "subnet": self.subnet.to_dict(),
            "params": self.params,
            "macs": self.macs,
            "accuracy": self.score.accuracy,
            "loss": json_number(self.score.loss),
            "count": self.score.count,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Candidate:
        """Reads `to_dict`'s form. Raises KeyError if a field is missing."""
        score = Score(values["accuracy"], float(values["loss"]), values["count"])
        return cls(Subnet.from_dict(values["subnet"]), values["params"], values["macs"], score)


def json_number(value: float) -> float | str:
    """`value`, or its text ("nan", "inf") where JSON has no number; `float` reads both back."""
    return value if math.isfinite(value) else str(value)


def check_word(name: str, value: str, allowed: Sequence[str]) -> None:
    """ValueError unless `value` is one of the words `allowed`."""
    if value not in allowed:
        raise ValueError(f"{name} must be {' or '.join(allowed)}, got {value!r}")


def rank_key(candidate: Candidate, objective: Objective = "accuracy") -> tuple[Any, ...]:
    """Sort key, best first: the objective, then the other measure, then fewer parameters, fewer
    MACs, then the subnet itself. Accuracies on few images tie often; the loss is finer.

    No two subnets have equal keys, so a ranking never depends on the order of evaluation.
    """
    measures = [-candidate.score.accuracy, candidate.score.loss]
    if objective == "loss":
        measures.reverse()
    subnet = candidate.subnet
    return (
        *(math.inf if math.isnan(value) else value for value in measures),
        candidate.params,
        candidate.macs,
        subnet.embed_dim,
        subnet.num_heads,
        subnet.mlp_ratio,
    )


def pareto_front(
    candidates: Iterable[Candidate], axis: Axis = "params", objective: Objective = "accuracy"
) -> list[Candidate]:
    """The candidates that no other one beats: at most their size on `axis`, and a better score.

    Returns them by growing size, so by improving score. Of equals one stays, the first by
    `rank_key`.

    Raises:
        ValueError: `axis` is neither "params" nor "macs", or `objective` neither "accuracy" nor
            "loss".
    """
    check_word("axis", axis, get_args(Axis))
    check_word("objective", objective, get_args(Objective))
    front: list[Candidate] = []
    keyed = ((getattr(c, axis), rank_key(c, objective), c) for c in candidates)
    for _, key, candidate in sorted(keyed, key=lambda entry: entry[:2]):
        # Sorted by size: a candidate is on the front if it scores better than all smaller ones.
        if not front or key[0] < rank_key(front[-1], objective)[0]:
            front.append(candidate)
    return front
