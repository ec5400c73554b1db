"""Training a few chosen subnets only, as PreNAS does (Wang et al., 2023): search first, then train.

PreNAS scores subnets before the training and keeps the best one of each size. Its search is not
part of this; `growtas.load_subnets` reads its candidate files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from growtas.base.checks import check, listed
from growtas.schedule.plan import Pass, Phase, Stateless, StepContext, StepPlan
from growtas.schedule.sequence import EpochDraws
from growtas.space import SearchSpace, Subnet
from growtas.space.cost import CostFunction
from growtas.space.subnet import SUBNET_AXES
from growtas.supernet.vit.subnet_files import load_subnets, subnets_in


class Candidates(Stateless):
    """One of the given subnets per step.

    Args:
        subnets: the candidates. One that is listed twice is drawn twice as often.
        group_by: "embed_dim", "depth" or both: candidates that agree in these are a group; a group
            is drawn, each equally likely, then one of its subnets. Empty: no groups.
        sequence: "prenas" for the draws of its code; None for our own, which depend on the run's
            seed.

    Raises:
        ValueError: no candidate, or an unknown name.
    """

    def __init__(
        self,
        subnets: Sequence[Subnet],
        *,
        group_by: Sequence[str] = (),
        sequence: Literal["prenas"] | None = None,
    ) -> None:
        if not subnets:
            raise ValueError("candidates need at least one subnet")
        for axis in group_by:
            check(axis in SUBNET_AXES, "group_by", axis, listed(SUBNET_AXES))
        check(sequence in (None, "prenas"), "sequence of candidates", sequence, "prenas")
        self.subnets = tuple(subnets)
        groups: dict[tuple[int, ...], list[Subnet]] = {}
        for subnet in self.subnets:
            # The order of the axes makes no difference: groups come by first appearance.
            groups.setdefault(tuple(getattr(subnet, a) for a in group_by), []).append(subnet)
        self.groups = list(groups.values())
        self._grouped = bool(group_by)
        self._epoch_draws = EpochDraws(lambda _, rng: self._draw(rng)) if sequence else None
        self._settings = {
            "subnets": [subnet.to_dict() for subnet in self.subnets],
            "group_by": list(group_by),
            "sequence": sequence,
        }

    def phases(self, space: SearchSpace, epochs: int) -> list[Phase]:
        """One phase; ValueError if a candidate is not in `space`."""
        for subnet in self.subnets:
            space.validate(subnet)
        return [Phase(0.0, space, "candidates")]

    def plan(self, context: StepContext) -> StepPlan:
        """One pass of a candidate."""
        draws = self._epoch_draws
        return StepPlan((Pass(draws(context) if draws else self._draw(context.rng)),))

    def _draw(self, rng: Any) -> Subnet:
        # Without groups there is no draw of a group: another sequence than with a single one.
        return rng.choice(rng.choice(self.groups) if self._grouped else self.subnets)

    def state_dict(self) -> dict[str, Any]:
        """What the draws depend on."""
        return self._settings

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Refuse (ValueError) the state of other candidates: the run would not be continued."""
        if dict(state) != self._settings:
            raise ValueError("the candidates, their groups or their sequence were others before")


@dataclass(frozen=True)
class CandidatesConfig:
    """Recipe values of `Candidates`; the subnets come from one of `subnets` and `file`."""

    subnets: list[Any] = field(default_factory=list)  # embed_dim, num_heads, mlp_ratio of each
    file: str | None = None  # a file that `load_subnets` reads, such as PreNAS's candidates
    group_by: tuple[Literal["embed_dim", "depth"], ...] = ()  # draw a group first, then from it
    sequence: Literal["prenas"] | None = None  # PreNAS's draws; null: our own, by train.seed

    def __post_init__(self) -> None:
        if bool(self.subnets) == (self.file is not None):
            raise ValueError("candidates need either subnets or a file")

    def build(self, space: SearchSpace, cost: CostFunction | None) -> Candidates:
        """The strategy."""
        if self.file is None:
            found = subnets_in(self.subnets, "subnets")
        else:
            try:
                found = load_subnets(self.file)
            except OSError as error:
                raise ValueError(f"cannot read candidates: {error}") from None
        return Candidates(list(found.values()), group_by=self.group_by, sequence=self.sequence)
