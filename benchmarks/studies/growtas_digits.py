"""Uniform sampling, GrowTAS and GrowTAS+ after equally many optimizer steps, on real digits.

    python -m benchmarks.studies.growtas_digits             # 30 runs, then the report
    python -m benchmarks.studies.growtas_digits --report    # the report of what is finished
    python -m benchmarks.studies.growtas_digits --quick --folder /tmp/quick   # a minute, to try it

Every run is the recipe `digits` with another strategy, seed and number of epochs, in a process of
its own with one thread. A finished run leaves one JSON file and is not repeated, so the study can
be stopped and started again. The report is a CSV file with every measured number, a chart and the
tables in docs/evidence.md.
"""

from __future__ import annotations

import csv
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.studies import jobs, paired
from growtas.run.recipe import Recipe
from growtas.search import CostFunction, Evaluator, Limit, model_cost
from growtas.space import SearchSpace, Subnet

SEEDS = (0, 1, 2, 3, 4)

# Sizes of the space: 38K to 306K parameters. By embedding dim: 32 has 38K to 106K, 48 has 68K to
# 194K, 64 has 105K to 306K. So the first window holds only the smallest dim, the last the largest.
WINDOWS = (
    Limit(name="40K-65K", min_params="40K", max_params="65K"),
    Limit(name="110K-150K", min_params="110K", max_params="150K"),
    Limit(name="220K-300K", min_params="220K", max_params="300K"),
)
RANDOM_SUBNETS = 10  # in each window, the same ones in every run


@dataclass(frozen=True)
class Setting:
    """How long every method trains."""

    epochs: int  # in all, GrowTAS+'s own included
    plus: int  # so many of them are the fine-tuning of GrowTAS+
    overrides: tuple[str, ...] = ()


SETTINGS = {
    "full": Setting(epochs=110, plus=10),  # the length of the recipe
    "short": Setting(epochs=36, plus=3),  # a third of it: accuracy is further from its ceiling
    "quick": Setting(
        epochs=4,
        plus=1,
        overrides=("search.population=3", "search.generations=2", "optim.warmup_epochs=1"),
    ),
}
STUDY = ("full", "short")


@dataclass(frozen=True)
class Job:
    """One run."""

    setting: str
    method: str
    seed: int

    @property
    def name(self) -> str:
        """Name of its folder and of its result."""
        return f"{self.setting}-{self.method}-{self.seed}"

    @classmethod
    def parse(cls, name: str) -> Job:
        """The job of that name."""
        setting, method, seed = name.split("-")
        return cls(setting, method, int(seed))

    def recipe(self, folder: Path) -> Recipe:
        """What the run does. Every method gets the setting's number of epochs in all.

        The seed decides the initial weights, the order of images and subnets, the search, and which
        images are for training, search and test: runs of one seed share the split.
        """
        setting = SETTINGS[self.setting]
        strategy = {
            "uniform": ("strategy={name: uniform}",),
            "growtas": ("strategy.plus=false",),
            "growtas+": (f"strategy.plus.epochs={setting.plus}",),
        }
        plus = setting.plus if self.method == "growtas+" else 0
        recipe = Recipe.load(
            "digits",
            [
                *strategy[self.method],
                f"train.epochs={setting.epochs - plus}",
                f"train.seed={self.seed}",
                f"data.split_seed={self.seed}",
                f"search.seed={self.seed}",
                "search.population=16",
                "search.generations=4",
                "train.eval_every=1000",  # nothing is chosen along the way
                "train.checkpoint_every=1000",
                "train.progress=false",
                f"output.dir={folder / self.name}",
                *setting.overrides,
            ],
        )
        values = recipe.to_dict()
        values["search"]["limits"] = [asdict(window) for window in WINDOWS]
        return Recipe.from_dict(values)


def wanted(settings: Sequence[str], seeds: Sequence[int]) -> list[Job]:
    """All runs; those that are compared with each other stand together."""
    return [
        Job(setting, method, seed)
        for seed in seeds
        for setting in settings
        for method in paired.METHODS
    ]


