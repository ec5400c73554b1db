"""The project's performance targets against stored rows, as a Markdown table.

`python -m benchmarks.report RESULTS.csv` prints it for the newest run in a file. A line appears
only where a row backs it.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import rows


@dataclass(frozen=True)
class Target:
    """A bound on one kind of ratio. `inverted`: stated as ours / baseline, stored the other way."""

    text: str
    device: str
    tasks: tuple[str, ...]
    dtype: str
    baseline: str
    metric: str
    must: float
    goal: float
    at_least: bool
    inverted: bool = False
    spaces: tuple[str, ...] = ("autoformer-tiny",)


BACKEND = {"cpu": "native", "cuda": "triton"}
_TIME, _FP32, _BF16 = "wall_time_ratio", "float32", "bfloat16"
_STEP = ("train_adamw",)
_LARGER = ("autoformer-small", "autoformer-base")

TARGETS = (
    Target(
        "fp32 train step, naive / ours",
        "cpu", ("train",), _FP32, "naive", _TIME, 2.3, 2.9, True,
    ),
    Target(
        "fp32 train step, ours / timm without relative position",
        "cpu", ("train",), _FP32, "timm", _TIME, 0.90, 0.75, False, inverted=True,
    ),
    Target(
        "bf16 train step, naive / ours",
        "cpu", ("train",), _BF16, "naive", _TIME, 2.5, 3.5, True,
    ),
    Target(
        "fp32 forward, naive / ours",
        "cpu", ("forward",), _FP32, "naive", _TIME, 1.7, 2.3, True,
    ),
    Target(
        "extra memory of a train step, ours / naive",
        "cpu", ("memory",), _FP32, "", "extra_memory_ratio", 0.50, 0.35, False,
    ),
    Target(
        "random subnets / one fixed subnet of the mean size",
        "cpu", ("switching",), _FP32, "", "random_over_fixed", 1.05, 1.01, False,
    ),
    Target(
        "bf16 train step, naive / ours",
        "cuda", _STEP, _BF16, "naive", _TIME, 4, 8, True,
    ),
    Target(
        "bf16 train step, naive / ours",
        "cuda", _STEP, _BF16, "naive", _TIME, 2, 4, True, spaces=_LARGER,
    ),
    *(
        Target(
            f"bf16 train step, {name} / ours",
            "cuda", _STEP, _BF16, name, _TIME, 1.5, 3, True,
        )
        for name in ("smart", "compile-static", "compile-dynamic")
    ),
    Target(
        "attention forward and backward, share of the roofline",
        "cuda", ("attention-roofline",), _BF16, "", "roofline_share", 0.4, 0.65, True,
        spaces=("autoformer-tiny", *_LARGER),
    ),
    Target(
        "bf16 train step, extracted subnet, compiled and graphed / ours",
        "cuda", _STEP, _BF16, "extracted-graph", _TIME, 0.8, 1.1, True,
    ),
    Target(
        "extra memory of a train step, ours / naive",
        "cuda", ("memory",), _BF16, "", "extra_memory_ratio", 0.50, 0.35, False,
    ),
)  # fmt: skip


def _variants(target: Target) -> dict[str, str]:
    """The variant column that measures the target -> which of ours it is."""
    found = {}
    for mode in ("dense", "accumulate"):
        ours = f"growtas-{BACKEND[target.device]}-{mode}"
        name = f"{target.baseline} / {ours}" if target.baseline else ours
        if target.metric == "extra_memory_ratio":
            name = f"{ours} / naive"
        found[name] = ours
    if target.metric == "roofline_share":
        found = {"growtas-triton": "growtas-triton"}
    return found


def matches(found: Sequence[rows.Row]) -> Iterator[tuple[Target, rows.Row]]:
    """Every target with each row that measures it."""
    for target in TARGETS:
        for row in found:
            if (
                row.device == target.device
                and row.task in target.tasks
                and row.dtype == target.dtype
                and row.metric == target.metric
                and row.space in target.spaces
                and row.variant in _variants(target)
            ):
                yield target, row


def table(found: Sequence[rows.Row]) -> str:
    """Markdown: case, must, goal, measured median with quantiles, verdict."""
    lines = [
        "| target | ours | space | subnet | batch | must | goal | measured (20 - 80 %) | reached |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for target, row in matches(found):
        low, value, high = row.q20, row.median, row.q80
        if target.inverted:
            low, value, high = 1 / high, 1 / value, 1 / low
        sign = 1 if target.at_least else -1
        reached = (
            "goal"
            if sign * value >= sign * target.goal
            else "must"
            if sign * value >= sign * target.must
            else "no"
        )
        bound = ">=" if target.at_least else "<="
        lines.append(
            f"| {target.text} | {_variants(target)[row.variant]} | {row.space} | {row.subnet} "
            f"| {row.batch} | {bound} {target.must:g} | {bound} {target.goal:g} "
            f"| {value:.2f} ({low:.2f} - {high:.2f}) | {reached} |"
        )
    if len(lines) == 2:
        return "No row of this run measures a target."
    return "\n".join(lines)


def page(found: Sequence[rows.Row]) -> str:
    """The table with the facts of the run above it; generated, not to be edited."""
    row = found[0]
    state = f"{row.commit} with local changes" if row.dirty else row.commit
    facts = (
        f"{row.hardware} ({row.cores} cores, {row.simd}), {row.threads} threads, "
        f"torch {row.torch}, triton {row.triton}, growtas {row.growtas}, commit {state}, "
        f"{row.timestamp}"
    )
    return (
        "# Targets and measurements\n\nGenerated by `python -m benchmarks.run` from the rows of "
        f"the CSV file beside this page.\n\n{facts}.\n\n"
        f"{table(found)}\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    parser.add_argument("results", type=Path, help="CSV file of benchmarks.run")
    args = parser.parse_args()
    print(page(rows.latest_run(rows.read(args.results))))


if __name__ == "__main__":
    main()
