"""What of layer_norm is compiled ahead: see `growtas.kernels.precompile`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch

from growtas.kernels.call import Grads
from growtas.kernels.layer_norm import gpu
from growtas.kernels.layer_norm.api import LayerNormCall

# Of AutoFormer-S, -T, -B and beyond: one that divides by 16, and one by 8 only.
WIDTHS = ((384, 360), (192, 216), (624, 584), (1040, 1032))
# Of the stream, of the layer's output, and of the parameters: under autocast, or all alike.
DTYPES = (
    (torch.float32, torch.bfloat16, torch.float32),
    (torch.float32, torch.float16, torch.float32),
    (torch.float32, torch.float32, torch.float32),
    (torch.bfloat16, torch.bfloat16, torch.bfloat16),
    (torch.bfloat16, torch.bfloat16, torch.float32),
)


def calls() -> Iterator[tuple[str, Callable[[], None]]]:
    """The width as a number and on the device; where the branch leaves the stream, and at the end
    of the model, where it does not."""
    for widths in WIDTHS:
        for dtypes in DTYPES:
            names = " ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
            for width, on_device in ((widths[0], False), (widths[1], False), (widths[1], True)):
                label = f"{width} {names}" + " device" * on_device
                yield label, partial(_both, width, *dtypes, on_device)


def _both(
    width: int, stream: torch.dtype, out: torch.dtype, stored: torch.dtype, on_device: bool
) -> None:
    x = torch.empty(2, 197, width, dtype=stream, device="meta")
    weight, bias = (torch.empty(width, dtype=stored, device="meta") for _ in range(2))
    size = torch.empty(1, dtype=torch.int32, device="meta") if on_device else None
    call = LayerNormCall(x, weight, bias, 1e-5, out, size, None)
    y, *saved = gpu.forward(call)
    for added, present in ((x, size), (None, None)):
        gpu.backward(call._replace(present=present), saved, y, Grads((weight, bias), True, added))
