"""How Triton kernels are cut and compiled: one table per architecture.

`python -m benchmarks.tune` writes rows of these tables; `python -m growtas.kernels.precompile`
compiles every one of them. Nothing is tuned while a program runs: sums in another order would
give other bits.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch

from growtas.kernels.triton.support import interpreted


class Config(NamedTuple):
    """Tile sizes (which, is the kernel's affair), warps per program and pipeline stages."""

    blocks: tuple[int, ...]
    warps: int
    stages: int


# Kernel, bits per stored value, sizes (which, is the kernel's affair).
Key = tuple[str, int, tuple[int, ...]]

ANY = 2**31  # a size without a limit

TABLES: dict[int, dict[Key, Config]] = {
    80: {
        ("adamw_kernel", 32, ()): Config((4, 256), 4, 1),
        ("layer_norm_kernel", 32, (256,)): Config((16,), 4, 1),
        ("layer_norm_kernel", 32, (512,)): Config((8,), 4, 1),
        ("layer_norm_kernel", 32, (1024,)): Config((4,), 8, 1),
        ("layer_norm_kernel", 32, (2048,)): Config((2,), 2, 1),
        ("layer_norm_kernel", 32, (16384,)): Config((1,), 16, 1),
        ("attention_forward_kernel", 16, (64, 64, 64)): Config((64, 32, 32), 4, 2),
        ("attention_forward_kernel", 16, (128, 64, 64)): Config((32, 32, 32), 4, 2),
        ("attention_forward_kernel", 16, (128, 256, 256)): Config((16, 32, 32), 4, 2),
        ("attention_forward_kernel", 32, (64, 32, 64)): Config((32, 32, 32), 8, 2),
        ("attention_forward_kernel", 32, (64, 64, 64)): Config((32, 32, 32), 8, 1),
        ("attention_forward_kernel", 32, (128, 64, 64)): Config((32, 32, 32), 8, 1),
        ("attention_forward_kernel", 32, (128, 256, 256)): Config((16, 16, 16), 8, 1),
        ("attention_query_gradient_kernel", 16, (64, 64, 64)): Config((32, 32, 32), 4, 2),
        ("attention_query_gradient_kernel", 16, (128, 256, 256)): Config((16, 32, 32), 8, 2),
        ("attention_query_gradient_kernel", 32, (64, 32, 64)): Config((32, 32, 32), 8, 2),
        ("attention_query_gradient_kernel", 32, (64, 64, 64)): Config((16, 16, 16), 8, 2),
        ("attention_query_gradient_kernel", 32, (128, 64, 64)): Config((16, 32, 32), 8, 2),
        ("attention_query_gradient_kernel", 32, (64, 256, 256)): Config((16, 16, 16), 8, 2),
        ("attention_query_gradient_kernel", 32, (128, 256, 256)): Config((16, 16, 16), 8, 1),
        ("attention_key_gradient_kernel", 16, (64, 64, 64)): Config((64, 32), 4, 2),
        ("attention_key_gradient_kernel", 16, (128, 64, 64)): Config((64, 32), 8, 2),
        ("attention_key_gradient_kernel", 16, (128, 256, 256)): Config((32, 32), 8, 2),
        ("attention_key_gradient_kernel", 32, (64, 64, 64)): Config((16, 16), 8, 2),
        ("attention_key_gradient_kernel", 32, (128, 64, 64)): Config((16, 16), 8, 1),
        ("attention_key_gradient_kernel", 32, (128, 256, 256)): Config((16, 16), 8, 1),
        ("attention_table_partial_kernel", 16, (64, 64, 64)): Config((32, 32), 8, 2),
        ("attention_table_partial_kernel", 16, (128, 64, 64)): Config((32, 32), 8, 1),
        ("attention_table_partial_kernel", 16, (128, 256, 256)): Config((16, 32), 8, 2),
        ("attention_table_partial_kernel", 32, (64, 64, 64)): Config((64, 32), 8, 2),
        ("attention_table_partial_kernel", 32, (128, 64, 64)): Config((32, 32), 8, 1),
        ("attention_table_partial_kernel", 32, (128, 128, 64)): Config((32, 16), 8, 1),
        ("attention_table_partial_kernel", 32, (128, 256, 256)): Config((16, 16), 16, 1),
        ("linear_forward_kernel", 16, (512, ANY)): Config((32, 64, 64), 8, 3),
        ("linear_forward_kernel", 16, (ANY, ANY)): Config((128, 64, 32), 8, 3),
        ("linear_forward_kernel", 32, (ANY, ANY)): Config((64, 64, 16), 8, 2),
        ("linear_input_gradient_kernel", 16, (512, ANY)): Config((32, 64, 64), 8, 3),
        ("linear_input_gradient_kernel", 16, (ANY, ANY)): Config((64, 128, 32), 8, 3),
        ("linear_input_gradient_kernel", 32, (ANY, ANY)): Config((64, 64, 16), 8, 3),
        ("linear_weight_gradient_kernel", 16, (ANY, ANY)): Config((64, 128, 32), 8, 3),
        ("linear_weight_gradient_kernel", 32, (ANY, ANY)): Config((128, 64, 16), 8, 2),
        ("linear_fold_kernel", 32, ()): Config((16, 128), 4, 1),
    },
    90: {
        ("adamw_kernel", 32, ()): Config((4, 256), 4, 1),
        ("layer_norm_kernel", 32, (256,)): Config((16,), 4, 1),
        ("layer_norm_kernel", 32, (512,)): Config((8,), 4, 1),
        ("layer_norm_kernel", 32, (1024,)): Config((4,), 4, 1),
        ("layer_norm_kernel", 32, (2048,)): Config((2,), 16, 1),
        ("layer_norm_kernel", 32, (16384,)): Config((1,), 16, 1),
        ("attention_forward_kernel", 16, (64, 64, 64)): Config((64, 64, 32), 4, 2),
        ("attention_forward_kernel", 16, (128, 64, 64)): Config((64, 64, 32), 8, 2),
        ("attention_forward_kernel", 16, (128, 256, 256)): Config((16, 32, 32), 4, 2),
        ("attention_forward_kernel", 32, (64, 64, 64)): Config((32, 32, 32), 8, 1),
        ("attention_forward_kernel", 32, (128, 64, 64)): Config((16, 32, 32), 8, 1),
        ("attention_forward_kernel", 32, (128, 256, 256)): Config((16, 16, 16), 8, 1),
        ("attention_query_gradient_kernel", 16, (64, 32, 64)): Config((64, 64, 32), 4, 2),
        ("attention_query_gradient_kernel", 16, (64, 64, 64)): Config((64, 64, 32), 8, 2),
        ("attention_query_gradient_kernel", 16, (128, 32, 64)): Config((64, 32, 32), 8, 2),
        ("attention_query_gradient_kernel", 16, (128, 64, 64)): Config((16, 32, 32), 8, 2),
        ("attention_query_gradient_kernel", 16, (128, 256, 256)): Config((16, 16, 32), 8, 2),
        ("attention_query_gradient_kernel", 32, (64, 64, 64)): Config((32, 32, 32), 8, 2),
        ("attention_query_gradient_kernel", 32, (128, 64, 64)): Config((16, 32, 32), 8, 2),
        ("attention_query_gradient_kernel", 32, (64, 256, 256)): Config((16, 16, 16), 8, 1),
        ("attention_query_gradient_kernel", 32, (128, 128, 64)): Config((16, 16, 16), 8, 2),
        ("attention_query_gradient_kernel", 32, (128, 256, 256)): Config((16, 16, 16), 8, 1),
        ("attention_key_gradient_kernel", 16, (64, 64, 64)): Config((64, 64), 4, 2),
        ("attention_key_gradient_kernel", 16, (128, 64, 64)): Config((32, 64), 8, 2),
        ("attention_key_gradient_kernel", 16, (64, 256, 256)): Config((32, 32), 8, 2),
        ("attention_key_gradient_kernel", 16, (128, 256, 256)): Config((32, 16), 8, 2),
        ("attention_key_gradient_kernel", 32, (64, 64, 64)): Config((32, 32), 8, 2),
        ("attention_key_gradient_kernel", 32, (128, 64, 64)): Config((32, 16), 8, 2),
        ("attention_key_gradient_kernel", 32, (128, 256, 256)): Config((16, 16), 8, 1),
        ("attention_table_partial_kernel", 16, (64, 32, 64)): Config((64, 32), 4, 2),
        ("attention_table_partial_kernel", 16, (128, 64, 64)): Config((64, 32), 8, 2),
        ("attention_table_partial_kernel", 16, (128, 256, 256)): Config((16, 32), 8, 2),
        ("attention_table_partial_kernel", 32, (32, 64, 64)): Config((32, 32), 8, 2),
        ("attention_table_partial_kernel", 32, (64, 64, 64)): Config((64, 32), 8, 2),
        ("attention_table_partial_kernel", 32, (128, 64, 64)): Config((32, 32), 8, 1),
        ("attention_table_partial_kernel", 32, (64, 256, 256)): Config((32, 16), 8, 1),
        ("attention_table_partial_kernel", 32, (128, 128, 64)): Config((32, 16), 8, 1),
        ("attention_table_partial_kernel", 32, (128, 256, 256)): Config((16, 16), 16, 1),
        ("linear_forward_kernel", 16, (512, ANY)): Config((32, 64, 64), 4, 3),
        ("linear_forward_kernel", 16, (ANY, ANY)): Config((128, 128, 64), 8, 3),
        ("linear_forward_kernel", 32, (ANY, ANY)): Config((64, 64, 16), 4, 2),
        ("linear_input_gradient_kernel", 16, (512, ANY)): Config((32, 64, 64), 4, 2),
        ("linear_input_gradient_kernel", 16, (ANY, ANY)): Config((128, 128, 32), 8, 4),
        ("linear_input_gradient_kernel", 32, (ANY, ANY)): Config((64, 64, 16), 8, 3),
        ("linear_weight_gradient_kernel", 16, (ANY, ANY)): Config((128, 128, 32), 8, 4),
        ("linear_weight_gradient_kernel", 32, (ANY, ANY)): Config((64, 64, 16), 8, 2),
        ("linear_fold_kernel", 32, ()): Config((16, 128), 4, 1),
    },
}


# As on an 80, but where its compiler spills registers because it aims at more blocks per processor.
TABLES[120] = TABLES[80] | {
    ("attention_key_gradient_kernel", 16, (64, 64, 64)): Config((64, 32), 8, 2),
    ("linear_input_gradient_kernel", 16, (ANY, ANY)): Config((128, 64, 32), 8, 3),
}

# Of each architecture that is shipped for, the table; and bytes of shared memory that one block
# can have there (CUDA C++ programming guide, compute capabilities). An 86, 89 or 120 has 99 KiB:
# rows of the 90's table take up to 129 KiB, those of the 80's at most 73.
ARCHITECTURES = {80: 80, 86: 80, 89: 80, 90: 90, 100: 90, 120: 120}
SHARED_MEMORY = {
    80: 163 * 1024, 86: 99 * 1024, 89: 99 * 1024, 90: 227 * 1024, 100: 227 * 1024, 120: 99 * 1024
}  # fmt: skip

_ahead: list[int] = []  # what tensors of the "meta" device stand for, the innermost block last


@contextmanager
def ahead(architecture: int) -> Iterator[None]:
    """Inside the ``with`` block tensors of the "meta" device count as those of an architecture of
    `ARCHITECTURES`."""
    _ahead.append(architecture)
    try:
        yield
    finally:
        _ahead.pop()


def architecture(device: torch.device) -> int:
    """The key of `TABLES` for a device: that of its compute capability or, if `ARCHITECTURES` does
    not have it, of the nearest one below (87 counts as 86, 103 as 100); 80 in the interpreter."""
    if device.type == "meta":
        return ARCHITECTURES[_ahead[-1]]
    return 80 if interpreted() else _of_device(device)


@functools.cache
def _of_device(device: torch.device) -> int:
    major, minor = torch.cuda.get_device_capability(device)
    return ARCHITECTURES[max(known for known in ARCHITECTURES if known <= 10 * major + minor)]


def choose(architecture: int, kernel: str, dtype: torch.dtype, sizes: tuple[int, ...]) -> Config:
    """The first row of the kernel, for this width of dtype, whose sizes all suffice.

    Raises:
        ValueError: no row is large enough.
    """
    bits = torch.finfo(dtype).bits
    for (name, row_bits, row_sizes), config in TABLES[architecture].items():
        if (name, row_bits) == (kernel, bits) and all(
            size <= row for size, row in zip(sizes, row_sizes, strict=True)
        ):
            return config
    raise ValueError(f"{kernel} has no configuration for {dtype} and sizes {sizes}")
