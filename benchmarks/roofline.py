"""`python -m benchmarks.roofline`: attention on a GPU against what the GPU could do at best.

The ceilings are measured first: bytes per second of a large copy on the device (read and written)
and the rate of a large bfloat16 product of random matrices. Attention, forward and backward,
must compute 14 B h N^2 d operations (two products forward, five backward) and move q, k, v, out
and their gradients once each, and q, k, v, out once more backward; the relative term is not
counted. The floor is the larger of the two times, the share is the floor over the time measured.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from benchmarks import command, rows
from benchmarks.cases import Case
from benchmarks.operators import attention, check
from benchmarks.runner import Rows
from growtas import kernels
from growtas.space import SearchSpace

OURS = "growtas-triton"
CALLS = 10  # between two events: the device does not wait for the host
SPACES = ("autoformer-tiny", "autoformer-small", "autoformer-base")


def seconds(call: Callable[[], object], rounds: int) -> list[float]:
    """Seconds per call on the device, once for every round, warm."""
    found = []
    for _ in range(rounds + 1):
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        before.record()
        for _ in range(CALLS):
            call()
        after.record()
        torch.cuda.synchronize()
        found.append(before.elapsed_time(after) / 1000 / CALLS)
    return found[1:]


def copy_bandwidth(rounds: int) -> list[float]:
    """Bytes per second, read and written."""
    source = torch.randn(1 << 29, device="cuda")
    target = torch.empty_like(source)
    moved = 2 * source.numel() * source.element_size()
    return [moved / s for s in seconds(lambda: target.copy_(source), rounds)]


def product_rate(rounds: int, size: int = 8192) -> list[float]:
    """Operations per second of a bfloat16 product."""
    a, b = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    return [2 * size**3 / s for s in seconds(lambda: a @ b, rounds)]


def attention_work(batch: int, heads: int, tokens: int, head_dim: int) -> tuple[float, float]:
    """Operations and bytes of forward and backward, bfloat16."""
    flops = 14.0 * batch * heads * tokens**2 * head_dim
    return flops, 2.0 * 12 * batch * heads * tokens * head_dim


def _step(call: Callable[..., Tensor], leaves: Sequence[Tensor], grad: Tensor) -> None:
    for leaf in leaves:
        leaf.grad = None
    call(*leaves).backward(grad)


def measure(batch: int, rounds: int, book: rows.Book) -> None:
    """Rows of the ceilings, and of attention in the largest subnet of every space."""
    torch.manual_seed(0)
    bandwidth, rate = copy_bandwidth(rounds), product_rate(rounds)
    for name in SPACES:
        case = Case(SearchSpace.preset(name), "largest", batch, "bfloat16", "train")
        table = Rows.of_case(book, case, task="attention-roofline")
        if name == SPACES[0]:
            table.add("device", "copy_bandwidth", "B/s", bandwidth)
            table.add("device", "matmul_rate", "FLOP/s", rate)
        operator = attention(case, ["triton"], "cuda")
        x = operator.inputs["x"].to("cuda", torch.bfloat16).requires_grad_()
        tables = operator.inputs["tables"].to("cuda").requires_grad_()
        heads = case.subnet.num_heads[0]
        tokens, head_dim = x.shape[1], tables.shape[-1]
        grad = torch.randn(batch, tokens, heads * head_dim, device="cuda")
        if OURS not in check(operator, torch.bfloat16, grad, "cuda", table):
            continue
        grad = grad.to(torch.bfloat16)
        with kernels.use_backend("triton"):
            call = partial(_step, operator.variants[OURS], (x, tables), grad)
            times = seconds(call, rounds)
        flops, moved = attention_work(batch, heads, tokens, head_dim)
        middle = [rows.quantile(values, 0.5) for values in (rate, bandwidth)]
        floor = max(flops / middle[0], moved / middle[1])
        table.add(OURS, "event_time", "s", times)
        table.add(OURS, "roofline_share", "1", [floor / t for t in times])


def command_line() -> argparse.ArgumentParser:
    """Everything that can be asked for."""
    parser = command.parser("roofline", __doc__)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--out", type=Path, help="folder; default: only printed")
    return parser


def main() -> int:
    parser = command_line()
    args = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("there is no CUDA device: the share of a roofline is measured on one")
    book = rows.Book.in_folder("cuda", args.out)
    measure(args.batch, args.rounds, book)
    for row in book.rows:
        print(f"{row.space} {row.variant} {row.metric} {row.median:.4g} {row.unit}")
    return book.exit_status()


if __name__ == "__main__":
    sys.exit(main())
