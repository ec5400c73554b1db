"""Every kernel compiles for the architectures we ship for, without spills: the first build of each
here, all of them by `make gpu-compile`."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from growtas.kernels import precompile
from growtas.kernels.precompile import Resources, complaint, first_of_each_kernel
from growtas.kernels.triton import configs
from growtas.kernels.triton.launch import Launch


def run(*arguments):
    """In a process of its own: compiling and interpreting do not mix."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-W", "ignore", "-m", "growtas.kernels.precompile", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


@pytest.mark.parametrize("architecture", ["80", "90", "120"])  # a table each
def test_first_build_of_every_kernel(architecture):
    done = run("--arch", architecture, "--quick")
    assert done.returncode == 0, done.stdout + done.stderr
    printed = done.stdout.splitlines()
    assert ", 0 bad, " in printed[-1]
    lines = [line for line in printed if "B spilled" in line]
    kernels = {line.split()[1] for line in lines}
    assert len(kernels) == len(lines)
    assert printed[-1].startswith(f"{len(lines)} builds")
    for operator in ("adamw", "attention_forward", "layer_norm_backward", "linear_forward"):
        assert f"{operator}_kernel" in kernels
    for line in lines:
        words = line.split()
        assert int(words[words.index("registers") - 1]) > 0


def test_what_must_not_be_shipped():
    assert complaint(Resources(255, 0, 163 * 1024), 80) is None
    assert "spills 8 bytes" in complaint(Resources(255, 8, 0), 80)
    assert "shared memory" in complaint(Resources(32, 0, 163 * 1024 + 1), 80)
    for architecture in (90, 100):
        assert complaint(Resources(32, 0, 227 * 1024), architecture) is None
        assert "shared memory" in complaint(Resources(32, 0, 227 * 1024 + 1), architecture)
    for architecture in (86, 89, 120):
        assert complaint(Resources(32, 0, 99 * 1024), architecture) is None
        assert "shared memory" in complaint(Resources(32, 0, 99 * 1024 + 1), architecture)


def test_failures_are_counted_and_the_rest_is_compiled(monkeypatch, capsys):
    def compile_build(build):
        if build.label == "broken":
            raise RuntimeError("no such layout")
        return Resources(40, 16 if build.label == "spilling" else 0, 96)

    class Kernel:
        __name__ = "a_kernel"

    labels = ("good", "broken", "spilling")
    launch = Launch(Kernel(), 1, (), {}, configs.Config((16,), 4, 1))
    builds = [precompile.Build(label, launch) for label in labels]
    monkeypatch.setattr(precompile, "compile_build", compile_build)
    monkeypatch.setattr(precompile, "builds", lambda architecture, operators: iter(builds))
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert precompile.main(["--arch", "90", "--operators", "linear"]) == 1
    printed = capsys.readouterr().out
    assert "no such layout" in printed
    assert "spills 16 bytes" in printed
    summary = "3 builds, 2 bad, at most 40 registers, 96 B shared"
    assert f"sm_90 linear: {summary}" in printed
    assert f"\n{summary}; " in printed
    assert precompile.main(["--arch", "90", "--operators", "linear", "--quick"]) == 0
    assert [b.label for b in first_of_each_kernel(iter(builds))] == ["good"]


def test_nothing_is_compiled_in_the_interpreter(monkeypatch, capsys):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert precompile.main([]) == 2
    assert "nothing compiled" in capsys.readouterr().out


def test_the_first_row_that_suffices_is_chosen(monkeypatch):
    rows = {
        ("kernel", 16, (64, 32)): configs.Config((64,), 4, 2),
        ("kernel", 16, (128, 64)): configs.Config((32,), 4, 2),
        ("kernel", 32, (128, 64)): configs.Config((16,), 8, 1),
    }
    monkeypatch.setattr(configs, "TABLES", {90: rows})

    def blocks(dtype, *sizes):
        return configs.choose(90, "kernel", dtype, sizes).blocks

    assert blocks(torch.bfloat16, 64, 32) == (64,)
    assert blocks(torch.float16, 32, 64) == (32,)
    assert blocks(torch.float32, 16, 16) == (16,)
    with pytest.raises(ValueError, match=r"kernel has no configuration for torch.float16 .*256"):
        blocks(torch.float16, 64, 256)
