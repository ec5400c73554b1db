"""What an analysis looks at: a supernet, a name for it, and what scores its subnets."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from growtas.base.config import ConfigError, differences
from growtas.base.optional import require
from growtas.run.folder import Run, Say, Split
from growtas.search import Candidate, CostFunction, Scorer, model_cost
from growtas.search.scoring import Scoring
from growtas.space import SearchSpace, Subnet

if TYPE_CHECKING:
    from growtas.supernet import Supernet

T = TypeVar("T")

# Data settings that change no image; everything else must agree for accuracies to be comparable.
_FREE = ("batch_size:", "download:", "eval_batch_size:", "workers:")


@dataclass(frozen=True)
class Subject:
    """A supernet under analysis.

    Args:
        name: label in tables and figures.
        model: the supernet; gives the space and the sizes of subnets.
        evaluator: scores a subnet, see `growtas.search.Evaluator`.
        split: what the evaluator's images are; a label.
        progress: show a progress bar (needs tqdm).
    """

    name: str
    model: Supernet
    evaluator: Scorer
    split: str = "search"
    progress: bool = False

    @property
    def space(self) -> SearchSpace:
        """The space its subnets come from."""
        return self.model.space

    @property
    def cost(self) -> CostFunction:
        """Parameters and multiply-adds of a subnet."""
        return model_cost(self.model)

    def score(self, subnets: Iterable[Subnet]) -> list[Candidate]:
        """Every subnet with its size and score, in the order given."""
        cost, given = self.cost, list(subnets)
        shown = with_bar(given, self.name, self.progress)
        return [
            Candidate(subnet, *cost(subnet), score)
            for subnet, score in zip(shown, Scoring(self.evaluator)(given), strict=True)
        ]


def with_bar(items: Iterable[T], label: str, show: bool, unit: str = "subnet") -> Iterable[T]:
    """`items`, behind a progress bar on a terminal if `show`."""
    if not show:
        return items
    return require("tqdm", "train").tqdm(items, desc=label, unit=unit, disable=None)


def cells(candidate: Candidate) -> dict[str, Any]:
    """What the rows of every analysis say about a subnet that was scored."""
    score = candidate.score
    return {
        "subnet": subnet_text(candidate.subnet),
        "params": candidate.params,
        "macs_per_image": candidate.macs,
        "accuracy_percent": 100 * score.accuracy,
        "loss_nats": score.loss,
        "images": score.count,
    }


def subnet_text(subnet: Subnet) -> str:
    """A subnet as the JSON of a CSV cell; ``growtas evaluate --subnet`` reads it."""
    return json.dumps(subnet.to_dict())


def named_folders(folders: Sequence[str]) -> dict[str, Path]:
    """Folders by their last part, or by their whole path where two are called the same.

    Raises:
        ConfigError: no folder, or one that is given twice.
    """
    if not folders:
        raise ConfigError("no run is given: name the folder of one, such as runs/digits")
    paths = [Path(folder) for folder in folders]
    if len({path.resolve() for path in paths}) < len(paths):
        raise ConfigError(f"a run is given twice: {', '.join(folders)}")
    names = [path.resolve().name for path in paths]
    return {
        name if names.count(name) == 1 else str(path): path
        for path, name in zip(paths, names, strict=True)
    }


def open_runs(
    folders: Sequence[str], overrides: Sequence[str], say: Say, *, verify: bool = True
) -> dict[str, Run]:
    """Trained runs by name (`named_folders`), made sure that their accuracies can be compared.

    Args:
        folders: of the runs.
        overrides: of their recipes.
        say, verify: as for `Run`.

    Raises:
        ConfigError: no folder, one that is no run, has no supernet or is given twice, or runs that
            differ in their classes or in the images they read.
    """
    runs = {
        name: Run.open(path, overrides, say, verify=verify)
        for name, path in named_folders(folders).items()
    }
    for run in runs.values():
        _check_alike(next(iter(runs.values())), run)
    return runs


def _check_alike(first: Run, other: Run) -> None:
    classes = [run.model.config["num_classes"] for run in (first, other)]
    if classes[0] != classes[1]:
        raise ConfigError(
            f"{first.folder} has {classes[0]} classes and {other.folder} {classes[1]}: their "
            "accuracies cannot be compared"
        )
    settings = [
        {"data": recipe["data"], "search": {"max_images": recipe["search"]["max_images"]}}
        for recipe in (first.recipe.to_dict(), other.recipe.to_dict())
    ]
    changed = [
        line for line in differences(*settings) if not line.removeprefix("data.").startswith(_FREE)
    ]
    if changed:
        raise ConfigError(
            f"{first.folder} and {other.folder} read different images ({'; '.join(changed)}): "
            "their accuracies cannot be compared"
        )


def subject_of(run: Run, name: str, split: Split) -> Subject:
    """A run's trained supernet with an evaluator of one of its splits.

    Raises:
        ConfigError: overrides changed what the supernet was trained with.
    """
    show = run.recipe.train.progress and run.process.is_main
    return Subject(name, run.model, run.evaluator(split), split, show)
