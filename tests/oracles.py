"""Independent formulas and the error budget that operator tests share.

The oracles are written with autograd and materialised tables, from the papers' equations, and
share no code with growtas.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
BACKENDS = ["reference", "native"]
# Embedding widths of AutoFormer-T, -S, -B and hidden widths around them; 756 = 216 * 3.5 is the
# only one that is not a multiple of 8.
EMBED_WIDTHS = [192, 216, 240, 320, 384, 448, 528, 576, 624]
HIDDEN_WIDTHS = [672, 756, 768, 840, 864, 960, 1344, 1568, 1792, 1848, 2184, 2496]


def linear(
    x, weight, bias=None, *, out_features, input_activation=None, sample_scale=None, residual=None
):  # fmt: skip
    """y = residual + s (act(x) W^T + b); stacked weights give stacked outputs."""
    if input_activation == "gelu":
        x = F.gelu(x)
    matrices = [weight] if weight.dim() == 2 else [w.reshape(-1, w.shape[-1]) for w in weight]
    outputs = []
    for part, matrix in enumerate(matrices):
        y = x @ matrix[:out_features, : x.shape[-1]].T
        if bias is not None:
            if bias.dim() == 1:
                y = y + bias[part * out_features : (part + 1) * out_features]
            else:
                y = y + bias[part].reshape(-1)[:out_features]
        outputs.append(y)
    y = torch.cat(outputs, -1)
    if sample_scale is not None:
        y = y * sample_scale.to(y.dtype).reshape(-1, *(1,) * (y.dim() - 1))
    return y if residual is None else residual + y


def layer_norm(x, weight, bias, eps=1e-5):
    width = x.shape[-1]
    return F.layer_norm(x, (width,), weight[:width], bias[:width], eps)


@functools.lru_cache(maxsize=64)
def relative_rows(grid: tuple[int, int], class_token: bool, reach: int) -> tuple[Tensor, Tensor]:
    """Table rows for every (query, key), by explicit loops over the definition."""
    height, width = grid
    tokens = [(y, x) for y in range(height) for x in range(width)]
    sequence = ([None] if class_token else []) + tokens
    a = torch.zeros(len(sequence), len(sequence), dtype=torch.long)
    b = torch.zeros_like(a)
    for i, query in enumerate(sequence):
        for j, key in enumerate(sequence):
            if query is not None and key is not None:
                a[i, j] = max(-reach, min(reach, key[0] - query[0])) + reach + 1
                b[i, j] = max(-reach, min(reach, key[1] - query[1])) + reach + 1
    return a, b


def attention(qkv, tables, *, num_heads, grid, scale=None):
    """AutoFormer's attention with its N x N x d tables built, as its paper writes it."""
    batch, tokens, features = qkv.shape
    d = features // (3 * num_heads)
    q, k, v = qkv.view(batch, tokens, 3, num_heads, d).permute(2, 0, 3, 1, 4)
    scale = d**-0.5 if scale is None else scale
    logits = (q @ k.transpose(-1, -2)) * scale
    if tables is not None:
        reach = (tables.shape[1] - 2) // 2
        a, b = relative_rows(grid, tokens == grid[0] * grid[1] + 1, reach)
        rk = tables[0][a] + tables[1][b]
        rv = tables[2][a] + tables[3][b]
        logits = logits + torch.einsum("bhid,ijd->bhij", q, rk) * scale
    probabilities = logits.softmax(-1)
    out = probabilities @ v
    if tables is not None:
        out = out + torch.einsum("bhij,ijd->bhid", probabilities, rv)
    return out.transpose(1, 2).reshape(batch, tokens, num_heads * d)


def outputs_and_gradients(function, inputs: dict, cotangent: Tensor, dtype=None, **arguments):
    """The output and the gradients of all tensor inputs, in ``dtype`` (default: as given)."""
    cast = {
        name: value.detach().to(dtype or value.dtype).requires_grad_()
        for name, value in inputs.items()
        if value is not None
    }
    given = {name: cast.get(name) for name in inputs}
    y = function(**given, **arguments)
    gradients = torch.autograd.grad(y, list(cast.values()), cotangent.to(y.dtype))
    return {"output": y.detach(), **dict(zip(cast, gradients, strict=True))}


def assert_within_budget(
    actual: dict, golden: dict, plain: dict, dtype: torch.dtype, *, epsilons: int = 2
) -> None:
    """Outputs at most 2x, gradients at most 3x as wrong as plain PyTorch in the same dtype.

    Errors are maxima against float64; two epsilons of the golden's scale are allowed on top (more
    where there are so few elements that plain PyTorch's own maximum is a matter of luck).
    """
    for name, want in golden.items():
        error = (actual[name].double() - want).abs().max().item()
        plain_error = (plain[name].double() - want).abs().max().item()
        factor = 2 if name == "output" else 3
        scale = torch.finfo(dtype).eps * want.abs().max().item()
        budget = factor * plain_error + epsilons * scale
        assert error <= budget, f"{name}: error {error:.3g}, budget {budget:.3g} ({dtype})"


def bits_equal(a: Tensor, b: Tensor) -> bool:
    """Same shape, dtype and bits (NaN payloads included)."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    a, b = a.contiguous(), b.contiguous()
    return torch.equal(a.view(torch.uint8), b.view(torch.uint8))
