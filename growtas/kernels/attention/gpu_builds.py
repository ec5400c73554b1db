"""What of attention is compiled ahead: see `growtas.kernels.precompile`."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import partial

import torch

from growtas.kernels.attention import gpu
from growtas.kernels.attention.api import AttentionCall
from growtas.kernels.call import Grads
from growtas.kernels.triton.support import float32_products

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
HEADS = 2


def calls() -> Iterator[tuple[str, Callable[[], None]]]:
    """With a class token, patches of 14 x 14 (224 pixels), 24 x 24 (384), 32 x 32 and 64 x 64."""
    for dtype in ("bf16", "fp32"):
        for head_dim in (64, 32, 96, 128):
            yield _call(dtype, head_dim)
        for side, head_dim in itertools.product((24, 32, 64), (64, 128)):
            yield _call(dtype, head_dim, side=side)
        yield _call(dtype, 64, tables=False)
        yield _call(dtype, 64, on_device=True)
    yield _call("fp16", 64)
    for side, head_dim in itertools.product((24, 64), (64, 128)):
        yield _call("fp32", head_dim, side=side, precision="tf32")
    yield _call("bf16", 64, stored="bf16")


def _call(
    dtype: str,
    head_dim: int,
    *,
    side: int = 14,
    tables: bool = True,
    on_device: bool = False,
    precision: str = "ieee",
    stored: str = "fp32",
) -> tuple[str, Callable[[], None]]:
    options = [dtype, precision, f"d{head_dim}", f"{side}x{side}"]
    options += [] if tables else ["plain"]
    options += ["device"] if on_device else []
    options += [] if stored == "fp32" else ["tables", stored]
    table = torch.empty(4, 30, head_dim, dtype=DTYPES[stored], device="meta") if tables else None
    both = partial(_both, DTYPES[dtype], head_dim, side, table, on_device, precision)
    return " ".join(options), both


def _both(
    dtype: torch.dtype,
    head_dim: int,
    side: int,
    tables: torch.Tensor | None,
    on_device: bool,
    precision: str,
) -> None:
    qkv = torch.empty(2, 1 + side**2, 3 * HEADS * head_dim, dtype=dtype, device="meta")
    extents = torch.empty(1, dtype=torch.int32, device="meta") if on_device else None
    call = AttentionCall(qkv, tables, HEADS, side, side, 0.125, extents)
    with float32_products(precision):
        out, lse = gpu.forward(call)
        gpu.backward(call, (out, lse), out, Grads((tables,), True, None))
