"""The compiled library: its record, its SIMD levels, what all its operators have in common.

A process keeps the SIMD level it started with, so this folder's tests run once more for every other
level in a process of its own (`test_other_simd_levels`).
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from native_cases import attention_inputs, linear_inputs, run_attention
from oracles import bits_equal, outputs_and_gradients

from growtas import kernels
from growtas.base import build_info
from growtas.kernels import attention, layer_norm, linear, native_library

HERE = Path(__file__).parent


def other_levels() -> list[str]:
    """The SIMD levels of this CPU that a process must ask for."""
    if not build_info.build_info()["built"]:
        return []
    from growtas import _C

    return [level for level in _C.simd_levels() if level != _C.default_simd_level()]


def test_build_record_agrees_with_the_binary():
    from growtas import _C

    info = build_info.build_info()
    assert native_library.status() == (True, "")
    assert info["simd_levels"][0] == "baseline"
    assert set(_C.simd_levels()) <= set(info["simd_levels"])
    assert _C.simd_level() == os.environ.get("GROWTAS_SIMD", _C.default_simd_level())
    assert not _C.default_simd_level().startswith("amx")  # until it has run on a CPU with AMX
    if "avx2" in _C.simd_levels():
        assert all(_C.cpu_features()[name] for name in ("avx2", "fma", "f16c"))


@pytest.mark.skipif("GROWTAS_SIMD" in os.environ, reason="this process is one of the runs")
@pytest.mark.parametrize("level", other_levels())
def test_other_simd_levels(level):
    """All of this folder; where only linear differs from the level below, that and the threads."""
    files = ["test_linear.py", "test_library.py"] if level.startswith("amx") else [""]
    environment = {**os.environ, "GROWTAS_SIMD": level, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-x", "-k", "not refused and not declare"]
    result = subprocess.run(
        [*command, *(str(HERE / file) for file in files)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-2000:]


def test_unknown_simd_level_is_refused():
    code = "from growtas import _C; _C.simd_level()"  # what loading the library asks first
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "GROWTAS_SIMD": "avx1024"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode != 0
    assert "GROWTAS_SIMD=avx1024: this machine can run baseline" in result.stderr


def run_everything() -> list[torch.Tensor]:
    torch.manual_seed(0)
    results = []
    with kernels.use_backend("native"):
        for dtype in (torch.float32, torch.bfloat16):
            inputs, cotangent = attention_inputs((7, 9), 1, 3, 24, batch=5)
            results += run_attention(
                attention, inputs, cotangent, dtype, num_heads=3, grid=(7, 9)
            ).values()
            inputs = {"x": torch.randn(700, 40), "weight": torch.randn(64), "bias": torch.randn(64)}
            results += outputs_and_gradients(
                layer_norm, inputs, torch.randn(700, 40), dtype
            ).values()
            inputs, cotangent = linear_inputs(700, 40, 90, dtype=dtype)
            results += outputs_and_gradients(
                linear, inputs, cotangent, dtype, out_features=90, input_activation="gelu"
            ).values()
    return results


def test_same_bits_for_any_number_of_threads():
    before = torch.get_num_threads()
    try:
        runs = []
        for threads in (1, 2, 3, 1):
            torch.set_num_threads(threads)
            runs.append(run_everything())
    finally:
        torch.set_num_threads(before)
    for run in runs[1:]:
        assert all(bits_equal(a, b) for a, b in zip(runs[0], run, strict=True))


def test_empty_batch():
    operators = native_library.operators()
    out, lse = torch.empty(0, 5, 8), torch.empty(0, 1, 5)
    operators.attention_forward(torch.empty(0, 5, 24), None, 1, 2, 2, 1.0, out, lse)
    y, mean, rstd = torch.empty(0, 8), torch.empty(0), torch.empty(0)
    operators.layer_norm_forward(y, torch.ones(8), torch.ones(8), 1e-5, y.clone(), mean, rstd)


@pytest.mark.parametrize("name", ["layer_norm_forward", "attention_forward"])
def test_operators_declare_what_they_write(name):
    """torch's own check of the schema and the fake kernel, as torch.compile relies on them."""
    if name == "layer_norm_forward":
        arguments = (torch.randn(6, 8), torch.randn(16), torch.randn(16), 1e-5)
        outputs = (torch.zeros(6, 8), torch.zeros(6), torch.zeros(6))
    else:
        arguments = (torch.randn(2, 5, 24), torch.randn(4, 6, 8), 1, 2, 2, 0.5)
        outputs = (torch.zeros(2, 5, 8), torch.zeros(2, 1, 5))
    operator = getattr(native_library.operators(), name).default
    torch.library.opcheck(
        operator, (*arguments, *outputs), test_utils=("test_schema", "test_faketensor")
    )
