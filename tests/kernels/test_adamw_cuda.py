"""The CUDA source of adamw_static_ on the host's threads, against the reference: without a GPU this
is the only run of its arithmetic and its indices."""

from __future__ import annotations

import ctypes
import math
import os
import random
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from kernels.adamw_static_cases import (
    SIDES,
    Static,
    boxes_of,
    leading,
    random_extents,
    random_gradients,
)
from oracles import bits_equal

from growtas import kernels
from growtas.kernels.adamw import native
from growtas.kernels.adamw.api import adamw_static_

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "csrc/cuda/adamw_static.cu"
COMPILER = os.environ.get("CXX", "c++")

pytestmark = pytest.mark.skipif(shutil.which(COMPILER) is None, reason="there is no C++ compiler")


class Plan(ctypes.Structure):
    """`StaticAdamW` of csrc/cuda/adamw_static.h."""

    _fields_ = (
        *((name, ctypes.c_void_p if kind == "p" else kind) for name, kind in (
            ("targets", "p"), ("count", ctypes.c_int64), ("tiles", "p"),
            ("tile_count", ctypes.c_int64), ("frozen", "p"), ("edges", "p"), ("steps", "p"),
            ("active", "p"), ("rates", "p"), ("extents", "p"), ("subnets", ctypes.c_int64),
            ("rows", ctypes.c_int64), ("columns", ctypes.c_int64), ("scale", "p"),
            ("blend", "p"), ("partials", "p"), ("norm", "p"), ("found_inf", "p"),
            ("factor", "p"), ("largest", ctypes.c_float), ("measure", ctypes.c_bool),
            ("inactive", ctypes.c_int64),
        )),
    )  # fmt: skip


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """The source with its launches and shared memory in the host's terms, compiled."""
    folder = tmp_path_factory.mktemp("cuda")
    text = SOURCE.read_text()
    text = re.sub(r"extern __shared__ (\w+) (\w+)\[\];", r"static \1 \2[64];", text)
    text = text.replace("__shared__", "static")
    launches = r"(\w+)<<<(\w+), (\w+), .*?>>>\((\w+)\);"
    text, count = re.subn(launches, r"launch(\2, \3, [&] { \1(\4); });", text)
    assert count == text.count("__global__") == 3
    text += '\nextern "C" void run(const growtas::StaticAdamW* plan) {\n'
    text += "  growtas::adamw_static_cuda(*plan, nullptr);\n}\n"
    source, output = folder / "kernels.cpp", folder / "kernels.so"
    source.write_text(text)
    flags = ["-std=c++20", "-O1", "-shared", "-fPIC", "-pthread"]
    flags += [f"-I{ROOT / folder}" for folder in ("tests/cuda", "csrc/cuda")]
    subprocess.run(
        [COMPILER, *flags, source, "-o", output], check=True, capture_output=True, text=True
    )
    return ctypes.CDLL(str(output))


@pytest.fixture
def emulated(library, monkeypatch):
    """adamw_static_ calls the CUDA source."""

    class Operators:
        @staticmethod
        def adamw_static_(
            targets, tiles, frozen, edges, steps, active, rates, extents, scale, blend, partials,
            norm, found_inf, factor, largest, measure, inactive,
        ):  # fmt: skip
            def at(tensor):
                return None if tensor is None else tensor.data_ptr()

            plan = Plan(
                at(targets), len(targets), at(tiles), len(tiles), at(frozen), at(edges), at(steps),
                at(active), at(rates), at(extents), *extents.shape, at(scale), at(blend),
                at(partials), at(norm), at(found_inf), at(factor), largest, measure, inactive,
            )  # fmt: skip
            library.run(ctypes.byref(plan))

    monkeypatch.setattr(native.native_library, "operators", Operators)
    return native.step_static_


@pytest.mark.parametrize(("inactive", "subnets"), [("dense", 1), ("skip", 2), ("masked", 3)])
def test_steps_are_those_of_the_reference(emulated, inactive, subnets):
    """Other subnets, frozen boxes, resets, rates and an infinite gradient."""
    ours, theirs = Static(inactive), Static(inactive)
    rng, generator = random.Random(subnets), torch.Generator().manual_seed(0)
    scale = torch.tensor(64.0)
    for i in range(6):
        extents = random_extents(rng, subnets)
        gradients = [64.0 * g for g in random_gradients(extents, generator)]
        if i == 2:
            gradients[0][0] = math.inf
        boxes = boxes_of(random_extents(rng, 1))[0] if i >= 3 else [None] * len(SIDES)
        for case in (ours, theirs):
            case.table.write_frozen(boxes)
            if i == 4:
                case.table.write_shells([[((1,) * len(s), 4), (s, 2)] for s, _ in SIDES])
            case.write(gradients, blend=0.3, lr_scale=1.0 - 0.1 * i)
        emulated(ours.table, extents, 2.0, scale)
        with kernels.use_backend("reference"):
            adamw_static_(theirs.table, extents, largest=2.0, scale=scale)
        assert float(ours.table.found_inf) == (i == 2)
        assert torch.equal(ours.table.steps, theirs.table.steps)
        for got, want in zip(ours.arrays(), theirs.arrays(), strict=True):
            for a, b in zip(got, want, strict=True):
                torch.testing.assert_close(a, b, rtol=2e-5, atol=1e-6)
        for a, b in zip(ours.rows, theirs.rows, strict=True):
            assert a.counts is None or torch.equal(a.counts, b.counts)


@pytest.mark.parametrize("inactive", ["dense", "masked"])
def test_what_does_not_move_keeps_its_bits(emulated, inactive):
    """NaN in a frozen box and, masked, outside of what was sampled; without averages."""
    case = Static(inactive, shadows=True, averages=False)
    rng, generator = random.Random(2), torch.Generator().manual_seed(2)
    extents, frozen = random_extents(rng, 2), boxes_of(random_extents(rng, 1))[0]
    case.write([torch.randn(shape, generator=generator) for shape, _ in SIDES])
    case.table.write_frozen(frozen)
    moving = []
    for i, row in enumerate(case.rows):
        sampled = torch.zeros(row.parameter.shape, dtype=torch.bool)
        for boxes in boxes_of(extents):
            sampled[leading(boxes[i])] = True
        mask = sampled if inactive == "masked" else torch.full_like(sampled, bool(sampled.any()))
        mask[leading(frozen[i])] = False
        moving.append(mask)
        for array in (row.parameter, row.gradient, row.exp_avg, row.exp_avg_sq, row.shadow):
            array[~mask] = math.nan
    before = [[a.clone() for a in row.arrays if a is not None] for row in case.rows]
    emulated(case.table, extents, None, None)
    for row, mask, old in zip(case.rows, moving, before, strict=True):
        for array, was in zip((a for a in row.arrays if a is not None), old, strict=True):
            assert bits_equal(array[~mask], was[~mask])
        assert row.parameter[mask].isfinite().all()
        assert not mask.any() or not torch.equal(row.parameter[mask], old[0][mask])
        assert bits_equal(row.shadow[mask], row.parameter[mask].bfloat16())
