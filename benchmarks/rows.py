"""Result rows: one measured number each, with all that is needed to judge it. Stored as CSV.

Reading them needs no PyTorch, which only the facts of a machine do: it is imported there.
"""

from __future__ import annotations

import csv
import fcntl
import importlib.metadata
import os
import platform
import re
import subprocess
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypedDict

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"


@dataclass(frozen=True)
class Provenance:
    """Where and when a run took place; the same for all of its rows."""

    timestamp: str  # start of the run, UTC; names the run within a file
    hardware: str
    cores: int
    simd: str
    python: str
    torch: str
    triton: str
    growtas: str
    commit: str
    dirty: bool  # files other than stored results differ from the commit
    threads: int


@dataclass(frozen=True)
class Row(Provenance):
    """One number. Times in s, memory in bytes, ratios without unit."""

    device: str
    dtype: str
    batch: int
    space: str
    subnet: str
    task: str
    variant: str  # of a ratio: "numerator / denominator"
    metric: str
    unit: str
    median: float
    q20: float
    q80: float
    n: int


def provenance(device: str) -> Provenance:
    """Facts of this machine and working tree.

    Args:
        device: "cpu" or "cuda".
    """
    import torch

    import growtas

    commit, dirty = git_state()
    cuda = device == "cuda"
    return Provenance(
        timestamp=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        hardware=torch.cuda.get_device_name() if cuda else cpu_model(),
        cores=len(_available_cores()),
        simd=_simd(),
        python=platform.python_version(),
        torch=torch.__version__,
        triton=_version("triton"),
        growtas=growtas.__version__,
        commit=commit,
        dirty=dirty,
        threads=torch.get_num_threads(),
    )


def result_file(device: str, folder: Path) -> Path:
    """Where results go: `cpu-<model>-torch<version>.csv`."""
    import torch

    model = torch.cuda.get_device_name() if device == "cuda" else cpu_model()
    slug = re.sub(r"[^a-z0-9]+", "-", model.lower()).strip("-")
    return folder / f"{device}-{slug}-torch{torch.__version__.split('+')[0]}.csv"


def cpu_model() -> str:
    """The processor's marketing name."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        match = re.search(r"^model name\s*:\s*(.+)$", info.read_text(), re.MULTILINE)
        if match:
            return match.group(1).strip()
    return platform.processor() or platform.machine()


def _available_cores() -> Sequence[int]:
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return range(os.cpu_count() or 1)


def _simd() -> str:
    import torch

    capability = torch.backends.cpu.get_cpu_capability()
    info = Path("/proc/cpuinfo")
    if info.exists() and re.search(r"\bavx512_bf16\b", info.read_text()):
        capability += "+BF16"
    return capability


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "none"


def git_state(checkout: Path = ROOT) -> tuple[str, bool]:
    """The commit, "none" where there is none, and whether files other than stored results differ
    from it."""

    def git(*arguments: str) -> str | None:
        command = ["git", "-C", str(checkout), *arguments]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit = git("rev-parse", "--short=12", "HEAD")
    status = git("status", "--porcelain", "--", ".", ":!benchmarks/results")
    return commit or "none", commit is None or bool(status)


def quantile(samples: Sequence[float], q: float) -> float:
    """Linear interpolation between order statistics."""
    if not samples:
        raise ValueError("no samples")
    ordered = sorted(samples)
    position = q * (len(ordered) - 1)
    low = int(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (position - low) * (ordered[high] - ordered[low])


class Summary(TypedDict):
    """The four numbers of a row."""

    median: float
    q20: float
    q80: float
    n: int


def summary(samples: Sequence[float]) -> Summary:
    """Median, 20 % and 80 % quantile and the number of samples."""
    return {
        "median": quantile(samples, 0.5),
        "q20": quantile(samples, 0.2),
        "q80": quantile(samples, 0.8),
        "n": len(samples),
    }


def append(path: Path, rows: Iterable[Row]) -> None:
    """Add rows to a CSV file, which gets a header when it is new; several processes may.

    Raises:
        ValueError: the file has other columns.
    """
    names = [f.name for f in fields(Row)]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", newline="") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        header = next(csv.reader(file), None)
        if header not in (None, names):
            raise ValueError(f"{path} has other columns than this version writes: {header}")
        writer = csv.DictWriter(file, names, lineterminator="\n")
        if header is None:
            writer.writeheader()
        for row in rows:
            values = asdict(row)
            for name in ("median", "q20", "q80"):
                values[name] = f"{values[name]:.6g}"
            writer.writerow(values)


class Book:
    """Where a run's rows go: each is kept and, with a folder, written to its file at once, so that
    a run which is cut short has lost nothing that it knew.

    Args:
        device: "cpu" or "cuda".
        path: the file; None: rows are only kept.

    Attributes:
        where: facts of this machine and working tree.
        rows: all rows so far.
        failures: a line for each variant that was wrong or raised.
    """

    def __init__(self, device: str, path: Path | None = None) -> None:
        self.device = device
        self.where = provenance(device)
        self.path = path
        self.rows: list[Row] = []
        self.failures: list[str] = []

    @classmethod
    def in_folder(cls, device: str, folder: Path | None) -> Book:
        """With the file of this machine in a folder; without a folder, rows are only kept."""
        return cls(device, folder and result_file(device, folder))

    def store(self, row: Row) -> None:
        self.rows.append(row)
        if self.path is not None:
            append(self.path, [row])

    def exit_status(self) -> int:
        """1 if something failed, which is said; else 0."""
        for line in self.failures:
            print(f"failed: {line}", flush=True)
        return int(bool(self.failures))


def read(path: Path) -> list[Row]:
    """All rows of a CSV file that `append` wrote."""
    convert: dict[str, Callable[[str], Any]] = {
        "int": int,
        "float": float,
        "str": str,
        "bool": lambda text: text == "True",
    }
    with path.open(newline="") as file:
        return [
            Row(**{f.name: convert[str(f.type)](line[f.name]) for f in fields(Row)})
            for line in csv.DictReader(file)
        ]


def newest(rows: Sequence[Row]) -> list[Row]:
    """Of each case (sizes, dtype, task) the rows of the last run that measured it, so that
    some cases can be measured again without the others."""

    def case(row: Row) -> tuple[object, ...]:
        return row.device, row.space, row.subnet, row.batch, row.dtype, row.task

    last: dict[tuple[object, ...], str] = {}
    for row in rows:
        last[case(row)] = max(row.timestamp, last.get(case(row), ""))
    return [row for row in rows if row.timestamp == last[case(row)]]


def runs(rows: Iterable[Row]) -> list[str]:
    """One line of facts for each run among the rows, newest first."""
    lines: dict[str, None] = {}
    for row in rows:
        state = f"{row.commit} with local changes" if row.dirty else row.commit
        lines[
            f"{row.timestamp}: {row.hardware} ({row.cores} cores, {row.simd}), "
            f"{row.threads} thread{'s' * (row.threads != 1)}, torch {row.torch}, "
            f"triton {row.triton}, growtas {row.growtas}, commit {state}"
        ] = None
    return sorted(lines, reverse=True)
