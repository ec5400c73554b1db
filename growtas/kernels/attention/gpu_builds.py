"""What of attention is compiled ahead: see `growtas.kernels.configs.Build`."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch

from growtas.kernels.attention.gpu_backward import (
    attention_key_gradient_kernel,
    attention_query_gradient_kernel,
    attention_table_partial_kernel,
)
from growtas.kernels.attention.gpu_common import SIZES
from growtas.kernels.attention.gpu_forward import attention_forward_kernel
from growtas.kernels.attention.gpu_shape import Shape
from growtas.kernels.configs import Build

KERNELS = (
    attention_forward_kernel,
    attention_query_gradient_kernel,
    attention_key_gradient_kernel,
    attention_table_partial_kernel,
)
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
STORED = ("qkv", "out", "dout", "key_terms", "value_terms", "dqkv")  # in the activations' dtype


def builds(architecture: int) -> Iterator[Build]:
    """With a class token, patches of 14 x 14 (224 pixels), 24 x 24 (384), 32 x 32 and 64 x 64."""
    for dtype in ("bf16", "fp32"):
        for head_dim in (64, 32, 96, 128):
            yield from _builds(architecture, dtype, head_dim)
        for side, head_dim in itertools.product((24, 32, 64), (64, 128)):
            yield from _builds(architecture, dtype, head_dim, side=side)
        yield from _builds(architecture, dtype, 64, table_rows=None)
        yield from _builds(architecture, dtype, 64, device_extents=True)
    yield from _builds(architecture, "fp16", 64)
    for side, head_dim in itertools.product((24, 64), (64, 128)):
        yield from _builds(architecture, "fp32", head_dim, side=side, precision="tf32")


def _builds(
    architecture: int,
    dtype: str,
    head_dim: int,
    *,
    side: int = 14,
    table_rows: int | None = 30,
    device_extents: bool = False,
    precision: str = "ieee",
) -> Iterator[Build]:
    shape = Shape(
        head_dim=head_dim,
        grid=(side, side),
        class_token=1,
        table_rows=table_rows,
        dtype=DTYPES[dtype],
        precision=precision,
        device_extents=device_extents,
    )
    options = [dtype, precision, f"d{head_dim}", f"{side}x{side}"]
    options += [] if table_rows else ["plain"]
    options += ["device"] if device_extents else []
    for kernel in KERNELS if table_rows else KERNELS[:3]:
        config = shape.config(kernel, architecture)
        constants = shape.of(kernel, config.blocks)
        types = {n: _type(n, dtype) for n in kernel.arg_names if n not in constants}
        yield Build(" ".join(options), kernel, types, constants, config)


def _type(argument: str, dtype: str) -> str:
    """Tables and their gradient in float32, as the parameters are."""
    if argument == "scale":
        return "fp32"
    if argument == "extents":
        return "*i32"
    if argument in (*SIZES, "sequences", "each", "shares", "folded"):
        return "i32"
    return f"*{dtype}:16" if argument in STORED else "*fp32:16"
