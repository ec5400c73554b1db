"""What `optim.inactive` means for the weights that a GrowTAS stage adds, on real digits.

    python -m benchmarks.studies.optimizer_semantics            # a few minutes on one core
    python -m benchmarks.studies.optimizer_semantics --epochs 4 --out /tmp/quick

Trains the recipe `digits` with `--epochs` epochs, the second stage beginning halfway, and looks at
the weight matrices' entries that every subnet with the new embedding width reads and no subnet of
the first stage does:

- before the transition, their root mean square over its value at the start of the run;
- after it, at each step that samples them, the mean size of their update without weight decay, over
  the learning rate. The first step of a fresh AdamW has size 1.

Writes optimizer_semantics.csv (one measured number a row) and optimizer_semantics.svg. The CSV also
has, computed rather than measured, what the published recipes' learning rates and weight decay
leave of such weights at their transition.
"""

from __future__ import annotations

import contextlib
import csv
import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import command
from growtas.run.recipe import Recipe
from growtas.schedule import StepContext, StepPlan, Strategy
from growtas.supernet import Supernet
from growtas.training import Trainer, build_data
from growtas.training.boxes import boxes_outside
from growtas.training.learning_rate import LearningRate, segment_of

IMAGENET_STEPS = 1251  # per epoch, at 1,024 images each
PUBLISHED = ("autoformer-tiny", "autoformer-small", "autoformer-base")
AFTER = 4  # epochs trained beyond the transition

Row = tuple[str, str, float, float]  # variant, quantity, x, value


@dataclass(frozen=True)
class Variant:
    """One run: its label, colour and what it changes in the recipe."""

    name: str
    colour: str
    overrides: tuple[str, ...]
    line: str = "-"  # matplotlib's line style before the transition
    after: bool = True  # train beyond the transition


VARIANTS = (
    Variant("dense", "#9a3b3b", ("optim.inactive=dense",)),
    Variant("masked", "#3d8568", ("optim.inactive=masked",)),
    Variant(
        "dense, reset_moments",
        "#7a6aa8",
        ("optim.inactive=dense", "strategy.reset_moments=true"),
        line="--",  # the same numbers as "dense" until then
    ),
    Variant(
        "dense, weight decay 1.0 instead of 0.05",
        "#c98b5a",
        ("optim.inactive=dense", "optim.weight_decay=1.0"),
        after=False,
    ),
)


class Watched:
    """A strategy that shows somebody every step's context before it plans."""

    def __init__(self, strategy: Strategy, watch: Callable[[StepContext], None]) -> None:
        self._strategy = strategy
        self._watch = watch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._strategy, name)

    def plan(self, context: StepContext) -> StepPlan:
        """The strategy's own plan."""
        self._watch(context)
        return self._strategy.plan(context)


class Seen(Exception):
    """Enough was measured."""


def published() -> list[Row]:
    """For each published recipe, the sum of lr * weight_decay over the steps before T1, and the
    factor that leaves of a weight that decays and is not sampled."""
    rows: list[Row] = []
    for name in PUBLISHED:
        recipe = Recipe.load(name, ("data.root=unused",))
        epochs, batch = recipe.train.epochs, recipe.data.batch_size
        phases = recipe.build_strategy(recipe.build_space()).phases(recipe.build_space(), epochs)
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        segment = segment_of(phases[:2], 0, epochs, recipe.optim)
        rate = LearningRate(optimizer, segment, batch, IMAGENET_STEPS)
        log_factor = 0.0
        for epoch in range(round(phases[1].start)):  # the rate changes once an epoch
            rate.set(epoch * IMAGENET_STEPS)
            decay = optimizer.param_groups[0]["lr"] * recipe.optim.weight_decay
            log_factor += IMAGENET_STEPS * math.log1p(-decay)
        rows += [
            (name, "log of the factor left at T1, computed", phases[1].start, log_factor),
            (name, "factor left at T1, computed", phases[1].start, math.exp(log_factor)),
        ]
    return rows


