"""CONTRIBUTING's example of a family, run as it stands: all that is derived from its geometry."""

from __future__ import annotations

import random
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from growtas.kernels import GradientAccumulator
from growtas.search import Limit, crossover, model_cost, mutate
from growtas.search.operators import step
from growtas.space.size_table import SizeTable
from growtas.supernet.family import Family
from growtas.training.growth import initialise_new_weights


@pytest.fixture(scope="module")
def mlp():
    """The names that the example's blocks define, in a module of their own."""
    text = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text()
    section = text.split("## Add a family")[1].split("\n## ")[0]
    names: dict = {"__name__": "example"}
    for block in re.findall(r"```python\n(.*?)```", section, re.DOTALL):
        exec(compile(block, "CONTRIBUTING.md", "exec", dont_inherit=True), names)
    return SimpleNamespace(**names)


@pytest.fixture
def model(mlp):
    torch.manual_seed(0)
    space = mlp.Space(width=(4, 6, 8), depth=(1, 2, 3), hidden=(5, 10))
    model = mlp.Supernet(space, pixels=12, classes=3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


@pytest.fixture
def subnets(model):
    rng = random.Random(0)
    return [model.space.smallest(), model.space.largest(), *(model.sample(rng) for _ in range(4))]


def images():
    return torch.randn(5, 3, 4, generator=torch.Generator().manual_seed(1))


def test_it_is_a_family(model):
    family: Family = model
    assert all(hasattr(family, name) for name in ("sample", "boxes", "cost", "forward", "extract"))


def test_the_geometry_has_every_parameter_and_its_shape(model):
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    assert model.boxes(model.space.largest()) == shapes


def test_boxes_are_all_that_a_subnet_reads(model, subnets):
    x = images()
    for subnet in subnets:
        want, boxes = model(x, subnet), model.boxes(subnet)
        poisoned = type(model).from_config(model.config, model.space)
        for name, parameter in poisoned.named_parameters():
            values = torch.full_like(parameter, float("nan"))
            if name in boxes:
                box = tuple(map(slice, boxes[name]))
                values[box] = model.get_parameter(name).detach()[box]
            parameter.data = values
        assert torch.equal(poisoned(x, subnet), want)


def test_the_extracted_model_has_the_counts_and_the_logits(model, subnets):
    for subnet in subnets:
        alone = model.extract(subnet)
        torch.testing.assert_close(alone(images()), model(images(), subnet))
        with FlopCounterMode(display=False) as counter:
            alone(images()[:1])
        params = sum(p.numel() for p in alone.parameters())
        assert model.cost(subnet) == (params, counter.get_total_flops() // 2)


def test_gradients_are_added_in_the_boxes(model, subnets):
    gradients = GradientAccumulator(model.parameters())
    model(images(), subnets[2], gradients=gradients).sum().backward()
    boxes = model.boxes(subnets[2])
    for name, parameter in model.named_parameters():
        assert gradients.dirty(parameter) == boxes.get(name)


def test_a_deeper_and_wider_subnet_starts_as_the_old_one(model, mlp):
    old, new = mlp.Subnet(6, (5, 5)), mlp.Subnet(6, (10, 5, 10))
    before = model(images(), old)
    assert not torch.allclose(model(images(), new), before)
    with torch.no_grad():  # biases start from zero
        initialise_new_weights([model], model.boxes(old), model.boxes(new), "zero", seed=0)
    torch.testing.assert_close(model(images(), new), before)
    assert torch.equal(model(images(), old), before)
    assert model.blocks[2]["fc1"].weight[:10, :6].abs().min() > 0
    assert model.geometry.known_inputs("blocks.2.fc1.weight", model.boxes(old)) == 6
    assert model.geometry.known_inputs("embed.weight", model.boxes(old)) is None


def test_search_operators_and_tables_iterate_its_axes(model):
    space, rng = model.space, random.Random(0)
    table = SizeTable.build(space, model_cost(model))
    every = set(table.inside(Limit()))
    assert len(every) == 3 * (2 + 4 + 8)
    assert {model.cost(subnet) for subnet in every} == set(table.sizes())
    few = table.inside(Limit(max_params=150))
    assert set(few) == {subnet for subnet in every if model.cost(subnet).params <= 150}
    assert few.sample(rng) in every
    first, second = model.sample(rng), model.sample(rng)
    for _ in range(50):
        children = mutate(first, space, rng), crossover(first, second, rng), step(first, space, rng)
        assert every.issuperset(children)
        first, second, _ = children
