"""Uniform sampling and GrowTAS on the recipe of the demo, equally many optimizer steps, 3 seeds.

    python -m benchmarks.studies.growtas_mnist            # 6 runs, then the report
    python -m benchmarks.studies.growtas_mnist --report   # the report of what is finished

Nothing is searched: the smallest and the largest subnet, and random ones of each of the recipe's
windows, the same in every run, are scored on all images that were kept out of the training. The
report is docs/evidence/growtas_mnist.csv and the table in docs/demo.md. A finished run leaves one
JSON file and is not repeated.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.studies import jobs, paired
from benchmarks.studies.growtas_digits import fixed_subnets
from benchmarks.studies.page import fill
from growtas.run.recipe import Recipe
from growtas.search import model_cost

METHODS = {"uniform": ("strategy={name: uniform}",), "growtas": ()}
SEEDS = (0, 1, 2)
PAGE = Path("docs/demo.md")
CSV = Path("docs/evidence/growtas_mnist.csv")


def recipe(method: str, seed: int, folder: Path) -> Recipe:
    """The demo's recipe with another method and seed; a seed decides weights, order and split."""
    return Recipe.load(
        "mnist-5k",
        [
            *METHODS[method],
            f"train.seed={seed}",
            f"data.split_seed={seed}",
            "train.eval_every=1000",  # nothing is chosen along the way
            "train.progress=false",
            f"output.dir={folder / f'{method}-{seed}'}",
        ],
    )


def carry_out(method: str, seed: int, folder: Path) -> None:
    """Trains and measures; writes ``<folder>/<method>-<seed>.json`` at the end."""
    from growtas.run.folder import Run

    run = Run.start(recipe(method, seed, folder), overwrite=True, say=lambda line: None)
    run.train()
    space, cost = run.model.space, model_cost(run.model)
    groups = {"smallest": [space.smallest()], "largest": [space.largest()]}
    for limit in run.recipe.search.limits:
        groups[limit.name] = fixed_subnets(space, limit, cost)
    evaluators = [run.evaluator("search"), run.evaluator("test")]
    measures: list[dict[str, Any]] = []
    for group, subnets in groups.items():
        for subnet in subnets:
            scores = [evaluator.score(subnet) for evaluator in evaluators]
            images = sum(score.count for score in scores)
            right = sum(score.accuracy * score.count for score in scores)
            measures.append(
                {
                    "group": group,
                    "subnet": str(subnet),
                    "params": cost(subnet).params,
                    "accuracy": right / images,
                    "images": images,
                }
            )
    facts = {"method": method, "seed": seed, "epochs": run.recipe.train.epochs}
    jobs.store(folder, f"{method}-{seed}", {**facts, "measures": measures})


def report(documents: Sequence[dict[str, Any]]) -> None:
    """Writes the CSV file and the table of the page, if there is something to say."""
    if not documents:
        return
    rows = [
        {
            **{key: document[key] for key in ("method", "seed", "epochs")},
            **measure,
            **{key: document["provenance"][key] for key in ("commit", "torch", "hardware")},
        }
        for document in documents
        for measure in document["measures"]
    ]
    paired.write_rows(rows, CSV)
    lines = ["| accuracy in % | uniform | GrowTAS | GrowTAS - uniform |", "|---|---|---|---|"]
    for group in dict.fromkeys(row["group"] for row in rows):
        found = {method: _by_seed(rows, method, group) for method in METHODS}
        cells = [paired.spread(found[method]) for method in METHODS]
        cells.append(paired.shown(paired.paired(found["growtas"], found["uniform"])))
        lines.append(f"| {group} | {' | '.join(cells)} |")
    fill(PAGE, "growtas_mnist", "\n".join(lines))


def _by_seed(rows: Sequence[dict[str, Any]], method: str, group: str) -> dict[int, float]:
    """Percent accuracy of each seed, the mean over the group's subnets."""
    some = [row for row in rows if (row["method"], row["group"]) == (method, group)]
    return {
        seed: 100 * statistics.fmean(row["accuracy"] for row in some if row["seed"] == seed)
        for seed in sorted({row["seed"] for row in some})
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """The command, see the module."""
    options = jobs.command_line("growtas_mnist", __doc__).parse_args(arguments)
    if options.job:
        method, seed = options.job.rsplit("-", 1)
        carry_out(method, int(seed), options.folder)
        return
    names = [f"{method}-{seed}" for seed in SEEDS for method in METHODS]
    jobs.run(__spec__.name, options, names, lambda: report(jobs.finished(options.folder, names)))


if __name__ == "__main__":
    main()
