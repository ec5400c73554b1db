"""What of linear is compiled ahead: see `growtas.kernels.precompile`."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from growtas.kernels.call import Grads
from growtas.kernels.extents import LinearSizes
from growtas.kernels.linear import gpu
from growtas.kernels.linear.api import Around, LinearCall
from growtas.kernels.triton.support import float32_products

# Width, wide width, inner width, batch: of a small subnet, the wide one no multiple of 8, of
# AutoFormer's largest, and one image.
SUBNETS = ((216, 756, 192, 128), (624, 2496, 640, 128), (192, 672, 192, 1))
# And for how many of them.
DTYPES = (
    (torch.bfloat16, "ieee", 3),
    (torch.float32, "ieee", 2),
    (torch.float32, "tf32", 1),
    (torch.float16, "ieee", 1),
)


class Layer(NamedTuple):
    """A layer of the supernet, on a slice of a weight that is as large as AutoFormer's."""

    name: str
    in_features: int
    out_features: int
    parts: int = 1
    input_gelu: bool = False
    residual: bool = False
    scale: bool = False  # a factor for each sample
    tokens: int = 197
    need_dx: bool = True


def calls() -> Iterator[tuple[str, Callable[[], None]]]:
    """The layers of subnets, the parameters in float32 and in the activations' dtype, the extents
    from the host and, for float32 parameters, from the device."""
    for (dtype, precision, count), parameters in itertools.product(
        DTYPES, ((torch.float32, False), (torch.float32, True), (None, False))
    ):
        stored, on_device = parameters[0] or dtype, parameters[1]
        if parameters[0] is None and dtype == torch.float32:
            continue
        for subnet in SUBNETS[:count]:
            for layer in _layers(*subnet[:3]):
                label = f"{layer.name} {subnet[0]} x{subnet[3]} {dtype} {precision} weight {stored}"
                label = label.replace("torch.", "") + " device" * on_device
                both = partial(_both, layer, subnet[3], dtype, precision, stored, on_device)
                yield label, both


def _layers(width: int, wide: int, inner: int) -> tuple[Layer, ...]:
    return (
        Layer("fc2", wide, width, input_gelu=True, residual=True, scale=True),
        Layer("stacked", width, inner, parts=3),
        Layer("proj", inner, width, residual=True, scale=True),
        Layer("fc1", width, wide),
        Layer("fc2-kept", wide, width, input_gelu=True, residual=True),
        Layer("proj-kept", inner, width, residual=True),
        Layer("first", 768, width, tokens=196, need_dx=False),
        Layer("last", width, 1000, tokens=1),
    )


def _both(
    layer: Layer,
    samples: int,
    dtype: torch.dtype,
    precision: str,
    stored: torch.dtype,
    on_device: bool,
) -> None:
    """Forward and backward of a layer; a residual stream is in the parameters' dtype."""

    def empty(*shape: int, dtype: torch.dtype = stored) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    _, in_features, out_features, parts, input_gelu, *_ = layer
    x = empty(samples, layer.tokens, in_features, dtype=dtype)
    residual = empty(samples, layer.tokens, parts * out_features) if layer.residual else None
    weight = empty(out_features, 2560) if parts == 1 else empty(parts, out_features, 2560)
    scale = empty(samples, dtype=torch.float32) if layer.scale else None
    extents = None
    if on_device:
        size = empty(1, dtype=torch.int32)
        alignment = 8 if in_features % 8 == 0 and out_features % 8 == 0 else 4
        extents = LinearSizes(size, size, alignment)
    bias = empty(parts * out_features)
    around = Around(input_gelu, scale, residual)
    call = LinearCall(x, weight, bias, out_features, around, extents)
    with float32_products(precision):
        y = gpu.forward(call)
        call = call._replace(around=around._replace(residual=None))
        gpu.backward(call, (), y, Grads((weight, bias), layer.need_dx, None))
