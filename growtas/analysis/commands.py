"""``growtas analyze``: its sub-commands and their options."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from growtas.run.folder import Say

    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

_WHERE = """
The CSV and the PNG go to --output, by default to the folder "analysis" of the first RUN. A field of
every run's recipe can be changed as section.field=value, for example data.root=/path/to/images.
"""
_EPILOGS = {
    "extend-vs-crop": """\
examples:
  growtas analyze extend-vs-crop digits
  growtas analyze extend-vs-crop runs/digits --count 50 train.epochs=30 --output runs/short

Two subnets are trained from scratch, each alone, with the recipe's settings. Trainings, CSV and PNG
go to --output, by default to the folder "extend-vs-crop" of the run, where `growtas analyze
similarity --source extend-vs-crop` finds them. Any field of the recipe can be changed as
section.field=value.
""",
    "similarity": """\
examples:
  growtas analyze similarity runs/uniform runs/growtas
  growtas analyze similarity runs/digits --source extend-vs-crop
""",
    "limits": """\
examples:
  growtas analyze limits runs/uniform runs/growtas
  growtas analyze limits runs/uniform runs/growtas --limits 60K,120K --count 200
  growtas analyze limits runs/uniform runs/growtas --split test --output figures
""",
    "distribution": """\
examples:
  growtas analyze distribution runs/uniform runs/growtas --window 50K-70K
  growtas analyze distribution runs/tiny --axis macs --window 1.2G-1.4G --kind violin
""",
}


def add_commands(commands: Commands, say: Say) -> None:
    """Adds ``analyze`` to the commands of ``growtas``.

    Args:
        commands: where to add it.
        say: receives the lines to print.
    """
    summary = "the GrowTAS paper's figures for your own supernets, as CSV and PNG"
    group = commands.add_parser("analyze", help=summary, description=f"Draw {summary}.")
    kinds = group.add_subparsers(title="analyses", metavar="ANALYSIS", required=True)

    parser = _command(
        kinds,
        "extend-vs-crop",
        "Fig. 1: larger subnets made from a small trained one, smaller ones from a large one",
        say,
        runs=False,
    )
    for name, end in (("small", "smallest"), ("large", "largest")):
        parser.add_argument(
            f"--{name}",
            metavar="SUBNET",
            default=end,
            help=f"the {name} subnet: smallest, largest, or a file or JSON as for `growtas "
            f"evaluate` (default: {end})",
        )
    _number(parser, "--count", 100, "subnets derived from each of the two")
    parser.add_argument(
        "--resume", action="store_true", help="keep a finished training, continue a begun one"
    )

    parser = _command(
        kinds,
        "similarity",
        "Fig. 4: cosine similarity of the tokens of a subnet and of larger or smaller ones, after "
        "every block",
        say,
    )
    _choice(
        parser,
        "--source",
        ("supernet", "extend-vs-crop"),
        "supernet: each trained supernet's smallest subnet with larger ones, its largest with "
        "smaller ones; extend-vs-crop: the two trained subnets of each run's extend-vs-crop with "
        "what was derived from them, as in the paper",
    )
    _choice(parser, "--tokens", ("all", "patches", "class"), "which tokens to compare")
    _number(parser, "--images", 1000, "at most so many, spread evenly over the split")
    _number(parser, "--count", 100, "larger, and smaller, subnets with --source supernet")

    parser = _command(
        kinds,
        "limits",
        "Fig. 5: the accuracy that each supernet offers under varying limits on the size",
        say,
    )
    parser.add_argument(
        "--limits",
        metavar="6M,8M,...",
        help="the best of --count random subnets inside each of these limits or windows (5M-6M); "
        "without it, the winners of each run's search",
    )
    _axis(parser)
    _number(parser, "--count", 100, "random subnets scored inside each limit, with --limits")

    parser = _command(
        kinds,
        "distribution",
        "Fig. 6: the accuracies of random subnets inside one window of sizes",
        say,
    )
    parser.add_argument(
        "--window",
        metavar="5.5M-6.5M",
        help="sizes to draw from; one number for at most that (default: all sizes)",
    )
    _axis(parser)
    _choice(parser, "--kind", ("histogram", "box", "violin"), "of figure")
    _number(parser, "--count", 200, "random subnets of each supernet")


def _command(
    kinds: Commands,
    name: str,
    summary: str,
    say: Say,
    *,
    runs: bool = True,
) -> argparse.ArgumentParser:
    parser = kinds.add_parser(
        name,
        help=summary,
        description=f"{summary}.",
        epilog=_EPILOGS[name] + (_WHERE if runs else ""),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    if runs:
        what = "folders of trained runs, such as runs/digits"
        parser.add_argument("runs", metavar="RUN", nargs="+", help=what)
    else:
        what = "a recipe, or a run for its recipe"
        parser.add_argument("recipe", metavar="RECIPE|RUN", help=what)
    parser.add_argument(
        "overrides",
        metavar="section.field=value",
        nargs="*",
        default=[],
        help="change fields of the recipe",
    )
    parser.add_argument(
        "--split",
        choices=("search", "test"),
        default="search",
        help="images to look at (default: search; choose nothing by the test images)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the draws (default: 0)")
    parser.add_argument("--output", metavar="FOLDER", help="where to write, see below")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier result")
    add_verify(parser)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")

    def run(options: argparse.Namespace) -> None:
        from growtas.analysis import runners

        if runs:
            _separate_overrides(options)
        getattr(runners, name.replace("-", "_"))(options, say)

    parser.set_defaults(command=run, name=f"analyze {name}", parser=parser)
    return parser


def add_verify(parser: argparse.ArgumentParser) -> None:
    """Adds ``--no-verify``, of every command that reads weights."""
    parser.add_argument(
        "--no-verify",
        dest="verify",
        action="store_false",
        help="read weights and checkpoints without comparing them with their checksums",
    )


def _separate_overrides(options: argparse.Namespace) -> None:
    """Runs and overrides are both lists of words: argparse cannot tell one from the other."""
    changes = [text for text in options.runs if "=" in text and not Path(text).is_dir()]
    options.runs = [text for text in options.runs if text not in changes]
    options.overrides = [*changes, *options.overrides]


def _number(parser: argparse.ArgumentParser, name: str, default: int, what: str) -> None:
    what = f"{what} (default: {default})"
    parser.add_argument(name, type=int, metavar="N", default=default, help=what)


def _choice(
    parser: argparse.ArgumentParser, name: str, choices: tuple[str, ...], what: str
) -> None:
    """An option with fixed values, the first of them its default."""
    what = f"{what} (default: {choices[0]})"
    parser.add_argument(name, choices=choices, default=choices[0], help=what)


def _axis(parser: argparse.ArgumentParser) -> None:
    what = "what sizes are: parameters, or multiply-adds per image"
    _choice(parser, "--axis", ("params", "macs"), what)
