"""The ``growtas`` command, from a recipe to predictions; ``growtas --help`` lists its parts."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from growtas.analysis.commands import add_commands as add_analyses
from growtas.analysis.commands import add_verify
from growtas.base import stopping
from growtas.base.checks import Doubt, is_plain_name
from growtas.base.config import ConfigError
from growtas.cli_help import EPILOGS, FIRST_STEPS
from growtas.run.recipes import available
from growtas.version import __version__

if TYPE_CHECKING:
    from growtas.run.folder import Run

BAD_INPUT, FAILED = 2, 1

# Failures of a run that its user can do something about; others are defects and keep the traceback.
_FAILURES = ("BackendUnavailable", "ExportMismatch", "NonFiniteLossError", "OutOfMemoryError")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code.

    Args:
        arguments: without the program name; ``sys.argv`` if left out.

    Returns:
        0 if all went well, 2 for input that cannot be used, 1 for a run that failed, 130 if it was
        interrupted (SIGINT), 143 if it was told to end (SIGTERM); a training then has its latest
        step in the checkpoint. A failure is one line on stderr; ``--debug`` adds the traceback.
    """
    options, rest = _parser().parse_known_args(arguments)
    # argparse stops collecting overrides at the first option; they may come after it too.
    unknown = [text for text in rest if text.startswith("-") or "=" not in text]
    if unknown or (rest and not hasattr(options, "overrides")):
        options.parser.error(f"unrecognized arguments: {' '.join(unknown or rest)}")
    if rest:
        options.overrides = [*options.overrides, *rest]
    try:
        with stopping.handled(), _warnings_as_lines(options.name):
            options.command(options)
    except (Exception, KeyboardInterrupt) as error:
        code, message = _explain(error)
        if options.debug or not message:
            raise
        # What is wrong with the input is the same on every rank; one of them says so.
        if code != BAD_INPUT or _rank() == 0:
            print(f"growtas {options.name}: {message}", file=sys.stderr)
        return code
    return 0


def _explain(error: BaseException) -> tuple[int, str]:
    """Exit code and message for what a user can do something about; no message for a defect."""
    text = " ".join(str(error).split())
    if isinstance(error, KeyboardInterrupt):
        code = getattr(error, "exit_code", 128 + signal.SIGINT)
        return code, text or "interrupted; with --resume it continues from its last checkpoint"
    if isinstance(error, ImportError):  # of what `require` asks for, the text says how to get it
        return BAD_INPUT, text if "pip install" in text else ""
    if isinstance(error, (ValueError, OSError)):
        return BAD_INPUT, text or type(error).__name__
    if isinstance(error, MemoryError) or "can't allocate memory" in text:  # torch has no class
        return FAILED, f"out of memory: {text}" if text else "out of memory"
    return FAILED, text if type(error).__name__ in _FAILURES else ""


