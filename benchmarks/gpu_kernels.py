"""`python -m benchmarks.gpu_kernels`: seconds per kernel of a captured training step.

PyTorch's profiler records three replays of one CUDA graph (forward, backward and AdamW in
bfloat16), one at a time. A row is the time of all launches of one kernel in a replay
("kernel_time") and their number ("launches"); the variant "all kernels" is their sum, and
"wall_time" that of replays which no profiler watches: the difference is what the device waits. On
the CPU the same code profiles operators.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks import command, rows
from benchmarks.cases import Case, make_batch
from benchmarks.runner import Rows, measure_once, no_gc, survived
from benchmarks.variants import Variant, build
from growtas.space import SearchSpace

REPLAYS = 3
TIMED = 20  # replays without a profiler
ALL = "all kernels"


def name_of(kernel: str) -> str:
    """What a row calls a kernel: without the return type and what is longer than a line."""
    return kernel.removeprefix("void ")[:120]


def watch(step: Callable[[], object], device: str) -> tuple[Counter[str], Counter[str]]:
    """Seconds and launches of one call by kernel; on the CPU by operator, of its own."""
    activity = ProfilerActivity.CUDA if device == "cuda" else ProfilerActivity.CPU
    with profile(activities=[activity]) as found:
        step()
        if device == "cuda":
            torch.cuda.synchronize()
    seconds: Counter[str] = Counter()
    launches: Counter[str] = Counter()
    for event in found.events():
        if device == "cuda":
            # Annotations span kernels that are counted themselves.
            if event.device_type != DeviceType.CUDA or event.is_user_annotation:
                continue
            microseconds = event.time_range.elapsed_us()
        else:
            microseconds = event.self_cpu_time_total
        seconds[name_of(event.name)] += microseconds / 1e6
        launches[name_of(event.name)] += 1
    return seconds, launches


def measure(case: Case, variant: Variant, table: Rows) -> None:
    """Rows of one case.

    Raises:
        RuntimeError: the profiler saw no kernel.
    """
    device = table.book.device
    images, labels = make_batch(case, device)
    variant.model.train()

    def step() -> None:
        variant.train_step(case, images, labels, case.subnet)

    for _ in range(variant.settling + 1):
        step()
    with no_gc():
        walls = [measure_once(step, device)["wall_time"] for _ in range(TIMED)]
        table.add(variant.name, "wall_time", "s", walls)
        watch(step, device)  # the first use of the profiler takes its time
        seen = [watch(step, device) for _ in range(REPLAYS)]
    names = Counter[str]()
    for seconds, _ in seen:
        names += seconds
    if not names:
        raise RuntimeError("the profiler saw no kernel")
    table.add(ALL, "kernel_time", "s", [s.total() for s, _ in seen])
    table.add(ALL, "launches", "1", [n.total() for _, n in seen])
    for name, _ in names.most_common():
        table.add(name, "kernel_time", "s", [s[name] for s, _ in seen])
        table.add(name, "launches", "1", [n[name] for _, n in seen])


def command_line() -> argparse.ArgumentParser:
    """Everything that can be asked for."""
    parser = command.parser("gpu_kernels", __doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument(
        "--cases",
        nargs="+",
        default=["autoformer-tiny/largest", "autoformer-small/largest"],
        metavar="SPACE/SUBNET",
    )
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--variant", help="default: growtas-triton-graph, on the CPU the reference")
    parser.add_argument("--out", type=Path, help="folder; default: only printed")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    args = command_line().parse_args(arguments)
    cuda = args.device == "cuda"
    name = args.variant or ("growtas-triton-graph" if cuda else "growtas-reference-dense")
    book = rows.Book.in_folder(args.device, args.out)
    for which in args.cases:
        space, subnet = which.split("/")
        case = Case(
            SearchSpace.preset(space),
            subnet,
            args.batch,
            "bfloat16",
            "kernels",
            image_size=args.image_size,
        )
        table = Rows.of_case(book, case)
        with survived(table, name):
            measure(case, build(name, case, args.device), table)
        for row in [r for r in table.rows if r.metric in ("kernel_time", "wall_time")][:40]:
            print(f"{which} {1000 * row.median:9.3f} ms {row.variant}", flush=True)
        if cuda:
            torch.cuda.empty_cache()
    return book.exit_status()


if __name__ == "__main__":
    sys.exit(main())
