"""The runs of a study: each a process of its own with one thread, which leaves a JSON file.

It is written at the end, and a finished run is not repeated: a study can be stopped and started
again.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import command
from benchmarks.rows import provenance


def command_line(name: str, description: str | None) -> argparse.ArgumentParser:
    """Of the study `benchmarks.studies.<name>`."""
    parser = command.parser(f"studies.{name}", description)
    parser.add_argument("--folder", type=Path, default=Path("runs/studies") / name)
    parser.add_argument("--parallel", type=int, default=2, help="runs at the same time")
    parser.add_argument("--report", action="store_true", help="only report what is finished")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    return parser


def result(folder: Path, name: str) -> Path:
    """The file of a run."""
    return folder / f"{name}.json"


def store(folder: Path, name: str, document: Mapping[str, Any]) -> None:
    """Write a run's file, with the facts of this machine."""
    from growtas.base.atomic import write_atomically

    document = {**document, "provenance": asdict(provenance("cpu"))}
    write_atomically(result(folder, name), json.dumps(document, indent=1) + "\n")


def carry_out(module: str, folder: Path, names: Sequence[str], parallel: int) -> None:
    """Run the jobs that have no file, several at a time.

    Raises:
        SystemExit: some failed, which are named; the others are kept.
    """

    def spawn(name: str) -> int:
        arguments = [sys.executable, "-m", module, "--job", name, "--folder", str(folder)]
        code = subprocess.run(
            arguments, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False
        ).returncode
        print(f"{name}: {'failed' if code else 'done'}", flush=True)
        return code

    waiting = [name for name in names if not result(folder, name).is_file()]
    with ThreadPoolExecutor(parallel) as pool:
        failed = [
            name for name, code in zip(waiting, pool.map(spawn, waiting), strict=True) if code
        ]
    if failed:
        raise SystemExit(f"these runs failed; the others are kept: {', '.join(failed)}")


def finished(folder: Path, names: Sequence[str]) -> list[dict[str, Any]]:
    """What the runs that are done have left."""
    paths = (result(folder, name) for name in names)
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths if path.is_file()]


def run(
    module: str, options: argparse.Namespace, names: Sequence[str], report: Callable[[], None]
) -> None:
    """Carry the runs out, unless only a report is asked for; report in any case."""
    try:
        if not options.report:
            carry_out(module, options.folder, names, options.parallel)
    finally:
        report()