@contextmanager
def _warnings_as_lines(command: str) -> Iterator[None]:
    """Shows each `Doubt` as a line on stderr, once; one rank does."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", Doubt)
        others = warnings.showwarning
        shown = set()

        def show(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
            if not issubclass(category, Doubt):
                others(message, category, *place, **more)
            elif _rank() == 0 and str(message) not in shown:
                shown.add(str(message))
                print(f"growtas {command}: warning: {message}", file=sys.stderr)

        warnings.showwarning = show
        yield


def _rank() -> int:
    return int(os.environ.get("RANK", "0"))


def _say(text: str) -> None:
    if _rank() == 0:
        print(text, flush=True)


def _run(options: argparse.Namespace) -> None:
    from growtas.run import pipeline
    from growtas.run.recipe import Recipe

    # Printed with the recipe, what was chosen for this folder must not make it another text.
    note = (lambda line: _say(f"# {line}")) if options.print_recipe else _say
    recipe = Recipe.load(options.recipe, options.overrides, resume=options.resume, say=note)
    if options.print_recipe:
        _say(recipe.to_yaml().rstrip())
        return
    pipeline.run(recipe, **_how(options))


def _how(options: argparse.Namespace) -> dict[str, Any]:
    """How a run is to begin, of the commands that begin one."""
    given = {name: getattr(options, name) for name in ("resume", "overwrite", "verify")}
    return {**given, "say": _say}


def _train(options: argparse.Namespace) -> None:
    from growtas.run.files import SUPERNET
    from growtas.run.folder import Run
    from growtas.run.recipe import Recipe

    recipe = Recipe.load(options.recipe, options.overrides, resume=options.resume, say=_say)
    run = Run.plan(recipe, **_how(options))
    run.train(resume=options.resume)
    _say(f"supernet: {run.folder / SUPERNET}")


def _search(options: argparse.Namespace) -> None:
    from growtas.run.files import SEARCH, SEARCH_STATE
    from growtas.run.report import winners_table

    run = _open(options)
    found = [name for name in (SEARCH, SEARCH_STATE) if (run.folder / name).exists()]
    if found and not (options.resume or options.overwrite):
        raise ConfigError(
            f"{run.folder} already holds a search ({', '.join(found)}): add --resume to continue "
            "it, or --overwrite to replace it and what was exported from it"
        )
    _say(winners_table(run.search(resume=options.resume)))


def _evaluate(options: argparse.Namespace) -> None:
    run = _open(options)
    subnet = run.find_subnet(options.subnet)
    score = run.evaluate(subnet, options.split)
    params, macs = run.model.num_params(subnet), run.model.macs(subnet)
    if options.json:
        facts = {"subnet": subnet.to_dict(), "num_params": params, "macs": macs}
        _say(json.dumps({**facts, "split": options.split, **score._asdict()}))
        return
    _say(f"subnet    {subnet}")
    _say(f"size      {params:,} parameters, {macs:,} multiply-adds per image")
    _say(f"accuracy  {score.accuracy:.2%} of {score.count:,} {options.split} images")
    _say(f"loss      {score.loss:.4f}")


def _extract(options: argparse.Namespace) -> None:
    from growtas.supernet.vit.subnet_files import SUBNET_FILE

    run = _open(options)
    subnet = run.find_subnet(options.subnet)
    if options.to:
        folder = Path(options.to)
    elif SUBNET_FILE.fullmatch(options.subnet) or not is_plain_name(options.subnet):
        raise ConfigError("--to FOLDER is needed with a subnet whose name cannot be a folder's")
    else:
        folder = run.folder / options.subnet
    if folder.exists() and not options.overwrite:
        raise ConfigError(f"{folder} exists: add --overwrite, or --to FOLDER to write elsewhere")
    difference = run.extract(subnet, folder)
    _say(f"{folder}: {subnet}, {run.model.num_params(subnet):,} parameters")
    _say(f"its logits are the supernet's to rounding (largest difference {difference:.1e})")


def _predict(options: argparse.Namespace) -> None:
    from growtas import export

    model = export.load(options.model, verify=options.verify)
    for prediction in export.predict(model, options.images, top=options.top):
        for name, share in zip(prediction.classes, prediction.probabilities, strict=True):
            _say(f"{prediction.path}\t{name}\t{share:.4f}")


def _convert(options: argparse.Namespace) -> None:
    from growtas.run import conversion
    from growtas.run.recipe import Recipe
    from growtas.space import SearchSpace

    names = ("qkv_bias", "pool", "image_size")
    given = {n: value for n in names if (value := getattr(options, n)) is not None}
    common = {"overwrite": options.overwrite, "say": _say, "verify": options.verify}
    if options.recipe is not None:
        if options.space is not None:
            raise ConfigError("--space and --recipe exclude each other: the recipe has a space")
        recipe = Recipe.load(options.recipe, options.overrides, say=_say)
        recipe = replace(recipe, output=replace(recipe.output, dir=options.target))
        conversion.adopt(options.source, recipe, **common, **given)
        return
    if options.overrides:
        raise ConfigError(f"{options.overrides[0]} changes a recipe: add --recipe RECIPE")
    space = None
    if options.space is not None:
        is_file = options.space.endswith((".yaml", ".yml"))
        space = (SearchSpace.from_yaml if is_file else SearchSpace.preset)(options.space)
    conversion.convert(options.source, options.target, space=space, **common, **given)


def _info(options: argparse.Namespace) -> None:
    from growtas.run import info

    facts = info.collect()
    _say(json.dumps(facts, indent=1) if options.json else info.describe(facts))


def _open(options: argparse.Namespace) -> Run:
    from growtas.run.folder import Run

    return Run.open(options.run, options.overrides, say=_say, verify=options.verify)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="growtas",
        description="Train a weight-sharing Vision Transformer supernet, search it, ship the best "
        "subnet.",
        epilog=FIRST_STEPS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"growtas {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    run = _command(
        commands, _run, "the whole chain: train, search, test the winners once, export the best"
    )
    _recipe_arguments(run)
    run.add_argument(
        "--print-recipe", action="store_true", help="print the complete recipe and stop"
    )

    train = _command(commands, _train, "only train the supernet")
    _recipe_arguments(train)

    search = _command(
        commands, _search, "search a trained supernet for the best subnet inside each limit"
    )
    _run_arguments(search)
    _earlier_work(
        search,
        resume="keep what was scored before and continue; with other settings it is refused",
        overwrite="delete an earlier search of this run, its summary and its exported model",
    )

    evaluate = _command(
        commands, _evaluate, "accuracy and loss of one subnet of a trained supernet"
    )
    _run_arguments(evaluate, subnet=True)
    evaluate.add_argument(
        "--split",
        choices=("search", "test"),
        default="search",
        help="images to evaluate on (default: search; choose nothing by the test images)",
    )
    evaluate.add_argument("--json", action="store_true", help="print JSON")

    extract = _command(
        commands, _extract, "export one subnet as an ordinary model that runs with torch alone"
    )
    _run_arguments(extract, subnet=True)
    extract.add_argument("--to", metavar="FOLDER", help="where to (default: RUN/SUBNET)")
    extract.add_argument("--overwrite", action="store_true", help="replace a model in that folder")

    predict = _command(commands, _predict, "classify image files with an exported model")
    predict.add_argument(
        "model", metavar="MODEL", help="folder of an exported model, such as runs/digits/best"
    )
    predict.add_argument("images", metavar="IMAGE", nargs="+", help="image files, or folders")
    predict.add_argument(
        "--top", type=int, metavar="K", default=1, help="classes to print per image (default: 1)"
    )
    add_verify(predict)

    convert = _command(
        commands,
        _convert,
        "an AutoFormer checkpoint to a supernet file or to a run, and a supernet back",
    )
    convert.add_argument(
        "source", metavar="IN", help="a checkpoint, a supernet file or the folder of a run"
    )
    convert.add_argument("target", metavar="OUT", help="file to write; with --recipe, run folder")
    convert.add_argument(
        "--recipe", help="make OUT a run with this recipe's space, data and search"
    )
    _override_argument(convert)
    convert.add_argument(
        "--space", help="search space of the supernet: a preset or a YAML file, AutoFormer's too"
    )
    convert.add_argument(
        "--qkv-bias",
        choices=("autoformer", "blocks"),
        help="how the checkpoint's q, k, v bias is read; blocks: PreNAS's (default: autoformer)",
    )
    convert.add_argument(
        "--pool", choices=("mean", "cls"), help="what its classifier reads (default: mean)"
    )
    convert.add_argument(
        "--image-size", type=int, help="pixels per side, if the checkpoint has no pos_embed"
    )
    convert.add_argument("--overwrite", action="store_true", help="replace OUT")
    add_verify(convert)

    add_analyses(commands, _say)

    info = _command(
        commands, _info, "what is installed and built, and which backend runs each operator here"
    )
    info.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    function: Callable[[argparse.Namespace], None],
    summary: str,
) -> argparse.ArgumentParser:
    name = function.__name__.removeprefix("_")
    parser = commands.add_parser(
        name,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog=EPILOGS[name],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.set_defaults(command=function, name=name, parser=parser)
    return parser


def _recipe_arguments(parser: argparse.ArgumentParser) -> None:
    names = ", ".join(available())
    parser.add_argument("recipe", metavar="RECIPE", help=f"a YAML file, or one of {names}")
    _override_argument(parser)
    _earlier_work(
        parser,
        resume="keep what an earlier call finished and continue what it began; with other settings "
        "it is refused",
        overwrite="delete an earlier run in the output folder",
    )
    add_verify(parser)


def _earlier_work(parser: argparse.ArgumentParser, *, resume: str, overwrite: str) -> None:
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--resume", action="store_true", help=resume)
    choice.add_argument("--overwrite", action="store_true", help=overwrite)


def _run_arguments(parser: argparse.ArgumentParser, *, subnet: bool = False) -> None:
    parser.add_argument("run", metavar="RUN", help="folder of a run, such as runs/digits")
    if subnet:
        parser.add_argument("--subnet", default="best", help="which one, see below (default: best)")
    _override_argument(parser)
    add_verify(parser)


def _override_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "overrides",
        metavar="section.field=value",
        nargs="*",
        default=[],
        help="change fields of the recipe, for example train.epochs=30",
    )
