"""The operator that CONTRIBUTING.md adds, added: its code blocks become a folder of kernels."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path

import pytest
import torch
from torch.library import opcheck

from growtas import kernels
from growtas.kernels import dispatch, precompile

TEXT = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text()
SECTION = TEXT.split("## Add an operator\n")[1].split("\n## ")[0]


@pytest.fixture(scope="module")
def api(tmp_path_factory):
    """`growtas.kernels.scale.api`. The one line of dispatch.py is executed too."""
    place = tmp_path_factory.mktemp("kernels")
    (place / "scale").mkdir()
    (place / "scale/__init__.py").touch()
    files = re.findall(
        r"^`growtas/kernels/(scale/\w+\.py)`.*?```python\n(.*?)```", SECTION, re.S | re.M
    )
    assert [name for name, _ in files] == ["scale/api.py", "scale/reference.py"]
    for name, code in files:
        (place / name).write_text(code)
    removed, added = re.findall(r"^[-+](OPERATORS = .*)$", SECTION, re.M)
    assert removed in Path(dispatch.__file__).read_text().splitlines()
    scope = {}
    exec(added, scope)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(dispatch, "OPERATORS", scope["OPERATORS"])
        monkeypatch.setattr(kernels, "__path__", [*kernels.__path__, str(place)])
        yield importlib.import_module("growtas.kernels.scale.api")
    for name in [name for name in sys.modules if name.startswith("growtas.kernels.scale")]:
        del sys.modules[name]


@pytest.fixture
def given():
    """Half as wide as the weight, which is NaN beyond."""
    weight = torch.full((8,), float("nan"), dtype=torch.float64)
    weight[:4] = torch.randn(4, dtype=torch.float64)
    x = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    return x, weight.requires_grad_()


def test_values_and_gradients(api, given):
    x, weight = given
    y = api.scale(x, weight)
    torch.testing.assert_close(y, x * weight[:4])
    dy = torch.randn_like(y)
    y.backward(dy)
    torch.testing.assert_close(x.grad, dy * weight[:4].detach())
    torch.testing.assert_close(weight.grad[:4], (dy * x.detach()).sum((0, 1)))
    assert torch.all(weight.grad[4:] == 0)
    leaves = [x.detach().requires_grad_(), weight[:4].detach().requires_grad_()]
    assert torch.autograd.gradcheck(api.scale, leaves)
    assert torch.autograd.gradgradcheck(api.scale, leaves)
    with pytest.raises(ValueError, match="x is 4 wide, the weight allows 1 to 3"):
        api.scale(x, weight[:3])


def test_accumulated_gradients(api, given):
    x, weight = given
    accumulator = kernels.GradientAccumulator([weight])
    weight.grad.fill_(7.0)
    api.scale(x, weight, gradients=accumulator).sum().backward()
    torch.testing.assert_close(weight.grad[:4], 7 + x.detach().sum((0, 1)))
    assert torch.all(weight.grad[4:] == 7)
    assert accumulator.dirty(weight) == (4,)


def test_as_an_operator_of_pytorch(api, given):
    x, weight = given
    operators = torch.ops.growtas
    schema = str(operators.scale.default._schema)
    assert schema == "growtas::scale(Tensor x, Tensor weight) -> Tensor"
    opcheck(operators.scale.default, (x, weight[:4]))
    buffer = torch.zeros(4, dtype=torch.float64)
    call = (x.detach(), weight.detach()[:4])
    opcheck(operators.scale_backward.default, (call[0], *call, True, buffer, None))
    compiled = torch.compile(api.scale, fullgraph=True, dynamic=True, backend="aot_eager")
    for width in (4, 3):
        leaf = x.detach()[..., :width].clone().requires_grad_()
        y = compiled(leaf, weight)
        torch.testing.assert_close(y, leaf * weight[:width])
        y.sum().backward()
        torch.testing.assert_close(leaf.grad, weight[:width].detach().expand(2, 3, width))
    per_sample = torch.func.vmap(torch.func.grad(lambda x: api.scale(x, weight).sum()))(x.detach())
    torch.testing.assert_close(per_sample, weight[:4].detach().expand(2, 3, 4))


def test_it_is_one_of_the_operators(api, given):
    rows = [row for row in kernels.explain(("cpu",)) if row.operator == "scale"]
    assert {row.backend for row in rows} == {"reference"}
    assert "there is no native implementation of scale" in rows[0].rejected["native"]
    with kernels.use_backend("reference"):
        assert api.scale(*given).isfinite().all()
    assert list(precompile.builds(90, ["scale"])) == []
