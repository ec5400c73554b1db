"""What operators refuse, each with one error that names the argument and what is allowed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from growtas import kernels
from growtas.kernels.arguments import FLOATING
from growtas.kernels.extents import LinearExtents, check_extent

ONE, TABLES = torch.ones(8), torch.zeros(4, 6, 4)


def linear(x, **options):
    return kernels.linear(x, torch.ones(6, 8), **options)


def layer_norm(x, **options):
    return kernels.layer_norm(x, ONE, ONE, **options)


def attention(qkv, **options):
    return kernels.attention(qkv, TABLES, **{"num_heads": 2, "grid": (2, 2), **options})


SHAPES = {linear: (2, 4, 8), layer_norm: (2, 4, 8), attention: (2, 4, 24)}
operators = pytest.mark.parametrize("operator", SHAPES, ids=lambda f: f.__name__)


@operators
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64, torch.bool], ids=str)
def test_numbers_that_are_no_floats(operator, dtype):
    """The reference would compute with integers, and cut off what they cannot hold."""
    x = torch.ones(SHAPES[operator], dtype=dtype)
    allowed = "float32, bfloat16, float16, float64"
    for context in (torch.no_grad(), torch.autocast("cpu", torch.bfloat16)):
        with context, pytest.raises(TypeError, match=rf"of floats \({allowed}\), got {dtype}"):
            operator(x)


@operators
def test_floats_pass(operator):
    for dtype in FLOATING:
        operator(torch.ones(SHAPES[operator], dtype=dtype))  # parameters: float32 or that


@operators
def test_arrays_scalars_and_tensors_without_memory(operator):
    with pytest.raises(TypeError, match=r"(x|qkv) must be a torch\.Tensor, got ndarray"):
        operator(np.ones(SHAPES[operator], np.float32))
    with pytest.raises(ValueError, match=r"(x|qkv) must have 1 or more dimensions"):
        operator(torch.tensor(1.0))
    with pytest.raises(ValueError, match=r"(x|qkv) must be on a device .*, got a tensor on meta"):
        operator(torch.ones(SHAPES[operator], device="meta"))


@pytest.mark.parametrize(
    ("operator", "options", "error", "message"),
    [
        (linear, {"out_features": 4.0}, TypeError, "out_features must be an integer, got 4.0"),
        (linear, {"out_features": True}, TypeError, "out_features must be an integer, got True"),
        (linear, {"out_features": -1}, ValueError, "out_features must be at least 1, got -1"),
        (layer_norm, {"eps": -1e-5}, ValueError, "eps is -1e-05, it must be 0 or more and finite"),
        (layer_norm, {"eps": float("nan")}, ValueError, "eps is nan"),
        (attention, {"grid": 4}, TypeError, r"grid must be \(height, width\).*, got 4"),
        (attention, {"grid": (2.0, 2)}, TypeError, r"grid\[0\] must be an integer, got 2.0"),
        (attention, {"num_heads": 2.0}, TypeError, "num_heads must be an integer, got 2.0"),
        (attention, {"num_heads": 0}, ValueError, "num_heads must be at least 1, got 0"),
    ],
)
def test_sizes_and_numbers(operator, options, error, message):
    with pytest.raises(error, match=message):
        operator(torch.ones(SHAPES[operator]), **options)


def test_integers_of_numpy_are_integers():
    x = torch.randn(2, 8)
    assert torch.equal(linear(x, out_features=np.int64(4)), linear(x, out_features=4))


def column(*values):
    return torch.tensor(values, dtype=torch.int32)


@pytest.mark.parametrize(
    ("operator", "options", "message"),
    [
        (layer_norm, {"extents": column(9)}, r"extents are \[9\], allowed 1 to 8"),
        (layer_norm, {"extents": column(8, 0)}, r"extents are \[8, 0\], allowed 1 to 8"),
        (layer_norm, {"extents": column(8), "present": column(2)}, r"present: .*\[2\], .* 0 to 1"),
        (attention, {"extents": column(-1)}, r"extents are \[-1\], allowed 0 to 2"),
        (attention, {"extents": column(3)}, r"extents are \[3\], allowed 0 to 2"),
        (linear, {"extents": LinearExtents(column(7), None)}, r"out_features: .*\[7\], .* 0 to 6"),
        (linear, {"extents": LinearExtents(None, column(-8))}, r"in_features: .*\[-8\], .* 0 to 8"),
    ],
)
def test_values_of_extents(operator, options, message):
    with pytest.raises(ValueError, match=message):
        operator(torch.ones(SHAPES[operator]), **options)


def test_values_of_extents_are_not_read_on_another_device():
    """That would wait for the device: tensors without values stand for it."""
    check_extent("extents", column(99).to("meta"), torch.ones(2, 8, device="meta"), 1, 8)