def carry_out(job: Job, folder: Path) -> None:
    """Trains, searches and measures; writes ``<folder>/<job>.json`` at the end."""
    from growtas.run.folder import Run

    recipe = job.recipe(folder)
    run = Run.start(recipe, overwrite=True, say=lambda line: None)
    run.train()
    result = run.search()
    search, test = (
        Evaluator.from_loader(
            run.model,
            run.data.eval_loader(split),
            mean=run.data.config.mean,
            std=run.data.config.std,
        )
        for split in ("search", "test")
    )
    measures: list[dict[str, Any]] = []

    def measure(name: str, window: str, subnets: Sequence[Subnet], searched: bool) -> None:
        for subnet in subnets:
            seen, unseen = search.score(subnet), test.score(subnet)
            pooled = seen.accuracy * seen.count + unseen.accuracy * unseen.count
            measures.append(
                {
                    "measure": name,
                    "window": window,
                    "subnet": str(subnet),
                    "params": run.model.num_params(subnet),
                    "search_accuracy": seen.accuracy,
                    "search_images": seen.count,
                    "test_accuracy": unseen.accuracy,
                    "test_loss": unseen.loss,
                    "test_images": unseen.count,
                    # Nothing was chosen on the search images unless the subnet itself was.
                    "held_out_accuracy": (
                        None if searched else pooled / (seen.count + unseen.count)
                    ),
                }
            )

    space = run.model.space
    cost = model_cost(run.model)
    for outcome in result.limits:
        measure("searched", outcome.limit.name, [outcome.subnet], True)
        measure("random", outcome.limit.name, fixed_subnets(space, outcome.limit, cost), False)
    measure("smallest", "", [space.smallest()], False)
    measure("largest", "", [space.largest()], False)

    with (run.folder / "metrics.csv").open(newline="") as file:
        training = list(csv.DictReader(file))
    document = {
        **asdict(job),
        "epochs": int(training[-1]["epoch"]),
        "steps": int(training[-1]["step"]),
        "train_seconds": round(sum(float(row["seconds"]) for row in training), 1),
        "train_images": len(run.data.train),
        "measures": measures,
        "recipe": recipe.to_dict(),
    }
    jobs.store(folder, job.name, document)


def fixed_subnets(space: SearchSpace, limit: Limit, cost: CostFunction) -> list[Subnet]:
    """The random subnets that are measured in a window, the same ones for every run."""
    rng = random.Random(f"growtas digits {limit.name}")
    found: dict[Subnet, None] = {}
    while len(found) < RANDOM_SUBNETS:
        subnet = space.sample(rng)
        if limit.admits(*cost(subnet)):
            found[subnet] = None
    return list(found)


def finished(folder: Path, some: Sequence[Job]) -> list[dict[str, Any]]:
    """Results of the jobs that are done.

    Raises:
        ValueError: a result is of other settings than the job has now.
    """
    documents = jobs.finished(folder, [job.name for job in some])
    for document in documents:
        job = Job(document["setting"], document["method"], document["seed"])
        now = job.recipe(Path(document["recipe"]["output"]["dir"]).parent).to_dict()
        # Read as a recipe first: settings that are newer than the result have their defaults.
        if Recipe.from_dict(document["recipe"]).to_dict() != now:
            path = jobs.result(folder, job.name)
            raise ValueError(f"{path} is of other settings: delete it or use another folder")
    return documents


def main(arguments: Sequence[str] | None = None) -> None:
    """The command, see the module."""
    parser = jobs.command_line("growtas_digits", __doc__)
    parser.add_argument("--docs", type=Path, default=Path("docs"))
    parser.add_argument("--quick", action="store_true", help="one tiny run of each method")
    options = parser.parse_args(arguments)
    if options.job:
        carry_out(Job.parse(options.job), options.folder)
        return
    some = wanted(["quick"], SEEDS[:1]) if options.quick else wanted(STUDY, SEEDS)
    finished(options.folder, some)  # refuses results of other settings before anything runs

    def report() -> None:
        documents = finished(options.folder, some)
        if documents and not options.quick:
            paired.report(documents, options.docs)

    jobs.run(__spec__.name, options, [job.name for job in some], report)


if __name__ == "__main__":
    main()
