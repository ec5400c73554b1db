"""How many kernels a block launches on Triton: in an eager step each costs the host its time."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from growtas import kernels
from growtas.kernels import dispatch

from .conftest import build

FORWARD = {
    "layer_norm_forward_kernel": 2,
    "linear_forward_kernel": 4,
    "attention_forward_kernel": 1,
}
# The outputs of the two norms are computed again: keeping them would cost their memory.
BACKWARD = {
    "layer_norm_forward_kernel": 2,
    "layer_norm_backward_kernel": 2,
    "linear_weight_gradient_kernel": 4,
    "linear_input_gradient_kernel": 4,
    "attention_query_gradient_kernel": 1,
    "attention_table_partial_kernel": 1,
    "attention_key_gradient_kernel": 1,
}


# What PyTorch is asked for without launching anything.
VIEWS = {"select", "detach", "unsqueeze", "view", "promote_types"}


class Operators(TorchDispatchMode):
    """The names of the operators called."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(str(function).removesuffix(".default"))
        return function(*args, **(kwargs or {}))


@pytest.fixture
def launched(monkeypatch):
    """The names of the kernels launched."""
    pytest.importorskip("triton")
    from triton.runtime.interpreter import GridExecutor
    from triton.runtime.jit import JITFunction

    from growtas.kernels.linear import gpu

    names = []
    interpreted, compiled = GridExecutor.__call__, JITFunction.run

    def interpret(executor, *arguments, **options):
        names.append(executor.fn.__name__)
        return interpreted(executor, *arguments, **options)

    def run(function, *arguments, **options):
        names.append(function.__name__)
        return compiled(function, *arguments, **options)

    monkeypatch.setattr(GridExecutor, "__call__", interpret)
    monkeypatch.setattr(JITFunction, "run", run)
    if not torch.cuda.is_available():
        monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(dispatch, "_cache", {})
    monkeypatch.setattr(gpu, "left_to_cublas", lambda *arguments: False)
    return names


@pytest.mark.parametrize("static", [False, True], ids=["eager", "graph"])
def test_a_block(launched, static):
    """Sizes from the host or from the device, where drop path's factors are given."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = build(drop_path=0.5 * static).train().to(device)
    block = model.blocks[-1]
    x = torch.randn(2, 17, model.space.supernet.embed_dim, device=device, requires_grad=True)
    gradients = kernels.GradientAccumulator(model.parameters())
    with kernels.use_backend("triton"), Operators() as operators:
        if static:
            extents = model.new_extents()
            extents.write(model.space.largest())
            survival = torch.ones(2, 2, device=device)
            operators.names.clear()
            y = block.forward_static(x, (4, 4), extents.blocks[-1], survival, gradients)
        else:
            y = model.block(3, x, model.space.supernet.largest(), gradients=gradients)
        assert Counter(launched) == FORWARD
        launched.clear()
        cotangent = torch.ones_like(y)
        operators.names.remove("aten.ones_like")
        y.backward(cotangent)
    assert Counter(launched) == BACKWARD
    called = {name.split(".")[1] for name in operators.names if not name.startswith("growtas")}
    assert called <= VIEWS
