"""How Triton kernels are cut and compiled: one table per architecture, and what a build is.

`python -m benchmarks.tune` writes rows of these tables; `python -m growtas.kernels.precompile`
compiles every one of them. Nothing is tuned while a program runs: sums in another order would
give other bits.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from growtas.kernels.triton_support import interpreted


class Config(NamedTuple):
    """Tile sizes (which, is the kernel's affair), warps per program and pipeline stages."""

    blocks: tuple[int, ...]
    warps: int
    stages: int


class Build(NamedTuple):
    """One compilation of a kernel; every operator's ``gpu`` module lists its own in ``builds``.

    ``builds(architecture: int) -> Iterator[Build]`` yields what the launchers ask Triton for with
    the rows of ``TABLES[architecture]``, the most used first: a quick run compiles the first build
    of every kernel.

    Attributes:
        label: what distinguishes it from other builds of the kernel, for people.
        kernel: the ``triton.jit`` function.
        types: Triton types of the arguments that are no constants; ``:16`` at the end says that
            the pointer or integer is a multiple of 16 (``"*bf16:16"``, ``"i32"``).
        constants: values of all ``tl.constexpr`` arguments.
        config: of which warps and stages count; the blocks are among the constants.
    """

    label: str
    kernel: Any
    types: dict[str, str]
    constants: dict[str, Any]
    config: Config


# Kernel, bits per stored value, sizes (which, is the kernel's affair).
Key = tuple[str, int, tuple[int, ...]]

ANY = 2**31  # a size without a limit

TABLES: dict[int, dict[Key, Config]] = {
    80: {
        ("adamw_kernel", 32, ()): Config((4, 256), 4, 1),
        ("layer_norm_kernel", 32, (256,)): Config((16,), 4, 1),
        ("layer_norm_kernel", 32, (512,)): Config((8,), 4, 1),
        ("layer_norm_kernel", 32, (1024,)): Config((4,), 4, 1),
        ("layer_norm_kernel", 32, (2048,)): Config((2,), 4, 1),
        ("layer_norm_kernel", 32, (16384,)): Config((1,), 16, 1),
        ("attention_forward_kernel", 16, (64, 64, 64)): Config((64, 32, 32), 4, 2),
        ("attention_forward_kernel", 16, (128, 64, 64)): Config((32, 32, 32), 4, 2),
        ("attention_forward_kernel", 16, (128, 256, 256)): Config((16, 32, 32), 4, 2),
        ("attention_forward_kernel", 32, (64, 64, 64)): Config((32, 32, 32), 8, 2),
        ("attention_forward_kernel", 32, (128, 64, 64)): Config((32, 32, 32), 8, 1),
        ("attention_forward_kernel", 32, (128, 256, 256)): Config((16, 16, 16), 8, 1),
        ("attention_query_gradient_kernel", 16, (64, 64, 64)): Config((32, 32, 32), 4, 2),
        ("attention_query_gradient_kernel", 16, (128, 256, 256)): Config((16, 32, 32), 8, 2),
        ("attention_query_gradient_kernel", 32, (64, 64, 64)): Config((32, 32, 32), 8, 2),
        ("attention_query_gradient_kernel", 32, (128, 64, 64)): Config((16, 32, 32), 8, 2),
        ("attention_query_gradient_kernel", 32, (128, 256, 256)): Config((16, 16, 16), 8, 1),
        ("attention_key_gradient_kernel", 16, (64, 64, 64)): Config((64, 32), 4, 2),
        ("attention_key_gradient_kernel", 16, (128, 64, 64)): Config((64, 32), 8, 2),
        ("attention_key_gradient_kernel", 16, (128, 256, 256)): Config((32, 32), 8, 2),
        ("attention_key_gradient_kernel", 32, (128, 64, 64)): Config((16, 16), 8, 2),
        ("attention_key_gradient_kernel", 32, (128, 256, 256)): Config((16, 16), 8, 1),
        ("attention_table_partial_kernel", 16, (64, 64, 64)): Config((32, 32), 8, 2),
        ("attention_table_partial_kernel", 16, (128, 64, 64)): Config((32, 32), 8, 2),
        ("attention_table_partial_kernel", 16, (128, 256, 256)): Config((16, 32), 8, 2),
        ("attention_table_partial_kernel", 32, (64, 64, 64)): Config((64, 32), 8, 2),
        ("attention_table_partial_kernel", 32, (128, 64, 64)): Config((32, 32), 8, 2),
        ("attention_table_partial_kernel", 32, (128, 256, 256)): Config((16, 16), 8, 1),
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
        ("layer_norm_kernel", 32, (2048,)): Config((2,), 4, 1),
        ("layer_norm_kernel", 32, (16384,)): Config((1,), 16, 1),
        ("attention_forward_kernel", 16, (64, 64, 64)): Config((64, 64, 32), 4, 2),
        ("attention_forward_kernel", 16, (128, 64, 64)): Config((64, 64, 32), 8, 2),
        ("attention_forward_kernel", 16, (128, 256, 256)): Config((16, 32, 32), 4, 2),
        ("attention_forward_kernel", 32, (64, 64, 64)): Config((32, 32, 32), 8, 1),
        ("attention_forward_kernel", 32, (128, 64, 64)): Config((16, 32, 32), 8, 2),
        ("attention_forward_kernel", 32, (128, 256, 256)): Config((16, 16, 16), 8, 1),
        ("attention_query_gradient_kernel", 16, (64, 32, 64)): Config((64, 64, 32), 4, 2),
        ("attention_query_gradient_kernel", 16, (64, 64, 64)): Config((64, 64, 32), 8, 2),
        ("attention_query_gradient_kernel", 16, (128, 32, 64)): Config((64, 32, 32), 8, 2),
        ("attention_query_gradient_kernel", 16, (128, 64, 64)): Config((16, 32, 32), 8, 2),
        ("attention_query_gradient_kernel", 16, (128, 256, 256)): Config((16, 16, 32), 8, 2),
        ("attention_query_gradient_kernel", 32, (64, 64, 64)): Config((32, 32, 32), 8, 2),
        ("attention_query_gradient_kernel", 32, (128, 32, 64)): Config((32, 32, 32), 8, 2),
        ("attention_query_gradient_kernel", 32, (128, 64, 64)): Config((16, 32, 32), 8, 2),
        ("attention_query_gradient_kernel", 32, (128, 256, 256)): Config((16, 16, 16), 8, 1),
        ("attention_key_gradient_kernel", 16, (64, 64, 64)): Config((64, 64), 4, 2),
        ("attention_key_gradient_kernel", 16, (128, 64, 64)): Config((64, 64), 8, 2),
        ("attention_key_gradient_kernel", 16, (128, 256, 256)): Config((32, 32), 8, 2),
        ("attention_key_gradient_kernel", 32, (64, 64, 64)): Config((32, 32), 8, 2),
        ("attention_key_gradient_kernel", 32, (128, 64, 64)): Config((32, 16), 8, 2),
        ("attention_key_gradient_kernel", 32, (128, 256, 256)): Config((16, 16), 8, 1),
        ("attention_table_partial_kernel", 16, (64, 64, 64)): Config((64, 32), 4, 2),
        ("attention_table_partial_kernel", 16, (128, 32, 64)): Config((64, 32), 4, 2),
        ("attention_table_partial_kernel", 16, (128, 64, 64)): Config((64, 32), 8, 2),
        ("attention_table_partial_kernel", 16, (128, 256, 256)): Config((16, 32), 8, 2),
        ("attention_table_partial_kernel", 32, (32, 64, 64)): Config((32, 32), 8, 2),
        ("attention_table_partial_kernel", 32, (128, 64, 64)): Config((64, 32), 8, 2),
        ("attention_table_partial_kernel", 32, (128, 256, 256)): Config((16, 16), 8, 2),
        ("linear_forward_kernel", 16, (512, ANY)): Config((32, 64, 64), 4, 3),
        ("linear_forward_kernel", 16, (ANY, ANY)): Config((128, 128, 64), 8, 3),
        ("linear_forward_kernel", 32, (ANY, ANY)): Config((64, 64, 16), 8, 2),
        ("linear_input_gradient_kernel", 16, (512, ANY)): Config((32, 64, 64), 4, 3),
        ("linear_input_gradient_kernel", 16, (ANY, ANY)): Config((128, 128, 32), 8, 4),
        ("linear_input_gradient_kernel", 32, (ANY, ANY)): Config((64, 64, 16), 8, 2),
        ("linear_weight_gradient_kernel", 16, (ANY, ANY)): Config((128, 128, 32), 8, 4),
        ("linear_weight_gradient_kernel", 32, (ANY, ANY)): Config((64, 64, 16), 8, 2),
        ("linear_fold_kernel", 32, ()): Config((16, 128), 4, 1),
    },
}


def architecture(device: torch.device) -> int:
    """The table for a device: 90 from compute capability 9 on, else 80; 80 in the interpreter."""
    if interpreted():
        return 80
    return 90 if torch.cuda.get_device_capability(device)[0] >= 9 else 80


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
