"""GrowTAS Fig. 1: larger subnets made from a small trained one, smaller ones from a large one.

Two subnets are trained, each alone and from scratch. Nothing is trained afterwards: larger subnets
take the small one's weights and randomly initialised ones for the rest; smaller subnets take the
leading part of the large one's weights, as weight sharing does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from growtas.analysis.figures import COLOURS, count_axis, new_figure
from growtas.analysis.subject import Subject, cells
from growtas.run.recipe import Recipe
from growtas.schedule import Pass, Phase, Stateless, StepContext, StepPlan
from growtas.space import SearchSpace, Subnet
from growtas.supernet import Supernet
from growtas.training.data import DataBundle
from growtas.training.trainer import Trainer


class ExtendCropRow(NamedTuple):
    """One subnet of the figure."""

    panel: str  # "extend" or "crop"
    role: str  # "trained", or "derived" from the panel's trained subnet
    subnet: str  # JSON
    params: int
    macs_per_image: int
    accuracy_percent: float  # top-1
    loss_nats: float  # mean cross-entropy
    images: int
    split: str


class OneSubnet(Stateless):
    """Trains one subnet of a supernet and nothing else, with the ordinary loss."""

    def __init__(self, subnet: Subnet) -> None:
        self._plan = StepPlan((Pass(subnet),))

    def phases(self, space: SearchSpace, epochs: int) -> list[Phase]:
        """One phase, named after the subnet: a resumed run is held to it."""
        subnet = self._plan.passes[0].subnet
        space.validate(subnet)
        return [Phase(0.0, space, f"only {subnet}")]

    def plan(self, context: StepContext) -> StepPlan:
        """The same at every step."""
        return self._plan


def train_alone(
    recipe: Recipe, data: DataBundle, subnet: Subnet, folder: Path, *, verify: bool = True
) -> Supernet:
    """Trains one subnet from scratch with a recipe's data, augmentation, optimizer and epochs.

    Args:
        recipe: its strategy is not used.
        data: of the recipe.
        subnet: what to train.
        folder: of the training's files; a training there that was finished or interrupted is taken
            over if its settings are these.
        verify: compare its checkpoint with its checksums.

    Returns:
        A supernet in evaluation mode that holds the trained subnet; every other weight is as it was
        initialised (an optimizer would have shrunk them: weight decay reaches what has no
        gradient).

    Raises:
        ValueError: the subnet is not in the space, or `folder` holds another training.
    """
    torch.manual_seed(recipe.train.seed)
    model = recipe.build_model(
        in_chans=data.in_chans, image_size=data.image_size, num_classes=data.num_classes
    )
    initial = {name: value.clone() for name, value in model.state_dict().items()}
    # Evaluations on the way are of the space's ends, which say nothing here.
    config = replace(recipe.train, eval_every=recipe.train.epochs)
    trainer = Trainer(model, OneSubnet(subnet), data, config, folder, optim=recipe.optim)
    trainer.fit(resume=True, verify=verify)
    return extended(trainer.final_model, subnet, initial).eval()


@torch.no_grad()
def extended(model: Supernet, subnet: Subnet, rest: dict[str, torch.Tensor]) -> Supernet:
    """`model`, with `rest` put in the place of every weight that `subnet` does not read.

    Args:
        model: holds the subnet; changed in place.
        subnet: whose weights stay.
        rest: a state dict of the same supernet.
    """
    kept = model.boxes(subnet)
    for name, weight in model.named_parameters():
        fresh = rest[name].to(weight)
        if name in kept:
            box = tuple(slice(size) for size in kept[name])
            fresh = fresh.clone()
            fresh[box] = weight[box]
        weight.copy_(fresh)
    return model


def score_derived(
    subject: Subject, panel: str, trained: Subnet, derived: Sequence[Subnet]
) -> list[ExtendCropRow]:
    """Scores a trained subnet, then what was derived from it, on the subject's images.

    Args:
        subject: holds the trained subnet.
        panel: "extend" or "crop".
        trained: the trained subnet.
        derived: subnets that contain it, or are contained in it; see `derived_subnets`.
    """
    roles = ["trained"] + ["derived"] * len(derived)
    candidates = subject.score([trained, *derived])
    return [
        ExtendCropRow(panel=panel, role=role, split=subject.split, **cells(candidate))
        for role, candidate in zip(roles, candidates, strict=True)
    ]


def plot(rows: Sequence[ExtendCropRow]) -> Any:
    """A matplotlib figure: accuracy against parameters, one panel for each trained subnet, its
    accuracy a dashed line."""
    titles = {
        "extend": "larger subnets from a trained small one\n(the rest randomly initialised)",
        "crop": "smaller subnets from a trained large one\n(cropped)",
    }
    figure = new_figure(
        2, f"no further training; top-1 accuracy on {rows[0].images:,} {rows[0].split} images"
    )
    for axes, (panel, title), colour in zip(figure.axes, titles.items(), COLOURS, strict=False):
        trained, *derived = (row for row in rows if row.panel == panel)
        label = f"{len(derived)} derived subnets"
        axes.plot(*_points(derived), "o", color=colour, ms=4, alpha=0.7, label=label)
        axes.axhline(trained.accuracy_percent, color="black", ls="--", lw=1)
        label = f"trained subnet ({trained.accuracy_percent:.1f} %)"
        axes.plot(*_points([trained]), "*", color="black", ms=13, label=label)
        axes.set_title(title, fontsize=9)
        axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.16))
        count_axis(axes, "parameters")
    figure.axes[0].set_ylabel("top-1 accuracy [%]")
    return figure


def _points(rows: Sequence[ExtendCropRow]) -> tuple[list[int], list[float]]:
    return [row.params for row in rows], [row.accuracy_percent for row in rows]
