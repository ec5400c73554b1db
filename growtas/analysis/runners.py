"""The analyses on run folders: what ``growtas analyze`` does with its options."""

from __future__ import annotations

import argparse
import csv
import io
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from growtas.analysis import distribution as distribution_of
from growtas.analysis import extend_vs_crop as derivation
from growtas.analysis import limits as limits_of
from growtas.analysis import similarity as similarity_of
from growtas.analysis.figures import Output, write_csv
from growtas.analysis.sampling import Relation, derived_subnets, parse_window
from growtas.analysis.similarity import Comparison
from growtas.analysis.subject import named_folders, open_runs, subject_of
from growtas.base.config import ConfigError, content_of, read_text
from growtas.base.precision import amp_dtype
from growtas.run.files import ANALYSIS, CONFIG, SEARCH, SUPERNET
from growtas.run.folder import Run, Say
from growtas.run.recipe import Recipe
from growtas.run.report import save_figure
from growtas.search import Limit, SearchResult
from growtas.space import SearchSpace, Subnet
from growtas.supernet import save_supernet
from growtas.supernet.vit.subnet_files import read_subnet

DERIVED = "extend-vs-crop"  # folder inside a run's, with the trainings and the result


class _Panel(NamedTuple):
    name: str  # of the panel
    part: str  # option that names the trained subnet, and folder of its training
    relation: Relation  # of the derived subnets to the trained one


_PANELS = (_Panel("extend", "small", "larger"), _Panel("crop", "large", "smaller"))


def extend_vs_crop(options: argparse.Namespace, say: Say) -> None:
    """Fig. 1 for a recipe: trains two subnets and scores what derives from them."""
    run_folder = Path(options.recipe)
    is_run = (run_folder / CONFIG).is_file()
    # The strategy plays no part; its stages must not forbid fewer epochs.
    changes = ["strategy={name: uniform}", *options.overrides]
    recipe = Recipe.load(run_folder / CONFIG if is_run else options.recipe, changes)
    if not any(change.startswith(("train.epochs=", "train=")) for change in options.overrides):
        recipe = _half_as_long(recipe)
    space = recipe.build_space()
    beside = run_folder if is_run else recipe.run_dir
    folder = Path(options.output) if options.output else beside / DERIVED
    # Where there are trainings it is for Run.start to refuse: --overwrite would delete them.
    begun = any((folder / panel.part).exists() for panel in _PANELS)
    output = Output.prepare(folder, DERIVED, overwrite=begun or options.resume or options.overwrite)
    # Everything that can be refused comes before the first training.
    trained, derived, runs = {}, {}, {}
    for panel in _PANELS:
        subnet = trained[panel] = _subnet(panel.part, getattr(options, panel.part), space)
        derived[panel] = derived_subnets(
            space, subnet, panel.relation, count=options.count, seed=options.seed
        )
    for panel in _PANELS:
        runs[panel] = Run.start(
            replace(recipe, output=replace(recipe.output, dir=str(folder / panel.part))),
            resume=options.resume,
            overwrite=options.overwrite,
            say=say,
            verify=options.verify,
        )
    rows: list[derivation.ExtendCropRow] = []
    for panel, run in runs.items():
        run.say(f"{panel.part}: {trained[panel]} is trained alone")
        model = derivation.train_alone(
            run.recipe, run.data, trained[panel], run.folder, verify=run.verify
        )
        if run.process.is_main:
            save_supernet(model, run.folder / SUPERNET)
        run.process.barrier()
        subject = subject_of(run, panel.part, options.split)
        rows += derivation.score_derived(subject, panel.name, trained[panel], derived[panel])
    _write(output, rows, derivation.plot(rows), run)


def _half_as_long(recipe: Recipe) -> Recipe:
    """Half of the epochs, if the warm-up fits: every step of a subnet that trains alone is its own,
    so it still gets more than its share of a supernet's."""
    epochs = recipe.train.epochs // 2
    if epochs <= recipe.optim.warmup_epochs:
        return recipe
    return replace(recipe, train=replace(recipe.train, epochs=epochs))


def _subnet(option: str, text: str, space: SearchSpace) -> Subnet:
    subnet = read_subnet(text, space)
    if subnet is None:
        raise ConfigError(
            f"--{option} {text!r} is no subnet: use smallest, largest, FILE, FILE:NAME, or JSON "
            "with embed_dim, num_heads and mlp_ratio"
        )
    return subnet


def similarity(options: argparse.Namespace, say: Say) -> None:
    """Fig. 4 for trained runs, or for what extend-vs-crop trained."""
    folders = named_folders(options.runs)
    output = _output(options, "similarity")
    comparisons: list[tuple[Run, Comparison]] = []
    if options.source == DERIVED:
        for name, folder in folders.items():
            comparisons += _derived(name, folder, options.overrides, say, verify=options.verify)
    else:
        runs = open_runs(options.runs, options.overrides, say, verify=options.verify)
        for name, run in runs.items():
            comparisons += _ends(name, run, options.count, options.seed)
    rows: list[similarity_of.SimilarityRow] = []
    for run, comparison in comparisons:
        rows += similarity_of.compare_tokens(
            comparison,
            similarity_of.spread_batches(run.data, options.split, options.images, run.process),
            run.process,
            tokens=options.tokens,
            split=options.split,
            dtype=amp_dtype(run.recipe.train.amp, run.process.device),
            progress=run.recipe.train.progress and run.process.is_main,
        )
    _write(output, rows, similarity_of.plot(rows), run)


