"""The whole chain: train, search, test each winner once, export the best, draw what happened."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Iterator
from contextlib import contextmanager

from growtas.run.files import BEST, FRONT, LOG, SUMMARY, TRAINING
from growtas.run.folder import Run, Say
from growtas.run.recipe import Recipe
from growtas.run.winners import Winner, best_limit
from growtas.training.builtin import BUILT_IN


def run(
    recipe: Recipe,
    *,
    resume: bool = False,
    overwrite: bool = False,
    say: Say = print,
    verify: bool = True,
) -> list[Winner]:
    """Trains, searches, tests the winners once, exports the best one, draws training and front.

    The best is the winner with the best search result: test images choose nothing. The random
    subnets that are scored for comparison count like those of the search: they are in
    ``search.json`` and in the front, and one that beats all others inside a limit wins it.

    Args:
        recipe: what to run; its ``output.dir`` receives the files.
        resume: keep what an earlier call finished and continue what it began.
        overwrite: delete an earlier run in that folder first.
        say, verify: as for `Run`; `say` receives the final table too.

    Returns:
        One winner per limit, in the recipe's order.

    Raises:
        ConfigError, OSError, ValueError: see `Run.plan` and `Run.check_limits`.
        ExportMismatch: the exported model is not the searched one.
    """
    from growtas.run.report import plot_front, plot_training, winners_table
    from growtas.training.metrics import read_metrics

    _require_packages(recipe)
    current = Run.plan(recipe, resume=resume, overwrite=overwrite, say=say, verify=verify)
    current.check_limits()
    seconds: dict[str, float] = {}

    @contextmanager
    def timed(stage: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        seconds[stage] = round(time.perf_counter() - start, 2)

    with timed("train"):
        current.train(resume=resume)
    with timed("search"):
        result = current.search(resume=resume)
    with timed("random"):
        random_subnets, result = current.random_subnets(result)
    with timed("test"):
        winners = current.test(result, resume=resume)
    chosen = best_limit(result)
    winner = winners[result.limits.index(chosen)]
    with timed("export"):
        difference = current.extract(chosen.subnet, current.folder / BEST, winner.to_dict())
    summary = {
        "winners": [winner.to_dict() for winner in winners],
        "best": winner.limit,
        "logit_difference": difference,
        "seconds": seconds,
    }
    current.files.write_json(SUMMARY, summary)
    if current.process.is_main:
        folder = current.folder
        plot_front(result, folder / FRONT, winners=winners, random_subnets=random_subnets)
        if rows := read_metrics(folder / LOG):  # a converted checkpoint has none
            plot_training(rows, folder / TRAINING)
    current.say(winners_table(result, winners))
    current.say(
        f"in brackets 95 % intervals; random: the mean of random subnets inside the limit; test: "
        f"{winner.test_images:,} images that training and search never saw, used once"
    )
    current.say(
        f"{current.folder / BEST}: the winner of {winner.limit}, the best by search; its logits "
        f"are the supernet's to rounding ({difference:.1e})"
    )
    drawn = f", drawn in {FRONT} and {TRAINING}" if (current.folder / TRAINING).exists() else ""
    current.say(f"everything is in {current.folder}: this table in {SUMMARY}{drawn}")
    current.say("time: " + ", ".join(f"{stage} {spent:.0f} s" for stage, spent in seconds.items()))
    return winners


def _require_packages(recipe: Recipe) -> None:
    """Finds a missing package before the training, not after it."""
    modules = ["timm", "matplotlib"]
    if recipe.data.dataset in BUILT_IN:
        modules.append(BUILT_IN[recipe.data.dataset].package)
    modules += ["tqdm"] if recipe.train.progress else []
    modules += ["tensorboard"] if recipe.train.tensorboard else []
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        extra = "dev" if missing == ["tensorboard"] else "demo"
        raise ImportError(f"this needs {', '.join(missing)}: pip install 'growtas[{extra}]'")
