"""The first steps on a machine with a GPU, run on the CPU: toolchain, smoke, seconds per kernel."""

from __future__ import annotations

import pytest
import torch

from benchmarks import gpu_kernels, gpu_smoke, gpu_toolchain, processes, report, rows

TINY = ["--device", "cpu", "--batch", "2", "--image-size", "32"]


def stored(folder) -> list[rows.Row]:
    (path,) = folder.glob("*.csv")
    return rows.read(path)


def test_smoke(tmp_path, capsys):
    assert gpu_smoke.main([*TINY, "--space", "digits", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "reason: the model is on cpu" in printed
    assert "update_reason: None" in printed
    found = {(row.variant, row.metric): row.median for row in stored(tmp_path)}
    for number in range(1, gpu_smoke.STEPS + 1):
        error = found[f"growtas-reference-graph, step {number}", "logit_error"]
        assert 0 < error < gpu_smoke.ALLOWED / 2  # bfloat16 against float32, with room
    assert ("growtas-reference-dense", "gradient_error") in found
    assert found["growtas-reference-graph", "graphed"] == 0
    assert "growtas-reference-graph, step 6 | logit_error" in report.checks(stored(tmp_path))


def test_smoke_names_a_wrong_step_and_takes_the_others(tmp_path, monkeypatch, capsys):
    errors = iter([1e-3, 0.5, float("nan"), 1e-3, 1e-3, 1e-3])
    monkeypatch.setattr(gpu_smoke, "relative_error", lambda *tensors: next(errors))
    monkeypatch.setitem(gpu_smoke.CHECKS, "eager", lambda *arguments: 1 / 0)
    assert gpu_smoke.main([*TINY, "--space", "digits", "--out", str(tmp_path)]) == 1
    failed = [row for row in stored(tmp_path) if row.metric in ("failed", "wrong_result")]
    assert [(row.variant, row.unit) for row in failed] == [
        ("growtas-reference, eager", "ZeroDivisionError"), ("growtas-reference, graphed", "1"),
    ]  # fmt: skip
    assert "step 2: logit_error 0.5 exceeds" in capsys.readouterr().out
    steps = [row for row in stored(tmp_path) if row.metric == "logit_error"]
    assert len(steps) == gpu_smoke.STEPS


def test_smoke_apart(monkeypatch):
    """Both checks at once, each as it was asked for; one that fails is enough."""
    asked = []
    answers = iter([True, False])

    def side_by_side(commands, *more):
        asked[:] = commands
        return next(answers)

    monkeypatch.setattr(gpu_smoke, "side_by_side", side_by_side)
    for status in (0, 1):
        assert gpu_smoke.main([*TINY, "--apart", "--space", "digits"]) == status
        args = [gpu_smoke.command_line().parse_args(command[5:]) for command in asked]
        assert [(a.apart, a.checks, a.batch) for a in args] == [
            (False, ["eager"], 2), (False, ["graphed"], 2),
        ]  # fmt: skip


def test_commands_side_by_side(tmp_path):
    """Each waits for the other; both say their lines, and a failure of either counts."""
    said = []
    scripts = [
        f"touch {tmp_path}/{mine}; until test -e {tmp_path}/{other}; do :; done; echo {mine}"
        for mine, other in ("ab", "ba")
    ]

    def run(*scripts):
        commands = (("/bin/sh", "-c", script) for script in scripts)
        return processes.side_by_side(commands, said.append, tmp_path, {})

    assert run(*scripts)
    assert sorted(said) == ["a", "b"]
    assert not run("exit 1", "true")


def test_seconds_per_kernel(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_kernels, "TIMED", 2)
    cases = ["--cases", "digits/smallest", "digits/absent/name"]
    with pytest.raises(ValueError):
        gpu_kernels.main([*TINY, *cases[:1], cases[2]])
    assert gpu_kernels.main([*TINY, *cases[:2], "--out", str(tmp_path)]) == 0
    found = stored(tmp_path)
    assert [row.variant for row in found if row.metric == "wall_time"] == [
        "growtas-reference-dense"
    ]
    times = {row.variant: row for row in found if row.metric == "kernel_time"}
    launches = {row.variant: row.median for row in found if row.metric == "launches"}
    assert launches.keys() == times.keys()
    assert "aten::addmm" in times
    assert launches["aten::addmm"] >= 4
    everything = times.pop(gpu_kernels.ALL)
    assert everything.n == gpu_kernels.REPLAYS
    assert 0 < max(row.median for row in times.values()) < everything.q80
    lines = report.kernel_times(found).splitlines()
    assert len(lines) == 2 + report.LISTED_KERNELS
    assert f"| {gpu_kernels.ALL} |" in lines[2]


def test_a_kernel_is_called_by_a_short_name():
    assert gpu_kernels.name_of("void at::native::copy<float>()") == "at::native::copy<float>()"
    assert len(gpu_kernels.name_of("x" * 500)) == 120


def test_toolchain_finds_what_triton_would_miss(monkeypatch, capsys):
    monkeypatch.setenv("CC", "/bin/false")
    assert "/bin/false cannot compile a program that includes Python.h" in str(
        gpu_toolchain.cannot_compile()
    )
    monkeypatch.delenv("CC")
    monkeypatch.setattr(gpu_toolchain.shutil, "which", lambda tool: None)
    assert "neither $CC nor gcc nor clang" in str(gpu_toolchain.cannot_compile())
    monkeypatch.setattr(gpu_toolchain, "version", lambda package: None)
    assert gpu_toolchain.main() == 1
    printed = capsys.readouterr().out
    for what in ("there is no C compiler", "torch is not installed", "triton is not installed"):
        assert f"missing: {what}" in printed


@pytest.mark.skipif(torch.cuda.is_available(), reason="it would pass")
def test_toolchain_says_that_there_is_no_device(monkeypatch, capsys):
    monkeypatch.setattr(gpu_toolchain, "cannot_compile", lambda: None)
    assert gpu_toolchain.main() == gpu_toolchain.NO_DEVICE
    assert "there is no CUDA device" in capsys.readouterr().out
