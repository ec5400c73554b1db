"""`python -m benchmarks.tune`: time candidate configurations of the Triton kernels on this GPU.

Prints rows for `growtas/kernels/configs.py`, best first found per kernel and size, with the time
that each saves against the row of today. Nothing is changed by itself: a row is taken over by
hand, and `python -m growtas.kernels.precompile` says whether it spills.

A candidate is timed inside its operator, forward and backward, with every other kernel as it is;
before that its results must equal those of the present row up to rounding.
"""

from __future__ import annotations

import contextlib
import itertools
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple
from unittest import mock

import torch
from torch import Tensor

from benchmarks import command
from benchmarks.roofline import seconds
from benchmarks.runner import relative_error
from growtas import kernels
from growtas.kernels.triton import configs
from growtas.kernels.triton.configs import Config, Key

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
WARPS, STAGES = (2, 4, 8), (1, 2, 3, 4)
BITS = {16: torch.bfloat16, 32: torch.float32}

Call = Callable[[], dict[str, Tensor]]


class Workload(NamedTuple):
    """An operator, forward and backward, whose kernels take the rows of a table."""

    name: str
    call: Call


def attention(dtype: torch.dtype, head_dim: int, side: int) -> Workload:
    """24 images of `side` x `side` patches with a class token, four heads."""
    qkv = torch.randn(24, side**2 + 1, 3 * 4 * head_dim, device="cuda", dtype=dtype)
    tables = torch.randn(4, 30, head_dim, device="cuda")
    return _workload(
        f"attention {dtype} head dim {head_dim}, {side} x {side}",
        {"qkv": qkv, "tables": tables},
        lambda qkv, tables: kernels.attention(qkv, tables, num_heads=4, grid=(side, side)),
    )


def layer_norm(dtype: torch.dtype, width: int) -> Workload:
    """As many rows as 128 images have."""
    inputs = {
        "x": torch.randn(128 * 197, width, device="cuda", dtype=dtype),
        "weight": torch.randn(width, device="cuda"),
        "bias": torch.randn(width, device="cuda"),
    }
    return _workload(f"layer_norm {dtype} {width}", inputs, kernels.layer_norm)


def linear(dtype: torch.dtype, rows: int, in_features: int, out_features: int) -> Workload:
    """A slice of a weight of AutoFormer-B, with GELU in front."""
    inputs = {
        "x": torch.randn(rows, in_features, device="cuda", dtype=dtype),
        "weight": torch.randn(2560, 2560, device="cuda") * in_features**-0.5,
        "bias": torch.randn(2560, device="cuda"),
    }
    return _workload(
        f"linear {dtype} {rows} x {in_features} x {out_features}",
        inputs,
        lambda x, weight, bias: kernels.linear(
            x, weight, bias, out_features=out_features, input_activation="gelu"
        ),
    )


