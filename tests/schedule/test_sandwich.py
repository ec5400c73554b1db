"""The seam: another training method, written with public names only, needs nothing but data."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from growtas.schedule import Pass, Phase, Stateless, StepContext, StepPlan, Strategy, total_epochs
from growtas.space import SearchSpace

SPACE = SearchSpace.preset("digits")


class Sandwich(Stateless):
    """Sandwich rule with in-place distillation (BigNAS): the largest subnet learns from the labels,
    random ones and the smallest from it. Remembers the mean loss of the largest."""

    def __init__(self, randoms: int = 2) -> None:
        self.randoms = randoms
        self.total, self.steps = 0.0, 0

    def phases(self, space: SearchSpace, epochs: int) -> list[Phase]:
        return [Phase(0, space, "sandwich")]

    def plan(self, context: StepContext) -> StepPlan:
        space = context.phase.space
        students = [space.sample(context.rng) for _ in range(self.randoms)] + [space.smallest()]
        return StepPlan(
            (
                Pass(space.largest(), tag="largest"),
                *(Pass(s, loss="kd:largest", regularise=False) for s in students),
            )
        )

    def observe(self, plan: StepPlan, losses: Sequence[float]) -> None:
        self.total, self.steps = self.total + losses[0], self.steps + 1

    def state_dict(self) -> dict[str, Any]:
        return {"total": self.total, "steps": self.steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.total, self.steps = state["total"], state["steps"]


def run(strategy: Strategy, steps: range, epochs: int = 4) -> list[StepPlan]:
    """What a trainer does with a strategy, without the training."""
    (phase,) = strategy.phases(SPACE, epochs)
    plans = []
    for step in steps:
        plan = strategy.plan(StepContext(random.Random(step), step, step / 10, phase, step % 10))
        strategy.observe(plan, [1.0 + step] * len(plan.passes))
        plans.append(plan)
    return plans


def test_plan_is_largest_random_smallest():
    (plan,) = run(Sandwich(), range(1))
    largest, *randoms, smallest = plan.passes
    assert (largest.subnet, smallest.subnet) == (SPACE.largest(), SPACE.smallest())
    assert [step.loss for step in plan.passes] == ["ce", "kd:largest", "kd:largest", "kd:largest"]
    assert [step.teacher for step in plan.passes] == [None, "largest", "largest", "largest"]
    assert [step.regularise for step in plan.passes] == [True, False, False, False]
    assert all(step.subnet in SPACE for step in randoms)


def test_a_resumed_run_continues_the_sequence_and_the_state():
    whole, first, second = Sandwich(), Sandwich(), Sandwich()
    plans = run(whole, range(6))
    start = run(first, range(3))
    second.load_state_dict(first.state_dict())
    assert start + run(second, range(3, 6)) == plans
    assert second.state_dict() == whole.state_dict() == {"total": 21.0, "steps": 6}


def test_ordinary_functions_accept_it():
    assert total_epochs(Sandwich(), 4) == 4
    with pytest.raises(ValueError, match="tags of earlier passes: none"):
        StepPlan(run(Sandwich(), range(1))[0].passes[1:])
