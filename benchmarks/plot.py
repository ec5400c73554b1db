"""Bar chart of results: how many times faster ours is than each baseline, case by case.

One panel per task and dtype, one group of bars per subnet and batch; a bar is the median of ratios
taken round by round, its whisker the 20 and 80 % quantiles.
"""

from __future__ import annotations

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
}
LABELS = {
    "naive": "naive (AutoFormer's way)",
    "smart": "plain PyTorch done well",
    "timm": "timm, no relative position, no sharing",
    "compile-static": "torch.compile per block shape",
    "compile-dynamic": "torch.compile(dynamic=True)",
}
# The first of these that was measured stands for growtas.
OURS = tuple(
    f"growtas-{backend}-{mode}"
    for backend in ("triton", "native", "reference")
    for mode in ("graph", "accumulate", "dense")
)

Group = tuple[str, str, int]  # space, subnet, batch


def ratios(found: Sequence[rows.Row], task: str, dtype: str) -> dict[Group, dict[str, rows.Row]]:
    """For each group of bars, the row "baseline / ours" by baseline. A group in which all of ours
    failed has none."""
    some = [r for r in found if (r.task, r.dtype, r.metric) == (task, dtype, "wall_time_ratio")]
    groups: dict[Group, dict[str, rows.Row]] = {}
    for row in some:
        groups.setdefault((row.space, row.subnet, row.batch), {})[row.variant] = row
    chosen = {}
    for group, by_variant in groups.items():
        ours = next((name for name in OURS if f"naive / {name}" in by_variant), None)
        if ours is None:
            continue
        pairs = {name: by_variant.get(f"{name} / {ours}") for name in COLOURS}
        chosen[group] = {name: row for name, row in pairs.items() if row is not None}
    return chosen


def chart(found: Sequence[rows.Row], path: Path) -> None:
    """Write a PNG of the ratios of whole steps. Nothing is written when there are none."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.patches import Patch

    dtypes = sorted({r.dtype for r in found}, reverse=True)
    panels = [(task, dtype, ratios(found, task, dtype)) for task in TASKS for dtype in dtypes]
    panels = [panel for panel in panels if panel[2]]
    if not panels:
        return
    columns = min(2, len(panels))
    lines = -(-len(panels) // columns)
    figure, axes = pyplot.subplots(
        lines, columns, figsize=(6.6 * columns, 3.3 * lines + 0.9), squeeze=False
    )
    for axis in axes.flat[len(panels) :]:
        axis.remove()
    shown: dict[str, None] = {}
    for axis, (task, dtype, groups) in zip(axes.flat, panels, strict=False):
        for position, bars in enumerate(groups.values()):
            width = 0.85 / len(bars)
            for index, (name, row) in enumerate(bars.items()):
                shown[name] = None
                axis.bar(
                    position + (index - (len(bars) - 1) / 2) * width,
                    row.median,
                    width,
                    yerr=[[row.median - row.q20], [row.q80 - row.median]],
                    error_kw={"linewidth": 0.8},
                    color=COLOURS[name],
                )
        axis.axhline(1.0, color="#125c41", linewidth=1.2)
        axis.set_xticks(range(len(groups)), [_label(*group) for group in groups], fontsize=8)
        axis.set_title(f"{task}, {dtype}" + (" autocast" if dtype != "float32" else ""))
        axis.set_ylabel("time / time of growtas")
        axis.spines[["top", "right"]].set_visible(False)
    handles = [Patch(color=COLOURS[name], label=LABELS[name]) for name in COLOURS if name in shown]
    figure.legend(handles=handles, loc="lower center", ncols=3, frameon=False, fontsize=8)
    figure.suptitle("\n".join(rows.runs(found)[:3]), fontsize=7)
    figure.tight_layout(rect=(0, 0.4 / figure.get_figheight(), 1, 1))
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def _label(space: str, subnet: str, batch: int) -> str:
    return f"{space.removeprefix('autoformer-')}\n{subnet}\nbatch {batch}"
