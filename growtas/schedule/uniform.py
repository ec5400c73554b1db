"""Uniform sampling of the whole space, single-path one-shot training as in AutoFormer (2021)."""

from __future__ import annotations

from growtas.schedule.plan import Pass, Phase, Stateless, StepContext, StepPlan
from growtas.space import SearchSpace


class Uniform(Stateless):
    """One subnet per step with the ordinary loss, every choice uniform, in a single phase."""

    def phases(self, space: SearchSpace, epochs: int) -> list[Phase]:
        """One phase over the whole space."""
        return [Phase(0.0, space, "uniform")]

    def plan(self, context: StepContext) -> StepPlan:
        """One pass of a subnet drawn from the space of the phase."""
        return StepPlan((Pass(context.phase.space.sample(context.rng)),))
