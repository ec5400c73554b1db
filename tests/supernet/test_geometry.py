"""The declared sizes are those of the module, and of all that is derived from them."""

from __future__ import annotations

import subprocess
import sys

import pytest

from growtas.supernet.vit.extents import COLUMNS, BlockExtents
from growtas.supernet.vit.geometry import AXES

from .conftest import SPACE, build


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"qkv_bias": "autoformer"},
        {"class_token": False},
        {"absolute_position": False},
        {"relative_position": False},
        {"image_size": (8, 20), "in_chans": 1, "max_relative_position": 2},
    ],
    ids=str,
)
def test_every_parameter_of_the_module_is_declared_with_its_shape(options):
    model = build(**options)
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    assert model.geometry.boxes(SPACE.supernet.largest()) == shapes
    depth = SPACE.supernet.depth
    assert {name: len(dims) for name, dims, _ in model.geometry.parameters(depth)} == {
        name: len(shape) for name, shape in shapes.items()
    }


def test_parameters_and_boxes_have_one_order(model, subnets):
    for subnet in subnets:
        names = [name for name, _, _ in model.geometry.parameters(subnet.depth)]
        assert names == list(model.boxes(subnet))


def test_inputs_that_matrices_had_before(model):
    """What a growing space reads in addition, of weights that are there and of new blocks'."""
    old = model.boxes(SPACE.smallest())
    embed, heads, hidden = old["blocks.0.attn.qkv.weight"][-1], 2, 48
    want = {
        "patch_embed.weight": None,
        "pos_embed": None,
        "blocks.0.norm1.weight": None,
        "blocks.0.attn.qkv.bias": None,
        "blocks.0.attn.qkv.weight": embed,
        "blocks.3.attn.qkv.weight": embed,
        "blocks.3.mlp.fc1.weight": embed,
        "head.weight": embed,
        "blocks.0.attn.proj.weight": 8 * heads,
        "blocks.3.attn.proj.weight": 0,
        "blocks.1.mlp.fc2.weight": hidden,
        "blocks.3.mlp.fc2.weight": 0,
    }
    assert {name: model.geometry.known_inputs(name, old) for name in want} == want


def test_the_columns_of_a_block_are_those_of_the_table():
    assert BlockExtents._fields[: len(COLUMNS)] == COLUMNS
    assert COLUMNS[: len(AXES)] == tuple(axis.name for axis in AXES)


def test_sizes_need_no_torch():
    code = (
        "import sys, growtas\n"
        "from growtas.supernet.vit import geometry, config\n"
        "space = growtas.SearchSpace.preset('digits')\n"
        "growtas.num_params(space, space.largest()), growtas.macs(space, space.largest())\n"
        "growtas.load_subnets\n"
        "assert not {'torch', 'numpy'} & set(sys.modules), 'heavy import'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
