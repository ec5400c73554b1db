"""Uniform sampling of the whole space, single-path one-shot training as in AutoFormer (2021)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from growtas.base.checks import listed
from growtas.schedule.plan import Pass, Phase, Stateless, StepContext, StepPlan
from growtas.schedule.sequence import SEQUENCES, EpochDraws, SequenceName, draw
from growtas.schedule.stratify import StratifiedDraws, Stratify
from growtas.space import SearchSpace, Subnet
from growtas.space.cost import CostFunction


class Uniform(Stateless):
    """One subnet per step with the ordinary loss, every choice uniform, in a single phase.

    Args:
        sequence: whose draws to repeat, "autoformer", "prenas" or "growtas" (see
            `growtas.schedule.sequence`); None for our own, which depend on the run's seed.
        stratify: draw all sizes of a window equally often instead.
        cost: size of a subnet; needed by `stratify` to plan, not to be constructed.

    Raises:
        ValueError: an unknown sequence, or both a sequence and `stratify`.
    """

    def __init__(
        self,
        *,
        sequence: str | None = None,
        stratify: Stratify | None = None,
        cost: CostFunction | None = None,
    ) -> None:
        if sequence is not None and sequence not in SEQUENCES:
            raise ValueError(f"sequence is {sequence!r}; known: {listed(SEQUENCES)}")
        if sequence is not None and stratify is not None:
            raise ValueError(
                f"sequence {sequence!r} and stratify both say what is drawn; use one of them"
            )
        self.sequence = sequence
        self.stratify = stratify
        self._strata = StratifiedDraws(stratify, cost) if stratify and cost else None
        self._draw: Callable[[StepContext], Subnet] = _own_draw
        if sequence is not None:
            self._draw = EpochDraws(partial(draw, sequence))
        elif stratify is not None:
            self._draw = self._strata or _no_cost

    def phases(self, space: SearchSpace, epochs: int) -> list[Phase]:
        """One phase over the whole space; ValueError if `stratify` finds nothing in it."""
        return self._prepared([Phase(0.0, space, "uniform")])

    def plan(self, context: StepContext) -> StepPlan:
        """One pass of a subnet drawn from the space of the phase."""
        return StepPlan((Pass(self._draw(context)),))

    def notes(self) -> list[str]:
        """Which bins of `stratify` are empty."""
        return self._strata.notes() if self._strata else []

    def state_dict(self) -> dict[str, Any]:
        """The settings that the draws depend on, where they are not the default."""
        state: dict[str, Any] = {}
        if self.sequence is not None:
            state["sequence"] = self.sequence
        if self.stratify is not None:
            state["stratify"] = asdict(self.stratify)
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Refuse (ValueError) the state of other draws: the run would not be continued."""
        ours = Uniform.state_dict(self)
        if dict(state) != ours:
            raise ValueError(f"the strategy drew with {dict(state)}, this one draws with {ours}")

    def _prepared(self, phases: list[Phase]) -> list[Phase]:
        if self._strata is not None:
            self._strata.prepare(phases)
        return phases


def _own_draw(context: StepContext) -> Subnet:
    return context.phase.space.sample(context.rng)


def _no_cost(context: StepContext) -> Subnet:
    raise ValueError("stratify needs the size of a subnet: give the strategy a cost function")


@dataclass(frozen=True)
class UniformConfig:
    """Recipe values of `Uniform`."""

    sequence: SequenceName | None = None  # whose draws to repeat; null: our own, by train.seed
    stratify: Stratify | None = None  # axis, min, max, bins: draw all sizes equally often

    def build(self, space: SearchSpace, cost: CostFunction | None) -> Uniform:
        """The strategy."""
        return Uniform(sequence=self.sequence, stratify=self.stratify, cost=cost)
