"""How the cost of a step grows with batch, depth, width, tokens and the number of subnets in use.

    python -m benchmarks.studies.growth                  # all axes, about ten minutes on two cores
    python -m benchmarks.studies.growth --axes tokens    # these again, the others' rows stay
    python -m benchmarks.studies.growth --draw           # figure and table from the stored rows

Each point is a case of `benchmarks.run`: the naive supernet and growtas (native backend, gradients
accumulated) on the same weights, checked against each other, then timed in turn; float32, a
training step and a forward pass. One axis varies, the others stay at those of the smallest subnet
of AutoFormer-T (192 wide, 12 deep, 3 heads, MLP ratio 3.5, 196 patches and a class token):

- `batch`: 1 to 64 images.
- `depth`: 12 to 14, the choices of AutoFormer-T, and 4 to 24 in a space of our own; batch 8.
- `width`: 128 to 512 with a head per 64, in a space of our own; batch 4.
- `tokens`: images of 112 to 512 pixels in patches of 16, up to 1,025 tokens; batch 2.
- `subnets`: that many random subnets take turns for at least 30 steps; batch 2. Subnets differ in
  size, so time is divided by the steps' multiply-adds. Every larger number begins with new ones.

Writes growth.csv and growth.png into docs/performance, and the table of docs/performance.md.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks import command, rows
from benchmarks.cases import Case, make_batch
from benchmarks.runner import Effort, Rows, measure_once, no_gc, run_case
from benchmarks.studies.page import fill, table
from benchmarks.switching import random_subnets
from benchmarks.variants import build
from growtas.cost import macs
from growtas.space import SearchSpace, SupernetSize

AXES = ("batch", "depth", "width", "tokens", "subnets")
TASKS = ("train", "forward")
NAIVE, OURS = "naive", "growtas-native-accumulate"
LABELS = {
    "batch": "images per step",
    "depth": "blocks",
    "width": "embedding width",
    "tokens": "tokens",
    "subnets": "subnets that take turns",
}
BATCHES = (1, 2, 4, 8, 16, 32, 64)
DEPTHS = (4, 8, 12, 13, 14, 18, 24)
WIDTHS = (128, 192, 256, 384, 512)
IMAGE_SIZES = (112, 160, 224, 320, 512)
SUBNETS = (1, 5, 20, 50)
SUBNET_STEPS = 30
EFFORT = Effort(min_rounds=3, max_rounds=10, seconds=2)

Point = tuple[int, Case]  # position on the axis, and a case whose smallest subnet is meant


def one_subnet(embed_dim: int, depth: int, heads: int, supernet: SupernetSize) -> SearchSpace:
    """The space that holds a single subnet of a supernet; MLP ratio 3.5."""
    return SearchSpace(
        embed_dim=(embed_dim,),
        depth=(depth,),
        num_heads=(heads,),
        mlp_ratio=(3.5,),
        supernet=supernet,
        name="growth",
    )


def points(axis: str) -> Iterator[Point]:
    """Smallest position first. Each case has the training task."""
    tiny = SearchSpace.preset("autoformer-tiny")
    case = Case(tiny, "smallest", 8, "float32", "train")
    if axis == "batch":
        yield from ((batch, replace(case, batch=batch)) for batch in BATCHES)
    elif axis == "depth":
        size = replace(tiny.supernet, depth=max(DEPTHS))
        for depth in DEPTHS:
            yield depth, replace(case, space=one_subnet(192, depth, 3, size))
    elif axis == "width":
        size = SupernetSize(
            embed_dim=max(WIDTHS), num_heads=max(WIDTHS) // 64, mlp_ratio=4.0, depth=12
        )
        for width in WIDTHS:
            yield width, replace(case, batch=4, space=one_subnet(width, 12, width // 64, size))
    else:
        for image_size in IMAGE_SIZES:
            tokens = (image_size // case.patch_size) ** 2 + 1
            yield tokens, replace(case, batch=2, image_size=image_size)


def measure(
    axis: str, book: rows.Book, effort: Effort, say: Callable[[str], None]
) -> list[rows.Row]:
    """Rows of one axis: task "growth-<axis>-<train or forward>", the position as the subnet."""
    if axis == "subnets":
        return measure_subnets(book, SUBNETS, SUBNET_STEPS, say)
    made = []
    for position, case in points(axis):
        variants = {name: build(name, case, "cpu") for name in (NAIVE, OURS)}
        for task in TASKS:
            found = run_case(variants, replace(case, task=task), book, effort)
            name = f"growth-{axis}-{task}"
            made += [replace(row, task=name, subnet=str(position)) for row in found]
        say(f"{axis} {position}: done")
    return made


def measure_subnets(
    book: rows.Book, counts: Sequence[int], least_steps: int, say: Callable[[str], None]
) -> list[rows.Row]:
    """Seconds per 10^9 multiply-adds of training steps on `count` subnets in turn."""
    space = SearchSpace.preset("autoformer-tiny")
    case = Case(space, "smallest", 2, "float32", "train")
    variants = {name: build(name, case, "cpu") for name in (NAIVE, OURS)}
    batch = make_batch(case, "cpu")
    for variant in variants.values():
        variant.train_step(case, *batch, case.subnet)
    made = []
    for count in counts:
        subnets = random_subnets(space, count, seed=count)
        table = replace(case, subnet_name=str(count))
        found = Rows.of_case(book, table, task="growth-subnets-train")
        samples: dict[str, list[float]] = {name: [] for name in variants}
        with no_gc():
            for step in range(max(count, least_steps)):
                subnet = subnets[step % count]
                for name, variant in variants.items():
                    call = lambda v=variant, s=subnet: v.train_step(case, *batch, s)  # noqa: E731
                    seconds = measure_once(call, "cpu")["wall_time"]
                    samples[name].append(seconds / (3 * case.batch * macs(space, subnet) / 1e9))
        for name, values in samples.items():
            found.add(name, "time_per_gmac", "s", values)
        made += found.rows
        say(f"subnets {count}: done")
    return made


def curves(found: Iterable[rows.Row], axis: str, task: str, variant: str) -> dict[int, rows.Row]:
    """The timed row of every position."""
    chosen = [
        r
        for r in found
        if r.task == f"growth-{axis}-{task}"
        and r.variant == variant
        and r.metric in ("wall_time", "wall_time_ratio", "time_per_gmac")
    ]
    return {int(row.subnet): row for row in sorted(chosen, key=lambda row: int(row.subnet))}


def draw(found: Sequence[rows.Row], path: Path) -> None:
    """A panel per axis."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    axes_found = [a for a in AXES if curves(found, a, "train", OURS)]
    columns = min(3, len(axes_found))
    lines = -(-len(axes_found) // columns)
    figure, panels = pyplot.subplots(
        lines, columns, figsize=(3.6 * columns, 3.0 * lines + 0.6), squeeze=False
    )
    for panel in panels.flat[len(axes_found) :]:
        panel.remove()
    for panel, axis in zip(panels.flat, axes_found, strict=False):
        for variant, colour, label in ((NAIVE, "#9a3b3b", "naive"), (OURS, "#125c41", "growtas")):
            for task, line in (("train", "-"), ("forward", "--")):
                curve = curves(found, axis, task, variant)
                if not curve:
                    continue
                low, high = [r.q20 for r in curve.values()], [r.q80 for r in curve.values()]
                panel.plot(
                    list(curve),
                    [r.median for r in curve.values()],
                    line,
                    color=colour,
                    marker=".",
                    label=f"{label}, {task}",
                )
                panel.fill_between(list(curve), low, high, color=colour, alpha=0.15, linewidth=0)
        panel.set(xlabel=LABELS[axis], ylim=(0, None))
        if axis == "subnets":
            panel.set_xscale("log")
        panel.set_ylabel("s per 10^9 multiply-adds" if axis == "subnets" else "s per step")
        panel.spines[["top", "right"]].set_visible(False)
    handles, labels = panels.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=4, frameon=False, fontsize=8)
    figure.suptitle("\n".join(rows.runs(found)[:3]), fontsize=7)
    figure.tight_layout(rect=(0, 0.3 / figure.get_figheight(), 1, 1))
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def summary(found: Sequence[rows.Row]) -> str:
    """Markdown: times and ratios at both ends of every axis."""
    lines = []
    for axis in AXES:
        ours = curves(found, axis, "train", OURS)
        for position in list(ours)[:: max(1, len(ours) - 1)]:
            row, naive = ours[position], curves(found, axis, "train", NAIVE)[position]
            ratio = curves(found, axis, "train", f"{NAIVE} / {OURS}").get(position)
            forward = curves(found, axis, "forward", f"{NAIVE} / {OURS}").get(position)
            lines.append(
                (
                    LABELS[axis],
                    str(position),
                    _ms(naive),
                    _ms(row),
                    f"{ratio.median if ratio else naive.median / row.median:.2f}",
                    f"{forward.median:.2f}" if forward else "",
                )
            )
    head = ("axis", "", "naive, train", "growtas, train", "naive / growtas", "the same, forward")
    return table(head, lines)


def _ms(row: rows.Row) -> str:
    unit = "ms per 10^9" if row.metric == "time_per_gmac" else "ms"
    return f"{1000 * row.median:.3g} {unit}"


def main() -> None:
    parser = command.parser("studies.growth", __doc__)
    parser.add_argument("--axes", nargs="+", choices=AXES, default=list(AXES))
    parser.add_argument("--draw", action="store_true", help="measure nothing")
    parser.add_argument("--threads", type=int, help="default: PyTorch's")
    parser.add_argument("--out", type=Path, default=Path("docs"), help="folder of performance.md")
    args = parser.parse_args()
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    path = args.out / "performance" / "growth.csv"
    if not args.draw:
        # The book has no file, because the rows of a point get its name before they are stored.
        book = rows.Book("cpu")
        for axis in args.axes:
            made = measure(axis, book, EFFORT, lambda text: print(text, flush=True))
            rows.append(path, made)
        if book.failures:
            sys.exit(book.exit_status())
    found = rows.newest(rows.read(path))
    draw(found, path.with_suffix(".png"))
    fill(args.out / "performance.md", "growth", summary(found))
    print(f"{path}, {path.with_suffix('.png')}, {args.out / 'performance.md'}")


if __name__ == "__main__":
    main()
