"""Where the time of a training step goes, operator by operator, against the arithmetic floor.

    python -m benchmarks.studies.operator_profile          # about a minute
    python -m benchmarks.studies.operator_profile --draw   # the table from the stored rows

A training step of growtas (native backend, gradients accumulated) on the smallest subnet of
AutoFormer-T under torch.profiler, in float32 and under bfloat16 autocast. The time of an operator
is the one spent in itself, not in others that it calls. Its floor is the time that its products
would take at the best rate of this machine, measured in the same run on a 2048 x 2048 x 2048
product; the backward of attention counts five products for the forward's two, as no probabilities
are kept. What is not a product (norms, softmax, activations, additions) has no floor.

Writes profile.csv into docs/performance, and the table of docs/performance.md.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks import command, rows
from benchmarks.cases import Case, make_batch
from benchmarks.runner import Rows, no_gc
from benchmarks.studies.page import fill, table
from benchmarks.variants import Variant, build
from growtas.space import SearchSpace

DTYPES = ("float32", "bfloat16")
OURS = "growtas-native-accumulate"
NATIVE = "growtas_native::"
BETWEEN = "between operators (Python, autograd)"
STEP, FLOOR = "whole step", "floor"
PRODUCT = 2048


def best_rate(dtype: torch.dtype, size: int = PRODUCT, repetitions: int = 10) -> float:
    """FLOP/s of the fastest of some square products."""
    a, b = (torch.randn(size, size).to(dtype) for _ in range(2))
    seconds = []
    for _ in range(repetitions + 1):  # the first one warms up
        start = time.perf_counter()
        a.mm(b)
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds[1:])


def flops(case: Case) -> dict[str, int]:
    """Floating-point operations of a training step by native operator, products only."""
    subnet, head_dim = case.subnet, case.space.head_dim
    side = case.image_size // case.patch_size
    patches, tokens = side**2, side**2 + 1
    blocks = zip(subnet.num_heads, subnet.hidden_dims, strict=True)
    linear = attention = 0
    for heads, hidden in blocks:
        linear += tokens * subnet.embed_dim * (4 * heads * head_dim + 2 * hidden)
        # scores and mixing, and the queries' and the sums' products with the position tables
        attention += 2 * heads * head_dim * (tokens**2 + patches * (2 * side + 1))
    embedding = patches * 3 * case.patch_size**2 * subnet.embed_dim
    each = {
        "linear_forward": linear + embedding,
        "linear_backward": 2 * linear + embedding,  # images need no gradient
        "attention_forward": attention,
        "attention_backward": 5 * attention // 2,
    }
    return {NATIVE + name: 2 * case.batch * macs for name, macs in each.items()}


def self_times(variant: Variant, case: Case) -> dict[str, float]:
    """Seconds by operator of one profiled step, and what lies between them."""
    batch = make_batch(case, "cpu")
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        start = time.perf_counter()
        variant.train_step(case, *batch, case.subnet)
        wall = time.perf_counter() - start
    # Events with a namespace are operators; the others are ranges and autograd's bookkeeping.
    found = {
        event.key: event.self_cpu_time_total / 1e6
        for event in profiler.key_averages()
        if event.key.startswith((NATIVE, "aten::", "mkldnn::", "mkl::"))
    }
    return found | {BETWEEN: wall - sum(found.values())}


def measure(case: Case, book: rows.Book, repetitions: int) -> list[rows.Row]:
    """Rows of one dtype: "self_time" and "floor_time" by operator, "wall_time" of the step without
    a profiler, "rate" of the machine."""
    made = Rows.of_case(book, case, task="profile")
    variant = build(OURS, case, "cpu")
    variant.model.train()
    batch = make_batch(case, "cpu")
    walls, profiles = [], []
    with no_gc():
        for _ in range(repetitions + 1):  # the first one warms up
            start = time.perf_counter()
            variant.train_step(case, *batch, case.subnet)
            walls.append(time.perf_counter() - start)
            profiles.append(self_times(variant, case))
        rate = best_rate(getattr(torch, case.dtype))
    made.add(STEP, "wall_time", "s", walls[1:])
    names = dict.fromkeys(name for profile in profiles[1:] for name in profile)
    for name in names:
        made.add(name, "self_time", "s", [profile.get(name, 0.0) for profile in profiles[1:]])
    made.add(FLOOR, "rate", "FLOP/s", [rate])
    work = flops(case)
    for name, value in work.items():
        made.add(name, "floor_time", "s", [value / rate])
    made.add(STEP, "floor_time", "s", [sum(work.values()) / rate])
    return made.rows


def summary(found: Sequence[rows.Row]) -> str:
    """Markdown: milliseconds and floors of both dtypes, PyTorch's own operators in one line."""
    times = {(r.dtype, r.variant, r.metric): r.median for r in found}
    own = {r.variant for r in found if r.metric == "self_time"} - {BETWEEN}
    by_time = sorted(own, key=lambda name: (-_total(times, name), name))
    native = [name for name in by_time if name.startswith(NATIVE)]
    lines = [_line(times, name.removeprefix(NATIVE), [name]) for name in native]
    lines.append(_line(times, "PyTorch's own", [n for n in by_time if n not in native]))
    lines.append(_line(times, BETWEEN, [BETWEEN]))
    walls = [times.get((d, STEP, "wall_time")) for d in DTYPES]
    floors = [times.get((d, STEP, "floor_time")) for d in DTYPES]
    lines.append(
        (f"{STEP}, without a profiler", *_cells(walls[0], floors[0]), *_cells(walls[1], floors[1]))
    )
    rates = [times.get((d, FLOOR, "rate")) for d in DTYPES]
    head = ("operator", "fp32, ms", "floor", "bf16, ms", "floor")
    note = ", ".join(
        f"{rate / 1e9:.0f} GFLOP/s in {dtype}"
        for dtype, rate in zip(DTYPES, rates, strict=True)
        if rate is not None
    )
    return f"{table(head, lines)}\n\nFloor: products at {note}."


