"""The project's performance targets against stored rows, as a Markdown page with a chart.

`python -m benchmarks.report RESULTS.csv` writes both beside the file, from the newest rows of every
case in it. A line appears only where a row backs it.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks import command, plot, rows


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
    for mode in ("dense", "accumulate", "graph"):
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


def _table(head: Sequence[str], lines: Iterable[Sequence[object]]) -> str:
    """Markdown; empty where there are no lines."""
    body = ["| " + " | ".join(map(str, line)) + " |" for line in lines]
    if not body:
        return ""
    return "\n".join([f"| {' | '.join(head)} |", "|---" * len(head) + "|", *body])


def _spread(row: rows.Row, form: str, scale: float = 1.0) -> str:
    """Median and quantiles."""
    middle, low, high = (format(scale * v, form) for v in (row.median, row.q20, row.q80))
    return f"{middle} ({low} - {high})"


def _judged(target: Target, row: rows.Row) -> tuple[object, ...]:
    """The line of a row that measures a target."""
    if target.inverted:
        low, high = 1 / row.q80, 1 / row.q20
        row = replace(row, median=1 / row.median, q20=low, q80=high)
    sign = 1 if target.at_least else -1
    bound = ">=" if target.at_least else "<="
    reached = next(
        (name for name in ("goal", "must") if sign * row.median >= sign * getattr(target, name)),
        "no",
    )
    return (
        target.text, _variants(target)[row.variant], row.space, row.subnet, row.batch,
        f"{bound} {target.must:g}", f"{bound} {target.goal:g}", _spread(row, ".2f"), row.commit,
        reached,
    )  # fmt: skip


def table(found: Sequence[rows.Row]) -> str:
    """Markdown: case, must, goal, measured median with quantiles, verdict."""
    head = (
        "target", "ours", "space", "subnet", "batch", "must", "goal", "measured (20 - 80 %)",
        "commit", "reached",
    )  # fmt: skip
    lines = (_judged(*pair) for pair in matches(found))
    return _table(head, lines) or "No row measures a target."


# The following are Markdown too, and empty where nothing was measured.


def compile_times(found: Sequence[rows.Row]) -> str:
    """Seconds of the first calls of the compiled baselines, which are not in any ratio."""
    lines = []
    for name in ("compile-static", "compile-dynamic"):
        first = [r.median for r in found if (r.variant, r.metric) == (name, "warmup_time")]
        if first:
            lines.append((name, len(first), f"{sum(first):.0f}", f"{max(first):.0f}"))
    head = ("first calls, compilation included", "cases", "s in all", "s at most")
    return _table(head, lines)


def subnet_rates(found: Sequence[rows.Row]) -> str:
    """Subnets per second, another one at every step, and what the host spends on each."""
    measured: dict[tuple[object, ...], rows.Row] = {
        (r.task, r.space, r.batch, r.dtype, r.variant, r.metric): r
        for r in found
        if r.task.startswith("subnets-")
    }
    lines = []
    for (*case, metric), row in measured.items():
        if metric != "subnets_per_second":
            continue
        cold = measured.get((*case, "subnets_per_second_from_cold"))
        host = measured.get((*case, "host_time"))
        lines.append(
            (
                row.task.removeprefix("subnets-"), row.space, row.batch, row.dtype, row.variant,
                _spread(row, ".4g"),
                f"{cold.median:.4g}" if cold else "",
                f"{1000 * host.median:.3f}" if host else "",
            )
        )  # fmt: skip
    head = (
        "random subnets", "space", "batch", "dtype", "variant", "per second (20 - 80 %)",
        "warm-up counted in", "host, ms",
    )  # fmt: skip
    return _table(head, lines)


def failures(found: Sequence[rows.Row]) -> str:
    """Variants that were wrong or raised."""
    what = {
        "wrong_result": lambda row: f"{row.median:.3g} times the error allowed",
        "failed": lambda row: row.unit,
    }
    lines = [
        (r.task, r.space, r.subnet, r.batch, r.dtype, r.variant, what[r.metric](r))
        for r in found
        if r.metric in what
    ]
    return _table(("failed", "space", "subnet", "batch", "dtype", "variant", "what"), lines)


def checks(found: Sequence[rows.Row]) -> str:
    """The first steps on a device and its tests."""
    lines = [
        (row.task, row.space, row.variant, row.metric, f"{row.median:.3g}")
        for row in found
        if row.task in ("smoke", "tests") and row.metric not in ("failed", "wrong_result")
    ]
    return _table(("check", "space", "what", "metric", "value"), lines)


LISTED_KERNELS = 14


def kernel_times(found: Sequence[rows.Row]) -> str:
    """Where a training step's time goes on the device: the longest kernels of each case."""
    cases: dict[tuple[object, ...], dict[str, list[rows.Row]]] = {}
    for row in found:
        if row.metric in ("kernel_time", "launches"):
            case = (row.space, row.subnet, row.batch, row.timestamp)
            metrics = cases.setdefault(case, {"kernel_time": [], "launches": []})
            metrics[row.metric].append(row)
    lines = []
    for (space, subnet, batch, _), metrics in cases.items():
        launches = {row.variant: row.median for row in metrics["launches"]}
        longest = sorted(metrics["kernel_time"], key=lambda row: -row.median)[:LISTED_KERNELS]
        lines += [
            (
                space, subnet, batch, row.variant[:60], f"{1000 * row.median:.3f}",
                f"{launches.get(row.variant, 0):.0f}",
            )
            for row in longest
        ]  # fmt: skip
    head = ("seconds by kernel", "subnet", "batch", "kernel", "ms a step", "launches")
    return _table(head, lines)


def step_times(found: Sequence[rows.Row]) -> str:
    """Wall time of a training step with the optimizer, by variant."""
    lines = [
        (row.space, row.subnet, row.batch, row.variant, _spread(row, ".2f", 1000))
        for row in found
        if (row.task, row.metric) == ("train_adamw", "wall_time")
    ]
    head = ("train step with AdamW", "subnet", "batch", "variant", "ms (20 - 80 %)")
    return _table(head, lines)


def sections(found: Sequence[rows.Row]) -> list[str]:
    """What a page says of rows, each part in Markdown."""
    parts = (
        "\n".join(f"- {line}" for line in rows.runs(found)),
        failures(found),
        checks(found),
        kernel_times(found),
        step_times(found),
        table(found),
        compile_times(found),
        subnet_rates(found),
    )
    return [part for part in parts if part]


def page(found: Sequence[rows.Row]) -> str:
    """Runs, targets and compile times; generated, not to be edited."""
    head = (
        "# Targets and measurements",
        "Generated by `python -m benchmarks.run` from the newest rows of every case in the CSV "
        "file beside this page.",
    )
    return "\n\n".join([*head, *sections(found)]) + "\n"


def write(results: Path) -> None:
    """The page and, with matplotlib, the chart of a file of rows, beside it."""
    newest = rows.newest(rows.read(results))
    results.with_suffix(".md").write_text(page(newest), encoding="utf-8")
    if importlib.util.find_spec("matplotlib") is None:
        print("no chart: matplotlib is not installed")
    else:
        plot.chart(newest, results.with_suffix(".png"))


def main() -> None:
    parser = command.parser("report", __doc__)
    parser.add_argument("results", type=Path, help="CSV file of benchmarks.run")
    write(parser.parse_args().results)


if __name__ == "__main__":
    main()
