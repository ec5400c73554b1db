"""What a GPU's launch would compile is compiled, and launches are recorded."""

from __future__ import annotations

import importlib.util

import pytest
import stand_in_driver

PROGRAM = """
import torch
from growtas import kernels

def linear(width):
    weight, bias = torch.zeros(64, 64), torch.zeros(64)
    kernels.linear(torch.zeros(4, width), weight, bias, out_features=32, input_activation="gelu")

linear(32)
linear(48)
assert len(record.builds) == 1, "another width is compiled again"
(build,) = record.builds
assert build.types["x"] == "*fp32:16", build.types
assert len(build.compiled.asm["cubin"]) > 1000
print(build.name, build.warps, build.stages, build.compiled.metadata.target.arch)
print([launch.name for launch in record.launches])
"""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton")
def test_kernels_are_compiled_once_and_launches_recorded(tmp_path):
    printed = stand_in_driver.run(PROGRAM, 80, TRITON_CACHE_DIR=str(tmp_path)).splitlines()
    assert printed[0].startswith("linear_forward_kernel ")
    assert printed[0].endswith(" 80")
    assert printed[1] == str(["linear_forward_kernel"] * 2)
