"""Schemas, fake kernels, autograd and torch.compile of the registered operators."""

from __future__ import annotations

import random

import pytest
import torch
import torch._functorch.config
import torch._inductor.config
from torch import nn
from torch._dynamo.utils import counters
from torch.library import opcheck

from growtas import kernels
from growtas.kernels.attention.api import ATTENTION, AttentionCall
from growtas.kernels.extents import LinearSizes
from growtas.kernels.layer_norm.api import LAYER_NORM, LayerNormCall
from growtas.kernels.linear.api import LINEAR, Around, LinearCall

ops = torch.ops.growtas


def randn(*shape, dtype=torch.float32):
    return torch.randn(*shape, dtype=dtype)


def check(operator, call, *, parameters=1):
    """Both of an operator's entries, as the dispatcher calls them. Extents are all there is: what
    lies beyond them is never twice the same."""
    flat = operator.flatten(call)
    assert operator.rebuild(flat) == call
    forward, backward = (
        getattr(ops, operator.name + suffix).default for suffix in ("", "_backward")
    )
    opcheck(forward, flat)
    outputs = forward(*flat)
    y, *saved = outputs if isinstance(outputs, tuple) else (outputs,)
    saved = [y, *saved] if operator.name == "attention" else saved
    for need in (True, False):
        buffers = [None if p is None else torch.zeros_like(p) for p in call[1 : 1 + parameters]]
        opcheck(backward, (torch.randn_like(y), *flat, *saved, need, *buffers, None))
    opcheck(backward, (torch.randn_like(y), *flat, *saved, True, *[None] * parameters, None))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_opcheck_linear(backend, dtype):
    x, weight, bias = randn(2, 5, 6, dtype=dtype), randn(3, 2, 4, 8), randn(3, 2, 4)
    extents = LinearSizes(*torch.tensor([[4], [6]], dtype=torch.int32), 1)
    for around in (Around(True, randn(2), randn(2, 5, 12)), Around(False, None, None)):
        for sizes in (None, extents):
            check(LINEAR, LinearCall(x, weight, bias, 4, around, sizes), parameters=2)
        check(LINEAR, LinearCall(x, weight, None, 4, around, None), parameters=2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_opcheck_layer_norm(backend, dtype):
    x, weight, bias = randn(2, 5, 6, dtype=dtype), randn(8), randn(8)
    width, one = torch.tensor([[6], [1]], dtype=torch.int32)
    for extents, present in ((None, None), (width, one)):
        call = LayerNormCall(x, weight, bias, 1e-5, torch.bfloat16, extents, present)
        check(LAYER_NORM, call, parameters=2)


@pytest.mark.parametrize("relative", [True, False])
def test_opcheck_attention(backend, relative):
    qkv, tables = randn(2, 7, 3 * 2 * 8), randn(4, 6, 8) if relative else None
    for extents in (None, torch.tensor([2], dtype=torch.int32)):
        check(ATTENTION, AttentionCall(qkv, tables, 2, 2, 3, 8**-0.5, extents))


def block(x, norm, qkv, tables, proj, fc1, fc2, heads, hidden):
    """One transformer block as a user would write it around the operators."""
    embed = x.shape[-1]
    y = kernels.layer_norm(x, *norm)
    y = kernels.linear(y, *qkv, out_features=heads * 16)
    y = kernels.attention(y, tables, num_heads=heads, grid=(3, 3))
    x = kernels.linear(y, *proj, out_features=embed, residual=x)
    y = kernels.layer_norm(x, *norm)
    y = kernels.linear(y, *fc1, out_features=hidden)
    return kernels.linear(y, *fc2, out_features=embed, input_activation="gelu", residual=x)


def parameters():
    def pair(*shape):
        return nn.Parameter(randn(*shape).mul(0.1)), nn.Parameter(randn(*shape[:-1]))

    norm = (nn.Parameter(torch.ones(96)), nn.Parameter(torch.zeros(96)))
    tables = nn.Parameter(randn(4, 8, 16))
    return norm, pair(3, 6, 16, 96), tables, pair(96, 96), pair(384, 96), pair(96, 384)


def test_one_graph_serves_a_whole_menu(backend):
    """fullgraph, dynamic: 27 block shapes (embed x heads x hidden), one graph, equal results."""
    weights = parameters()
    torch._dynamo.reset()
    counters["stats"].clear()
    compiled = torch.compile(block, fullgraph=True, dynamic=True, backend="aot_eager")
    menu = [(e, h, int(e * r)) for e in (48, 72, 96) for h in (3, 4, 6) for r in (3.0, 3.5, 4.0)]
    random.Random(0).shuffle(menu)
    leaves = [weights[0][0], weights[1][0], weights[2], weights[5][1]]
    for embed, heads, hidden in menu:
        x = randn(2, 10, embed)
        results = []
        for function in (block, compiled):
            inputs = x.clone().requires_grad_()
            y = function(inputs, *weights, heads, hidden)
            gradients = torch.autograd.grad(y.square().sum(), [inputs, *leaves])
            results.append((y, *gradients))
        for eager, graph in zip(*results, strict=True):
            torch.testing.assert_close(eager, graph)
    assert counters["stats"]["unique_graphs"] == 1


# What is kept on disk from other versions of the operators has the same key.
@torch._inductor.config.patch(fx_graph_cache=False)
@torch._functorch.config.patch(enable_autograd_cache=False)
def test_inductor_runs_forward_and_backward(backend):
    weights = parameters()
    compiled = torch.compile(block, fullgraph=True, dynamic=True)
    for embed, heads, hidden in ((48, 3, 144), (96, 4, 384)):
        x = randn(2, 10, embed)
        expected = block(x, *weights, heads, hidden)
        y = compiled(x, *weights, heads, hidden)
        torch.testing.assert_close(y, expected)
        want = torch.autograd.grad(expected.square().sum(), weights[1][0])
        torch.testing.assert_close(torch.autograd.grad(y.square().sum(), weights[1][0]), want)
