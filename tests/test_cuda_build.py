"""csrc/cuda compiles for the architectures that are shipped, without spills; no GPU is needed."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from growtas.base.build_info import build_info
from growtas.run.info import describe

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted((ROOT / "csrc/cuda").glob("*.cu"))


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="there is no nvcc")
@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.name)
def test_kernels_compile_and_nothing_spills(source, tmp_path):
    codes = [f"-gencode=arch=compute_{n},code=sm_{n}" for n in (80, 90)]
    output = tmp_path / "kernels.o"
    done = subprocess.run(
        ["nvcc", "-std=c++20", "-O3", *codes, "-Xptxas", "-v", "-c", source, "-o", output],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = done.stdout + done.stderr
    kernels = source.read_text().count("__global__")
    assert len(re.findall("Compiling entry function", said)) == 2 * kernels
    spills = [int(n) for n in re.findall(r"(\d+) bytes spill", said)]
    assert len(spills) == 4 * kernels
    assert not any(spills)


def test_what_was_built_for_cuda_is_told():
    facts = build_info()
    if not facts["built"] or facts["cuda"] is None:
        pytest.skip("csrc is not built, or by an older setup.py")
    text = describe({
        "versions": {}, "location": "", "platform": "", "cpu": {}, "gpus": [], "native": facts,
        "backend_request": "auto", "operators": [],
    })  # fmt: skip
    assert re.search(r"cuda +\S", text)
