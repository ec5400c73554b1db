"""The sides of parameters in terms of a table are the boxes that the host computes."""

from __future__ import annotations

import random

import pytest

from growtas.supernet import Supernet
from growtas.training.sides import sampled_sides

from .training_setup import SPACE


@pytest.mark.parametrize("options", [
    {}, {"qkv_bias": "autoformer"}, {"relative_position": False, "absolute_position": False},
    {"class_token": False},
], ids=lambda options: "-".join(options) or "plain")  # fmt: skip
def test_sides_are_the_boxes_of_the_supernet(options):
    model = Supernet(SPACE, 8, 4, 10, 1, **options)
    sides, parameters = sampled_sides(model), dict(model.named_parameters())
    assert sides.keys() == parameters.keys()
    extents = model.new_extents()
    rng = random.Random(0)
    for _ in range(30):
        subnet = SPACE.sample(rng)
        extents.write(subnet)
        want = model.extents(subnet)
        for name, (columns, row, active) in sides.items():
            values = extents.table[0, row].tolist()
            box = tuple(
                size if column is None else column[1] * values[column[0]]
                for size, column in zip(parameters[name].shape, columns, strict=True)
            )
            assert (box if values[active] else None) == want.get(name)
