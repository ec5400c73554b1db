"""The compiled LayerNorm: widths, mixed types, and the conversion of storage types, which all
operators share. Its contract is tested for every backend in `tests/kernels/test_layer_norm.py`."""

from __future__ import annotations

import oracles
import pytest
import torch
from native_cases import FLOATS, assert_native_is_exact
from oracles import bits_equal, outputs_and_gradients

from growtas.kernels import layer_norm, native_library


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("width", [1, 3, 8, 31, 64, 197, 216])
def test_layer_norm_widths(width, dtype):
    generator = torch.Generator().manual_seed(width)
    inputs = {
        "x": 3 + torch.randn(70, width, generator=generator).double(),
        "weight": torch.randn(256, generator=generator).double(),
        "bias": torch.randn(256, generator=generator).double(),
    }
    inputs = {name: value.to(dtype).double() for name, value in inputs.items()}
    cotangent = torch.randn(70, width, generator=generator).to(dtype).double()
    assert_native_is_exact(
        outputs_and_gradients, oracles.layer_norm, layer_norm, inputs, cotangent, dtype
    )


def test_mixed_dtypes_of_autocast():
    """float32 rows in, bfloat16 out; the gradient arrives in bfloat16."""
    operators = native_library.operators()
    x, weight, bias = torch.randn(50, 24), torch.randn(64), torch.randn(64)
    y = torch.empty(50, 24, dtype=torch.bfloat16)
    mean, rstd = torch.empty(50), torch.empty(50)
    operators.layer_norm_forward(x, weight, bias, 1e-5, y, mean, rstd)
    expected = torch.nn.functional.layer_norm(x, (24,), weight[:24], bias[:24])
    assert bits_equal(y, expected.bfloat16()) or (y - expected).abs().max() < 0.04
    dy = torch.randn(50, 24).bfloat16()
    dx, dweight, dbias = torch.empty_like(x), torch.full((64,), 7.0), torch.full((64,), 7.0)
    operators.layer_norm_backward(dy, x, weight, mean, rstd, dx, dweight, dbias)
    torch.testing.assert_close(dbias[:24], 7 + dy.float().sum(0), rtol=1e-5, atol=1e-5)
    assert (dbias[24:] == 7).all()
    assert (dweight[24:] == 7).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_storage_conversions_round_like_torch(dtype):
    """x = 0 and weight = 0 leave y = bias, so every bit pattern passes through both ways."""
    patterns = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    finite = patterns[patterns.isfinite()].float()
    # Midpoints between neighbours and beyond, to see ties and overflow.
    spread = torch.cat([finite, finite * (1 + 2**-9), finite * (1 + 2**-12), finite * 1.0004])
    special = torch.tensor([float("nan"), float("inf"), -float("inf"), 65519.0, 65520.0, 1e-8])
    bias = torch.cat([spread, special])
    width = len(bias)
    y, mean, rstd = torch.empty(1, width, dtype=dtype), torch.empty(1), torch.empty(1)
    operators = native_library.operators()
    operators.layer_norm_forward(
        torch.zeros(1, width), torch.zeros(width), bias, 1e-5, y, mean, rstd
    )
    assert torch.equal(y[0].isnan(), bias.to(dtype).isnan())
    assert torch.equal(y[0].nan_to_num(0, 1, -1), bias.to(dtype).nan_to_num(0, 1, -1))
    back = torch.empty(1, len(finite))
    operators.layer_norm_forward(
        torch.zeros(1, len(finite)), torch.zeros(len(finite)), finite.to(dtype), 1e-5, back, mean,
        rstd,
    )  # fmt: skip
    assert torch.equal(back[0], finite)
