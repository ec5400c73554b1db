"""The project's performance targets against stored rows, as a Markdown table.

`python -m benchmarks.report RESULTS.csv` prints it for the newest rows of every case in
a file. A line appears only where a row backs it.
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


def table(found: Sequence[rows.Row]) -> str:
    """Markdown: case, must, goal, measured median with quantiles, verdict."""
    lines = [
        "| target | ours | space | subnet | batch | must | goal | measured (20 - 80 %) | commit "
        "| reached |",
        "|---|---|---|---|---|---|---|---|---|---|",
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
            f"| {value:.2f} ({low:.2f} - {high:.2f}) | {row.commit} | {reached} |"
        )
    if len(lines) == 2:
        return "No row measures a target."
    return "\n".join(lines)


def compile_times(found: Sequence[rows.Row]) -> str:
    """Markdown: seconds of the first calls of the compiled baselines, which are not in any ratio.
    Empty where none was measured."""
    lines = []
    for name in ("compile-static", "compile-dynamic"):
        first = [r.median for r in found if (r.variant, r.metric) == (name, "warmup_time")]
        if first:
            lines.append(f"| {name} | {len(first)} | {sum(first):.0f} | {max(first):.0f} |")
    if not lines:
        return ""
    head = ["| first calls, compilation included | cases | s in all | s at most |"]
    return "\n".join([*head, "|---|---|---|---|", *lines])


def product_rates(found: Sequence[rows.Row]) -> str:
    """Markdown: our products' rates and their ratios to PyTorch's libraries, each from the slowest
    to the fastest layer. Empty where none was measured."""
    groups: dict[tuple[str, int, str, str], list[rows.Row]] = {}
    for row in found:
        if row.task.startswith("product-"):
            _, _, direction = row.task.split("-", 2)
            groups.setdefault((row.space, row.batch, row.dtype, direction), []).append(row)
    if not groups:
        return ""
    from benchmarks.products import OURS  # with PyTorch, which the rest of a page does not need

    lines = [
        "| product on one thread | batch | dtype | ours, GFLOP/s | / torch | / onednn |",
        "|---|---|---|---|---|---|",
    ]
    for (space, batch, dtype, direction), some in groups.items():
        cells = []
        for variant, metric, scale in (
            (OURS, "rate", 1e-9),
            (f"{OURS} / torch", "rate_ratio", 1.0),
            (f"{OURS} / onednn", "rate_ratio", 1.0),
        ):
            values = [scale * r.median for r in some if (r.variant, r.metric) == (variant, metric)]
            cells.append(f"{min(values):.3g} - {max(values):.3g}" if values else "failed")
        lines.append(f"| {space}, {direction} | {batch} | {dtype} | {' | '.join(cells)} |")
    return "\n".join(lines)


def subnet_rates(found: Sequence[rows.Row]) -> str:
    """Markdown: subnets per second, another one at every step, and what the host spends on each.
    Empty where none was measured."""
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
            f"| {row.task.removeprefix('subnets-')} | {row.space} | {row.batch} | {row.dtype} "
            f"| {row.variant} | {row.median:.4g} ({row.q20:.4g} - {row.q80:.4g}) "
            f"| {f'{cold.median:.4g}' if cold else ''} "
            f"| {f'{1000 * host.median:.3f}' if host else ''} |"
        )
    if not lines:
        return ""
    head = (
        "| random subnets | space | batch | dtype | variant | per second (20 - 80 %) "
        "| warm-up counted in | host, ms |"
    )
    return "\n".join([head, "|---|---|---|---|---|---|---|---|", *lines])


def failures(found: Sequence[rows.Row]) -> str:
    """Markdown: variants that were wrong or raised. Empty where none did."""
    lines = []
    for row in found:
        if row.metric == "wrong_result":
            what = f"{row.median:.3g} times the error allowed"
        elif row.metric == "failed":
            what = row.unit
        else:
            continue
        case = f"{row.task} | {row.space} | {row.subnet} | {row.batch} | {row.dtype}"
        lines.append(f"| {case} | {row.variant} | {what} |")
    if not lines:
        return ""
    head = "| failed | space | subnet | batch | dtype | variant | what |"
    return "\n".join([head, "|---|---|---|---|---|---|---|", *lines])


def checks(found: Sequence[rows.Row]) -> str:
    """Markdown: the first steps on a device and its tests. Empty where none was made."""
    lines = [
        f"| {row.task} | {row.space} | {row.variant} | {row.metric} | {row.median:.3g} |"
        for row in found
        if row.task in ("smoke", "tests") and row.metric not in ("failed", "wrong_result")
    ]
    if not lines:
        return ""
    return "\n".join(["| check | space | what | metric | value |", "|---|---|---|---|---|", *lines])


LISTED_KERNELS = 14


def kernel_times(found: Sequence[rows.Row]) -> str:
    """Markdown: where a training step's time goes on the device, the longest kernels of each case.
    Empty where none was measured."""
    cases: dict[tuple[str, str, int, str], list[rows.Row]] = {}
    for row in found:
        if row.metric == "kernel_time":
            cases.setdefault((row.space, row.subnet, row.batch, row.timestamp), []).append(row)
    lines = []
    for (space, subnet, batch, timestamp), some in cases.items():
        launches = {
            row.variant: row.median
            for row in found
            if row.metric == "launches"
            and (row.space, row.subnet, row.batch, row.timestamp)
            == (space, subnet, batch, timestamp)
        }
        lines += [
            f"| {space} | {subnet} | {batch} | {row.variant[:60]} | {1000 * row.median:.3f} "
            f"| {launches.get(row.variant, 0):.0f} |"
            for row in sorted(some, key=lambda row: -row.median)[:LISTED_KERNELS]
        ]
    if not lines:
        return ""
    head = "| seconds by kernel | subnet | batch | kernel | ms a step | launches |"
    return "\n".join([head, "|---|---|---|---|---|---|", *lines])


def step_times(found: Sequence[rows.Row]) -> str:
    """Markdown: wall time of a training step with the optimizer, by variant. Empty where none was
    measured."""
    lines = [
        f"| {row.space} | {row.subnet} | {row.batch} | {row.variant} "
        f"| {1000 * row.median:.2f} ({1000 * row.q20:.2f} - {1000 * row.q80:.2f}) |"
        for row in found
        if (row.task, row.metric) == ("train_adamw", "wall_time")
    ]
    if not lines:
        return ""
    head = "| train step with AdamW | subnet | batch | variant | ms (20 - 80 %) |"
    return "\n".join([head, "|---|---|---|---|---|", *lines])


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
        product_rates(found),
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


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    parser.add_argument("results", type=Path, help="CSV file of benchmarks.run")
    args = parser.parse_args()
    print(page(rows.newest(rows.read(args.results))))


if __name__ == "__main__":
    main()
