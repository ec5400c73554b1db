"""What of linear is compiled ahead: see `growtas.kernels.configs.Build`."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from growtas.kernels.configs import Build
from growtas.kernels.extents import LinearSizes
from growtas.kernels.linear.gpu_plan import (
    Launch,
    Options,
    Target,
    plan_fold,
    plan_forward,
    plan_input_gradient,
    plan_weight_gradient,
)

# Width, hidden width, heads, batch: of a small subnet, its hidden width no multiple of 8, of
# AutoFormer's largest, and one image.
SUBNETS = ((216, 756, 3, 128), (624, 2496, 10, 128), (192, 672, 3, 1))
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
    groups: int = 1
    input_gelu: bool = False
    gelu: bool = False
    residual: bool = False  # and a factor for each sample


def builds(architecture: int) -> Iterator[Build]:
    """The layers of subnets, the parameters in float32 and in the activations' dtype, the extents
    from the host and, for float32 parameters, from the device. Each build once."""
    seen = set()
    for dtype, precision, subnet in (
        (dtype, precision, subnet)
        for dtype, precision, count in DTYPES
        for subnet in SUBNETS[:count]
    ):
        embed, hidden, heads, samples = subnet
        layers = (
            Layer("fc2", hidden, embed, input_gelu=True, residual=True),
            Layer("qkv", embed, 64 * heads, groups=3),
            Layer("proj", 64 * heads, embed, residual=True),
            Layer("fc1", embed, hidden),
            Layer("fc1-gelu", embed, hidden, gelu=True),
        )
        parameters = dict.fromkeys(((torch.float32, False), (torch.float32, True), (dtype, False)))
        for layer, (stored, on_device) in itertools.product(layers, parameters):
            label = f"{layer.name} {embed} x{samples} {dtype} {precision} weight {stored}"
            label = label.replace("torch.", "") + (" device" if on_device else "")
            target = Target(architecture, precision)
            for launch in _launches(target, layer, samples, dtype, stored, on_device):
                build = launch.build(label)
                if (key := repr(build._replace(label=""))) not in seen:
                    seen.add(key)
                    yield build


def _launches(
    target: Target, layer: Layer, samples: int, dtype: torch.dtype, stored: torch.dtype,
    on_device: bool,
) -> Iterator[Launch]:  # fmt: skip
    """Forward and backward of a layer; with a residual, the stream is in float32."""

    def empty(*shape: int, dtype: torch.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    _, in_features, out_features, groups, input_gelu, gelu, residual = layer
    rows, width = 197 * samples, groups * out_features
    x = empty(rows, in_features, dtype=dtype)
    y = empty(rows, width, dtype=torch.float32 if residual else dtype)
    z = empty(rows, width, dtype=dtype)
    weight = empty(groups, out_features, 2560, dtype=stored)
    bias = empty(groups * out_features, dtype=stored)
    scale = empty(samples, dtype=torch.float32) if residual else None
    options = Options(input_gelu, gelu, scale)
    extents = None
    if on_device:
        size = empty(1, dtype=torch.int32)
        extents = LinearSizes(
            size, size, 8 if in_features % 8 == 0 and out_features % 8 == 0 else 4
        )
    yield plan_forward(
        target, x, weight, bias, out_features, options, y if residual else None, y,
        z if gelu else None, extents,
    )  # fmt: skip
    launch, fold = plan_weight_gradient(
        target, y, z, x, groups, out_features, options, weight, bias, extents
    )
    yield launch
    for left in (fold, None):
        yield plan_input_gradient(target, y, z, weight, out_features, options, x, x, extents, left)
    yield plan_fold(target, fold)
