"""Training strategies: generators of step plans, data in and data out, without a tensor."""

from growtas.schedule.candidates import Candidates
from growtas.schedule.growtas import GrowTAS, PlusPhase, Stage, growtas_preset
from growtas.schedule.plan import (
    Pass,
    Phase,
    Stateless,
    StepContext,
    StepPlan,
    Strategy,
    phase_at,
    total_epochs,
)
from growtas.schedule.registry import build_strategy
from growtas.schedule.stratify import Stratify
from growtas.schedule.transition import Plateau
from growtas.schedule.uniform import Uniform

__all__ = [
    "Candidates",
    "GrowTAS",
    "Pass",
    "Phase",
    "Plateau",
    "PlusPhase",
    "Stage",
    "Stateless",
    "StepContext",
    "StepPlan",
    "Strategy",
    "Stratify",
    "Uniform",
    "build_strategy",
    "growtas_preset",
    "phase_at",
    "total_epochs",
]