def adamw() -> Workload:
    """Blocks of AutoFormer-S, a slice of every matrix."""
    shapes = [(1792, 448), (448, 1792), (3, 7, 64, 448), (448, 448)] * 14
    start = [torch.randn(4, *shape, device="cuda").square() for shape in shapes]

    def call() -> dict[str, Tensor]:
        arrays = [values.clone() for values in start]
        rows = []
        for weight, gradient, first, second in (a.unbind() for a in arrays):
            box = tuple(slice(0, n * 3 // 4) for n in weight.shape)
            rows.append(kernels.AdamWRow(weight, gradient, first, second, boxes=[box], step=3))
        kernels.adamw_(rows, lr=1e-3, clip=(kernels.gradient_norm(rows), 1.0))
        return {str(n): values for n, values in enumerate(arrays)}

    return Workload("adamw", call)


def _workload(name: str, inputs: dict[str, Tensor], function: Callable[..., Tensor]) -> Workload:
    leaves = {key: value.requires_grad_() for key, value in inputs.items()}
    with kernels.use_backend("triton"):
        cotangent = torch.randn_like(function(**leaves))

    def call() -> dict[str, Tensor]:
        for leaf in leaves.values():
            leaf.grad = None
        out = function(**leaves)
        out.backward(cotangent)
        grads = {key: leaf.grad for key, leaf in leaves.items() if leaf.grad is not None}
        return {"": out.detach(), **grads}

    return Workload(name, call)


def workload_of(key: Key) -> Workload | None:
    """What reaches a row of a table; None for kernels that hardly take time."""
    kernel, bits, sizes = key
    dtype = BITS[bits]
    if kernel.startswith("attention") and sizes:
        side = 14 if sizes[1] <= 32 else 24 if sizes[1] <= 64 else 40
        return attention(dtype, min(sizes[0], 128), side)
    if kernel.startswith("layer_norm"):
        return layer_norm(torch.bfloat16, min(sizes[0], 4096) * 3 // 4)
    if kernel.startswith("linear") and sizes:
        return linear(dtype, min(sizes[0], 128 * 197), 432, min(sizes[1], 1728))
    return adamw() if kernel.startswith("adamw") else None


def candidates(config: Config, limit: int, seed: int = 0) -> Iterator[Config]:
    """The configuration itself, then others around it in random order: every block halved, as it is
    or doubled, all warps and stages. At most `limit`."""
    blocks = [(block // 2, block, block * 2) for block in config.blocks]
    found = [
        Config(tuple(sizes), warps, stages)
        for sizes in itertools.product(*blocks)
        for warps in WARPS
        for stages in STAGES
        if min(sizes) >= min(16, *config.blocks)
    ]
    found = [other for other in found if other != config]
    random.Random(seed).shuffle(found)
    yield from itertools.islice([config, *found], limit)


@contextlib.contextmanager
def row_in_place(architecture: int, key: Key, config: Config) -> Iterator[None]:
    """The table with one row replaced."""
    with mock.patch.dict(configs.TABLES[architecture], {key: config}):
        yield


def tune(key: Key, architecture: int, limit: int, rounds: int) -> list[tuple[float, Config]]:
    """Seconds of the row's workload by candidate, the best first, the present row among them."""
    workload = workload_of(key)
    if workload is None:
        return []
    present = configs.TABLES[architecture][key]
    found: list[tuple[float, Config]] = []
    with kernels.use_backend("triton"):
        want: dict[str, Tensor] = {}  # what the present row gives, which comes first
        for config in candidates(present, limit):
            with row_in_place(architecture, key, config):
                try:
                    got = workload.call()
                    torch.cuda.synchronize()
                except Exception as error:  # too much shared memory, or no such layout
                    print(f"#     {config}: {type(error).__name__}", flush=True)
                    if config == present:
                        break
                    continue
                want = want or {name: value.clone() for name, value in got.items()}
                difference = relative_error(got, want)
                if not difference <= TOLERANCE[BITS[key[1]]]:
                    print(f"#     {config}: WRONG, error {difference:.3g}", flush=True)
                    continue
                times = sorted(seconds(workload.call, rounds))
                found.append((times[len(times) // 2], config))
    found.sort(key=lambda pair: pair[0])
    _report(workload.name, key, present, found)
    return found


def _report(name: str, key: Key, present: Config, found: list[tuple[float, Config]]) -> None:
    before = next((time for time, config in found if config == present), None)
    if before is None or not found:
        print(f"# {name}: the present row does not run", flush=True)
        return
    time, config = found[0]
    quoted = f'("{key[0]}", {key[1]}, {key[2]})'
    print(f"# {name}: {before * 1e6:.1f} -> {time * 1e6:.1f} us, {len(found)} candidates")
    print(f"{quoted}: Config({config.blocks}, {config.warps}, {config.stages}),", flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = command.parser("tune", __doc__)
    parser.add_argument("--kernels", default="", help="only those whose name contains this")
    parser.add_argument("--limit", type=int, default=40, help="candidates for each row")
    parser.add_argument("--rounds", type=int, default=10)
    args = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        parser.error("there is no CUDA device: configurations are timed on one")
    architecture = configs.architecture(torch.device("cuda"))
    print(f"# {torch.cuda.get_device_name()}, table {architecture}")
    for key in list(configs.TABLES[architecture]):
        if args.kernels in key[0]:
            torch.manual_seed(0)
            tune(key, architecture, args.limit, args.rounds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
