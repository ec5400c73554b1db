"""Rates of products: checked before they are timed, every direction, any dtype."""

from __future__ import annotations

import pytest
import torch

from benchmarks import products, report, rows
from benchmarks.cases import Case
from benchmarks.runner import Effort, WrongResult
from benchmarks.variants import missing
from growtas.space import SearchSpace, SupernetSize

SPACE = SearchSpace(
    embed_dim=(40,),
    depth=(1,),
    num_heads=(2,),
    mlp_ratio=(3.0,),
    head_dim=16,
    supernet=SupernetSize(48, 3, 4.0, 1),
)
CASE = Case(SPACE, "smallest", 14, "float32", "products", image_size=24, patch_size=8)
SHORT = Effort(min_rounds=2, max_rounds=2, seconds=0)

pytestmark = pytest.mark.skipif(
    missing("growtas-native-dense", "cpu") is not None, reason="the native library is not built"
)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_layer_and_direction(dtype: str) -> None:
    case = Case(SPACE, "smallest", 14, dtype, "products", image_size=24, patch_size=8)
    before = torch.get_num_threads()
    found = products.run_products(case, rows.Book("cpu"), SHORT)
    assert torch.get_num_threads() == before
    rates = [row for row in found if row.metric == "rate"]
    assert len(rates) == 4 * 3 * 3
    assert all(row.threads == 1 and row.median > 0 for row in rates)
    ratios = {row.variant for row in found if row.metric == "rate_ratio"}
    assert ratios == {"growtas-native / torch", "growtas-native / onednn"}
    lines = report.product_rates(found).splitlines()[2:]
    assert [line.split(" | ")[0] for line in lines] == [
        f"| {SPACE.name}, {direction}" for direction in products.DIRECTIONS
    ]


@pytest.mark.parametrize(
    ("layer", "ins", "outs", "buffer"),
    [
        ("qkv", 40, 96, (144, 48)),
        ("proj", 32, 40, (48, 48)),
        ("fc1", 40, 120, (192, 48)),
        ("fc2", 120, 40, (48, 192)),
    ],
)
def test_sizes_of_the_layers(layer: str, ins: int, outs: int, buffer: tuple[int, int]) -> None:
    product = products.product(CASE, layer)
    assert (product.x.shape, product.dy.shape) == ((140, ins), (140, outs))
    assert product.weight.shape == buffer
    assert product.flops == 2 * 140 * ins * outs


def test_a_wrong_product_becomes_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise WrongResult("error of ours", 2.0, 1.0)

    monkeypatch.setattr(products, "check", refuse)
    case = Case(SPACE, "smallest", 2, "float32", "products", image_size=24, patch_size=8)
    found = products.run_products(case, rows.Book("cpu"), SHORT, layers=["fc1"])
    assert [(row.metric, row.median) for row in found] == [("wrong_result", 2.0)] * 3
    assert "| failed | failed | failed |" in report.product_rates(found)


@pytest.mark.parametrize("direction", products.DIRECTIONS)
def test_a_wrong_product_is_refused(direction: str) -> None:
    product = products.product(CASE, "fc1")
    steps = products.steps_of(product, direction)
    right = steps[products.OURS]
    steps[products.OURS] = lambda: right() * 1.001
    with pytest.raises(WrongResult, match="growtas-native"):
        products.check(product, direction, steps)
