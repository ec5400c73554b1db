"""When a stage of GrowTAS ends: by the calendar, or when its training loss stops falling.

The paper fixes its transitions before the training and names a choice by training signals, such as
the reduction of the loss, as an open extension (section 5).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from growtas.base.checks import at_least
from growtas.schedule.plan import Phase


@dataclass(frozen=True)
class Plateau:
    """A stage ends when its loss stops falling.

    After each epoch: if the epoch's mean training loss is below (1 - min_delta) times the best one
    of the stage, it is the new best. Once `patience` epochs in a row were not, and the stage has
    had `min_epochs`, the next stage begins. It begins at its own `start` at the latest.

    Args:
        min_delta: share of the best loss that counts as progress.
        patience: epochs without progress that end the stage.
        min_epochs: shortest stage; long enough for a warm-up of the learning rate.

    Raises:
        ValueError: a number out of range.
    """

    min_delta: float = 0.01
    patience: int = 5
    min_epochs: int = 10

    def __post_init__(self) -> None:
        if not 0 <= self.min_delta < 1:
            raise ValueError(f"min_delta must be in [0, 1), got {self.min_delta}")
        for name in ("patience", "min_epochs"):
            at_least(name, getattr(self, name), 1)

    @property
    def shortest(self) -> int:
        """Epochs that a stage has at least: the first one is always progress."""
        return max(self.min_epochs, self.patience + 1)


class PlateauWatch:
    """The stage that a run is in, by its losses so far.

    Args:
        rule: when a stage ends.
        stages: number of stages; phases after them (GrowTAS+) begin at their own start.
    """

    def __init__(self, rule: Plateau, stages: int) -> None:
        self.rule = rule
        self.stages = stages
        self.began = [0]  # epoch at which each stage so far began
        self.best = math.inf
        self.stale = 0  # epochs since the best loss
        self._notes: list[str] = []

    def index(self, phases: Sequence[Phase], epoch: float) -> int:
        """Index of the phase at `epoch`: the last one that has started, by its start or before."""
        started = sum(phase.start <= epoch for phase in phases)
        return max(started, sum(begun <= epoch for begun in self.began)) - 1

    def end_epoch(self, phases: Sequence[Phase], epoch: int, loss: float) -> None:
        """Count the loss of the epoch before `epoch`; decide whether a stage begins now."""
        stage = len(self.began)  # the one that this loss is of, from 1
        if stage >= self.stages:
            return
        if loss < self.best * (1 - self.rule.min_delta):
            self.best, self.stale = loss, 0
        else:
            self.stale += 1
        if self.stale >= self.rule.patience and epoch - self.began[-1] >= self.rule.min_epochs:
            share, count = f"{100 * self.rule.min_delta:g} %", self.rule.patience
            span = f"{count} epochs" if count > 1 else "an epoch"
            self._begin(epoch, f"loss {self.best:.4g} had not improved by {share} for {span}")
        elif phases[stage].start <= epoch:
            self._begin(epoch, "its latest start")

    def _begin(self, epoch: int, reason: str) -> None:
        self.began.append(epoch)
        self.best, self.stale = math.inf, 0
        self._notes.append(f"stage {len(self.began)} begins at epoch {epoch}: {reason}")

    def notes(self) -> list[str]:
        """The stages that began since the last call, and why."""
        notes, self._notes = self._notes, []
        return notes

    def state_dict(self) -> dict[str, Any]:
        """The rule and what it has seen."""
        return {
            "rule": asdict(self.rule),
            "began": list(self.began),
            "best": self.best,
            "stale": self.stale,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`; ValueError if that followed another rule."""
        if state["rule"] != asdict(self.rule):
            raise ValueError(
                f"the stages ended by the rule {state['rule']}, now by {asdict(self.rule)}"
            )
        self.began = list(state["began"])
        self.best, self.stale = state["best"], state["stale"]
