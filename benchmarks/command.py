"""What the measuring commands share: arguments, a clock before every line, an empty compile cache.

The plan for a GPU, whose own process needs no PyTorch, imports this too.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.rows import RESULTS, Book

Say = Callable[[str], None]


def parser(name: str, description: str | None) -> argparse.ArgumentParser:
    """Of `python -m benchmarks.<name>`, without arguments."""
    return argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def measuring_parser(name: str, description: str | None, case: str) -> argparse.ArgumentParser:
    """With the arguments that `measuring` reads, and patterns of cases."""
    found = parser(name, description)
    found.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    found.add_argument(
        "--cases",
        nargs="+",
        default=["*"],
        metavar="PATTERN",
        help=f"only {case} that match, as in '*tiny/*/16/*'",
    )
    found.add_argument("--threads", type=int, help="default: PyTorch's")
    found.add_argument("--out", type=Path, help="folder; default benchmarks/results, not --quick")
    return found


@contextmanager
def measuring(args: argparse.Namespace) -> Iterator[tuple[Book, Say]]:
    """The book that rows go into, and a way to say something."""
    if args.threads is not None:
        import torch

        torch.set_num_threads(args.threads)
    book = Book.in_folder(args.device, args.out or (None if args.quick else RESULTS))
    start = time.perf_counter()

    def say(text: str) -> None:
        print(f"[{time.perf_counter() - start:6.1f} s] {text}", flush=True)

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as cache:
        # An empty cache, so that stored warm-up times mean the same in every run.
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
        yield book, say