def _ends(name: str, run: Run, count: int, seed: int) -> list[tuple[Run, Comparison]]:
    """The smallest subnet with larger ones, the largest with smaller ones."""
    space = run.model.space
    ends: list[tuple[Subnet, Relation]] = [
        (space.smallest(), "larger"),
        (space.largest(), "smaller"),
    ]
    found = []
    for reference, relation in ends:
        subnets = derived_subnets(space, reference, relation, count=count, seed=seed)
        found.append((run, Comparison(name, run.model, relation, reference, subnets)))
    return found


def _derived(
    name: str, folder: Path, overrides: Sequence[str], say: Say, *, verify: bool
) -> list[tuple[Run, Comparison]]:
    """The trained subnet of each panel of extend-vs-crop with what was derived from it; `folder` is
    that of the run or that of its extend-vs-crop."""
    found = folder if (folder / f"{DERIVED}.csv").is_file() else folder / DERIVED
    path = found / f"{DERIVED}.csv"
    if not path.is_file():
        raise ConfigError(f"there is no {path}: `growtas analyze extend-vs-crop {folder}` makes it")
    rows = csv.DictReader(io.StringIO(read_text(path), newline=""))
    with content_of(path, "a result of extend-vs-crop"):
        stored = [(row["panel"], Subnet.from_dict(json.loads(row["subnet"]))) for row in rows]
    comparisons = []
    for panel in _PANELS:
        of_panel = [subnet for name, subnet in stored if name == panel.name]
        if not of_panel:
            raise ConfigError(f"{path} has no subnets of the panel {panel.name!r}")
        reference, *subnets = of_panel
        trained = Run.open(found / panel.part, overrides, say, verify=verify)
        label = f"{name}, subnets trained alone"
        comparison = Comparison(label, trained.model, panel.relation, reference, subnets)
        comparisons.append((trained, comparison))
    return comparisons


def limits(options: argparse.Namespace, say: Say) -> None:
    """Fig. 5 for trained runs: their stored winners, or the best of random subnets."""
    texts = [] if options.limits is None else options.limits.split(",")
    wanted = [parse_window(text.strip(), options.axis) for text in texts]
    runs = open_runs(options.runs, options.overrides, say, verify=options.verify)
    output = _output(options, "limits")
    chosen = {} if wanted else _search_winners(runs)
    rows: list[limits_of.LimitRow] = []
    for name, run in runs.items():
        subject = subject_of(run, name, options.split)
        if wanted:
            # Chosen on search images, whatever the split that the accuracy is read on.
            chooser = subject if options.split == "search" else subject_of(run, name, "search")
            chosen[name] = limits_of.best_of_random(
                chooser,
                wanted,
                count=options.count,
                seed=options.seed,
                objective=run.recipe.search.objective,
            )
        rows += limits_of.score_choices(subject, chosen[name])
    _write(output, rows, limits_of.plot(rows), run)


def _search_winners(runs: dict[str, Run]) -> dict[str, list[limits_of.Choice]]:
    """What each run's search found; ConfigError unless all were searched inside the same limits."""
    chosen = {}
    for name, run in runs.items():
        path = run.folder / SEARCH
        if not path.is_file():
            raise ConfigError(
                f"{run.folder} has no search result ({SEARCH}): `growtas search {run.folder}` "
                "makes one; --limits 6M,8M takes the best of random subnets instead"
            )
        chosen[name] = limits_of.search_winners(SearchResult.load(path))
    windows = {name: [choice.limit for choice in choices] for name, choices in chosen.items()}
    (first, expected), *others = windows.items()
    for name, found in others:
        if found != expected:
            listed = [", ".join(limit.name for limit in part) for part in (expected, found)]
            raise ConfigError(
                f"{first} was searched inside {listed[0]}, {name} inside {listed[1]}: search both "
                "inside the same limits, or give --limits"
            )
    return chosen


def distribution(options: argparse.Namespace, say: Say) -> None:
    """Fig. 6 for trained runs."""
    window = parse_window(options.window, options.axis) if options.window else Limit()
    runs = open_runs(options.runs, options.overrides, say, verify=options.verify)
    output = _output(options, "distribution")
    rows: list[distribution_of.DistributionRow] = []
    for name, run in runs.items():
        subject = subject_of(run, name, options.split)
        rows += distribution_of.score_window(
            subject, window, count=options.count, seed=options.seed
        )
    _write(output, rows, distribution_of.plot(rows, options.kind), run)


def _output(options: argparse.Namespace, stem: str) -> Output:
    folder = options.output or Path(options.runs[0]) / ANALYSIS
    return Output.prepare(folder, stem, overwrite=options.overwrite)


def _write(output: Output, rows: Sequence[Any], figure: Any, run: Run) -> None:
    if run.process.is_main:
        write_csv(rows, output.csv)
        save_figure(figure, output.png)
    run.say(f"{output.csv}: {len(rows):,} rows")
    run.say(f"{output.png}")