def measure(variant: Variant, epochs: int, folder: Path) -> list[Row]:
    """One run's rows."""
    half = epochs // 2
    overrides = (
        f"train.epochs={epochs}",
        "train.progress=false",
        f"train.eval_every={epochs}",
        f"train.checkpoint_every={epochs}",
        "strategy.plus=false",
        *variant.overrides,
    )
    recipe = Recipe.load("digits", overrides)
    data = build_data(recipe.data, recipe.augment)
    torch.manual_seed(recipe.train.seed)
    model = recipe.build_model(
        in_chans=data.in_chans, image_size=data.image_size, num_classes=data.num_classes
    )
    strategy = recipe.build_strategy(model.space)
    stages = strategy.phases(model.space, epochs)
    width = model.space.embed_dim[-1]
    read = new_entries(model, stages[0].space.largest(), model.space.restrict(embed_dim=width))

    def entries() -> Tensor:
        return torch.cat([part.detach().flatten() for part in read])

    start = entries().square().mean().sqrt()
    rows: list[Row] = []
    last: tuple[Tensor, float, bool] | None = None

    def watch(context: StepContext) -> None:
        """Called before each step, so the weights show what the step before did."""
        nonlocal last
        now = entries()
        steps = context.step - round(half * trainer.steps_per_epoch)
        if context.position == 0 and steps <= 0:
            left = float(now.square().mean().sqrt() / start)
            rows.append((variant.name, "rms over initial rms", context.epoch, left))
        if last is not None and last[2]:
            before, lr, _ = last
            update = now - before * (1 - lr * recipe.optim.weight_decay)
            rows.append((variant.name, "update over lr", steps, float(update.abs().mean() / lr)))
        if steps >= (AFTER * trainer.steps_per_epoch if variant.after else 0):
            raise Seen
        # The plan is a function of the context's generator: drawing it and putting the state back
        # tells what it is going to be.
        state = context.rng.getstate()
        sampled = strategy.plan(context).passes[0].subnet.embed_dim == width
        context.rng.setstate(state)
        last = (now, float(trainer.optimizer.param_groups[0]["lr"]), steps >= 0 and sampled)

    trainer = Trainer(
        model,
        Watched(strategy, watch),
        data,
        recipe.train,
        folder,
        optim=recipe.optim,
    )
    with contextlib.suppress(Seen):
        trainer.fit()
    return rows


def new_entries(model: Supernet, old: Any, new: Any) -> list[Tensor]:
    """Views of the decayed matrices' entries that all of `new` reads and `old` does not."""
    inner, outer = model.extents(old), model.extents(new.smallest())
    free = model.no_weight_decay()
    return [
        parameter[box]
        for name, parameter in model.named_parameters()
        if name in outer and parameter.dim() > 1 and name not in free and "bias" not in name
        for box in boxes_outside([outer[name]], [inner[name]] if name in inner else [])
    ]


def draw(rows: list[Row], path: Path, epochs: int) -> None:
    """The two panels."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    pyplot.rcParams["svg.hashsalt"] = "growtas"  # the same file from the same numbers
    figure, (decay, kick) = pyplot.subplots(1, 2, figsize=(9.2, 3.4))
    for variant in VARIANTS:
        points = [(x, y) for v, q, x, y in rows if (v, q) == (variant.name, "rms over initial rms")]
        style = {"color": variant.colour, "linestyle": variant.line}
        decay.plot(*zip(*points, strict=True), label=variant.name, **style)
        points = [(x, y) for v, q, x, y in rows if (v, q) == (variant.name, "update over lr")]
        if points:
            kick.plot(*zip(*points, strict=True), color=variant.colour, marker=".", linewidth=0.8)
    decay.set(xlabel="epoch", ylabel="root mean square, 1 at the start", ylim=(0, 1.05))
    decay.set_title("New weights before the transition", fontsize=10)
    kick.set(
        xlabel="steps after the transition", ylabel="mean update / learning rate", ylim=(0, None)
    )
    kick.set_title("Their updates after it, where sampled", fontsize=10)
    for axis in (decay, kick):
        axis.spines[["top", "right"]].set_visible(False)
    handles, labels = decay.get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=4, frameon=False, fontsize=8)
    figure.suptitle(f"digits recipe, {epochs} epochs, second stage from {epochs // 2}", fontsize=9)
    figure.tight_layout(rect=(0, 0.07, 1, 1))
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def main() -> None:
    parser = command.parser("studies.optimizer_semantics", __doc__)
    parser.add_argument("--epochs", type=int, default=60, help="of each run, an even number")
    parser.add_argument("--out", type=Path, default=Path("docs"), help="folder of the two files")
    args = parser.parse_args()
    if args.epochs < 2 or args.epochs % 2:
        parser.error(f"--epochs is {args.epochs}; allowed: an even number of at least 2")
    rows = published()
    for variant in VARIANTS:
        with tempfile.TemporaryDirectory() as folder:
            rows += measure(variant, args.epochs, Path(folder))
        print(f"{variant.name}: done", flush=True)
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "optimizer_semantics.csv"
    with open(path, "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["variant", "quantity", "epoch or step", "value"])
        writer.writerows((v, q, f"{x:g}", f"{y:.6g}") for v, q, x, y in rows)
    draw(rows, path.with_suffix(".svg"), args.epochs)
    print(f"{path}, {path.with_suffix('.svg')}")


if __name__ == "__main__":
    main()