def _total(times: Mapping[tuple[str, str, str], float], name: str) -> float:
    return sum(times.get((dtype, name, "self_time"), 0.0) for dtype in DTYPES)


def _line(
    times: Mapping[tuple[str, str, str], float], label: str, names: Sequence[str]
) -> tuple[str, ...]:
    cells: list[str] = []
    for dtype in DTYPES:
        own = [times.get((dtype, name, "self_time"), 0.0) for name in names]
        floors = [times[key] for n in names if (key := (dtype, n, "floor_time")) in times]
        cells += _cells(sum(own), sum(floors) if floors else None)
    return label, *cells


def _cells(seconds: float | None, floor: float | None) -> tuple[str, str]:
    def cell(value: float | None) -> str:
        return "" if value is None else f"{1000 * value:.1f}"

    return cell(seconds), cell(floor)


def main() -> None:
    parser = command.parser("studies.operator_profile", __doc__)
    parser.add_argument("--batch", type=int, default=16, help="images")
    parser.add_argument("--steps", type=int, default=7, help="profiled steps of each dtype")
    parser.add_argument("--draw", action="store_true", help="measure nothing")
    parser.add_argument("--threads", type=int, help="default: PyTorch's")
    parser.add_argument("--out", type=Path, default=Path("docs"), help="folder of performance.md")
    args = parser.parse_args()
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    path = args.out / "performance" / "profile.csv"
    if not args.draw:
        book = rows.Book("cpu", path)
        space = SearchSpace.preset("autoformer-tiny")
        case = Case(space, "smallest", args.batch, DTYPES[0], "train")
        for dtype in DTYPES:
            measure(replace(case, dtype=dtype), book, args.steps)
    found = rows.newest(rows.read(path))
    fill(args.out / "performance.md", "profile", summary(found))
    print(f"{path}, {args.out / 'performance.md'}")


if __name__ == "__main__":
    main()
