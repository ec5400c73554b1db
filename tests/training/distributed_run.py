"""Runs under torchrun for test_distributed.py: trains cases, saves what each rank ended with."""

from __future__ import annotations

import math
import os
import signal
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

from growtas.base import distributed, stopping  # noqa: E402
from growtas.schedule import GrowTAS, Plateau, Uniform  # noqa: E402
from growtas.training import NonFiniteLossError, Trainer  # noqa: E402
from growtas.training.epoch import EpochFigures  # noqa: E402

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


def build(case: str, folder: Path) -> Trainer:
    """The trainer of one case."""
    strategy, optim, settings = CASES[case]
    return Trainer(supernet(), strategy(), digits(), train_config(**settings), folder, optim=optim)


def train(case: str, folder: Path) -> dict:
    """The end of one case: weights, losses, metrics."""
    return finish(build(case, folder / case))


def finish(run: Trainer) -> dict:
    """The end of a run, begun or not."""
    metrics = dict(run.fit(resume=True).metrics)
    return {
        "weights": {k: v.clone() for k, v in run.final_model.state_dict().items()},
        "losses": getattr(run.strategy, "losses", []),
        "metrics": {k: v for k, v in metrics.items() if k not in ("seconds", "images_per_second")},
    }


def unreadable() -> list[int]:
    """What both ranks together could not read, where each knows of two images."""
    figures = EpochFigures(distributed.start("cpu"), images=1)
    figures.unreadable |= {figures.process.rank, 5}
    return figures.all_unreadable(8)


def stop(folder: Path) -> dict:
    """One rank gets a signal in the second epoch; where this rank stopped, and the end of the run
    when it is continued."""
    run = build("plus", folder / "stop")
    step = run._train_step

    def step_and_signal(images, labels):
        result = step(images, labels)
        if run.process.rank == 1 and run.step == 7:
            os.kill(os.getpid(), signal.SIGTERM)
        return result

    run._train_step = step_and_signal
    code = 0
    with stopping.handled():
        try:
            run.fit()
        except stopping.Stopped as stopped:
            code = stopped.exit_code
    return {"step": run.step, "code": code, **finish(build("plus", folder / "stop"))}


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
    found["unreadable"] = {"images": unreadable()}
    found["stop"] = stop(folder)
    found["nan"] = {"message": diverge(folder)}
    torch.save(found, folder / f"rank{torch.distributed.get_rank()}.pt")


if __name__ == "__main__":
    main()
