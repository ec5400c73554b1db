"""Runs under torchrun for test_distributed.py: trains cases, saves what each rank ended with."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from pathlib import Path

import torch

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]

from training.training_setup import (  # noqa: E402
    FREEZE,
    RATE,
    Sandwich,
    digits,
    growtas_plus,
    supernet,
    train_config,
)

from growtas.schedule import GrowTAS, Plateau, Uniform  # noqa: E402
from growtas.training import NonFiniteLossError, Trainer  # noqa: E402

STEEP = replace(RATE, eps=1e-3)  # Adam is then smooth in the gradient: rounding stays rounding


class Observer(Uniform):
    """Keeps the losses it is told."""

    def __init__(self):
        super().__init__()
        self.losses = []

    def observe(self, plan, losses):
        self.losses += list(losses)


def adaptive() -> GrowTAS:
    """Stage 2 begins after one epoch without progress, on all ranks or the weights differ."""
    rule = Plateau(min_delta=0.9, patience=1, min_epochs=1)
    return GrowTAS([(0, FREEZE), (3, {})], transition=rule, sequence="growtas")


CASES = {
    "uniform": (Observer, STEEP, {}),
    "sandwich": (Sandwich, STEEP, {}),
    "plus": (growtas_plus, replace(STEEP, inactive="masked"), {"ema_decay": 0.9}),
    "pieces": (Uniform, STEEP, {"accumulate": 2}),
    "graphed": (growtas_plus, STEEP, {"ema_decay": 0.9, "graph": "on"}),
    "adaptive": (adaptive, STEEP, {"epochs": 4}),
}


def train(case: str, folder: Path) -> dict:
    """The end of one case: weights, losses, metrics."""
    strategy_type, optim, settings = CASES[case]
    strategy = strategy_type()
    run = Trainer(
        supernet(), strategy, digits(), train_config(**settings), folder / case, optim=optim
    )
    result = run.fit()
    metrics = dict(result.metrics)
    return {
        "weights": {k: v.clone() for k, v in run.final_model.state_dict().items()},
        "losses": getattr(strategy, "losses", []),
        "metrics": {k: v for k, v in metrics.items() if k not in ("seconds", "images_per_second")},
    }


def diverge(folder: Path) -> str:
    """One rank's loss becomes NaN in the second epoch; what this rank raised."""
    run = Trainer(supernet(), Uniform(), digits(), train_config(), folder / "nan", optim=RATE)
    step = run._train_step

    def poison(images, labels):
        if run.process.rank == 1 and run.step == 7:
            images[0] = math.nan
        return step(images, labels)

    run._train_step = poison
    try:
        run.fit()
    except NonFiniteLossError as error:
        return str(error)
    return "no error"


def main() -> None:
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    found = {case: train(case, folder) for case in CASES}
    found["nan"] = {"message": diverge(folder)}
    torch.save(found, folder / f"rank{torch.distributed.get_rank()}.pt")


if __name__ == "__main__":
    main()
