"""Bar chart of a run: one panel per task and dtype, one group per subnet, one bar per variant.

`python -m benchmarks.plot RESULTS.csv CHART.png` draws the newest run in a file.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from benchmarks import rows

TASKS = ("train", "train_adamw", "forward")
COLOURS = {
    "naive": "#9a3b3b",
    "smart": "#c98b5a",
    "timm": "#8a8a8a",
    "compile-static": "#7a6aa8",
    "compile-dynamic": "#b3a8d6",
    "growtas-reference-dense": "#9cc3b2",
    "growtas-reference-accumulate": "#6da38c",
    "growtas-native-dense": "#3d8568",
    "growtas-native-accumulate": "#125c41",
    "growtas-triton-dense": "#3d8568",
    "growtas-triton-accumulate": "#125c41",
}


def chart(found: Sequence[rows.Row], path: Path) -> None:
    """Write a PNG of the wall times of whole steps. Nothing is written when there are none."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    timed = [r for r in found if r.metric == "wall_time" and r.task in TASKS]
    if not timed:
        return
    panels = sorted(
        {(r.task, r.dtype) for r in timed}, key=lambda p: (TASKS.index(p[0]), p[1] != "float32")
    )
    columns = min(2, len(panels))
    lines = -(-len(panels) // columns)
    figure, axes = pyplot.subplots(
        lines, columns, figsize=(6.4 * columns, 3.6 * lines + 0.8), squeeze=False
    )
    for axis in axes.flat[len(panels) :]:
        axis.remove()
    for axis, (task, dtype) in zip(axes.flat, panels, strict=False):
        some = [r for r in timed if (r.task, r.dtype) == (task, dtype)]
        groups = list(dict.fromkeys((r.space, r.subnet, r.batch) for r in some))
        variants = [name for name in COLOURS if any(r.variant == name for r in some)]
        width = 0.85 / len(variants)
        for position, name in enumerate(variants):
            bars = {(r.space, r.subnet, r.batch): r for r in some if r.variant == name}
            shown = [(i, bars[group]) for i, group in enumerate(groups) if group in bars]
            offset = (position - (len(variants) - 1) / 2) * width
            heights = [1000 * r.median for _, r in shown]
            spread = [
                [1000 * (r.median - r.q20) for _, r in shown],
                [1000 * (r.q80 - r.median) for _, r in shown],
            ]
            axis.bar(
                [i + offset for i, _ in shown],
                heights,
                width,
                yerr=spread,
                error_kw={"linewidth": 0.8},
                color=COLOURS[name],
                label=name,
            )
        axis.set_xticks(
            range(len(groups)), [f"{space}\n{subnet}, batch {b}" for space, subnet, b in groups]
        )
        axis.set_title(f"{task}, {dtype}" + (" autocast" if dtype != "float32" else ""))
        axis.set_ylabel("ms per step")
        axis.spines[["top", "right"]].set_visible(False)
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=4, frameon=False, fontsize=8)
    row = timed[0]
    figure.suptitle(
        f"{row.hardware}, {row.threads} threads, torch {row.torch}, growtas {row.growtas} "
        f"({row.commit}), {row.timestamp[:10]}; median, 20 - 80 %",
        fontsize=9,
    )
    figure.tight_layout(rect=(0, 0.08, 1, 1))
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plot", description=__doc__)
    parser.add_argument("results", type=Path, help="CSV file of benchmarks.run")
    parser.add_argument("chart", type=Path, help="PNG to write")
    args = parser.parse_args()
    chart(rows.latest_run(rows.read(args.results)), args.chart)


if __name__ == "__main__":
    main()
