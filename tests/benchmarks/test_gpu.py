"""The one command for a machine with a GPU: what can be checked of it on a machine without."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from benchmarks import gpu, gpu_tests, roofline, run
from benchmarks.gpu import Step
from benchmarks.variants import VARIANTS
from growtas.kernels.dispatch import OPERATORS

NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="it would run")


@pytest.mark.parametrize("quick", [False, True])
def test_every_measurement_is_a_command_that_is_understood(tmp_path, quick):
    found = gpu.steps(tmp_path, quick=quick, sanitizer="compute-sanitizer")
    assert [step.name for step in found[:3]][:2] == ["tests", "memory check"]
    assert len({step.name for step in found}) == len(found)
    parts, variants = set(), set()
    for step in found:
        if "benchmarks.run" in step.command:
            given = step.command[step.command.index("benchmarks.run") + 1 :]
            args = run.command_line().parse_args(given)
            assert args.device == "cuda"
            assert args.out == tmp_path
            parts.update(args.parts)
            variants.update(args.variants or ())
    if not quick:
        assert parts == {"train", "forward", "switching", "memory", "operators"}
        baselines = {name for name in VARIANTS if not name.startswith("growtas")} - {"naive"}
        assert variants >= baselines
    assert "memory check" not in {
        step.name for step in gpu.steps(tmp_path, quick=quick, sanitizer=None)
    }


def test_the_memory_check_has_tests_of_every_operator():
    found = gpu_tests.collect([*gpu.TESTS, "-k", gpu.MEMORY_CHECKED])
    for operator in OPERATORS:
        assert any(f"gpu/test_{operator}.py" in test for test in found)
    assert len(found) < 40  # it is slow


def test_a_failure_and_a_slow_step_do_not_stop_the_others(capfd, monkeypatch):
    monkeypatch.setattr(gpu, "LEAST", 0.5)

    def step(name, code, limit=20.0):
        return Step(name, (sys.executable, "-c", code), limit, (("WORD", "said"),))

    outcome = gpu.run(
        [
            step("failing", "raise SystemExit(3)"),
            step("slow", "import time; time.sleep(60)", 1.0),
            step("good", "import os; print(os.environ['WORD'])"),
        ],
        budget=60,
    )
    assert outcome == {
        "failing": "failed with status 3", "slow": "stopped after 1 s", "good": "done",
    }  # fmt: skip
    assert "said" in capfd.readouterr().out
    assert gpu.run([step("late", "pass")], budget=0.1) == {"late": "left out: no time"}


@NO_GPU
@pytest.mark.parametrize("command", [gpu.main, roofline.main])
def test_nothing_pretends_without_a_gpu(command, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["command"])
    with pytest.raises(SystemExit) as stopped:
        command()
    assert stopped.value.code == 2
    assert "there is no CUDA device" in capsys.readouterr().err


def test_the_folder_for_rows_can_be_named_by_the_environment(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("OUT", str(tmp_path))
    assert gpu.main(["--list"]) == 0
    assert f"--out {tmp_path}" in capsys.readouterr().out


def test_attention_work_by_hand():
    """One head of one image, three tokens of two features."""
    flops, moved = roofline.attention_work(1, 1, 3, 2)
    assert flops == 7 * 2 * 3 * 3 * 2  # seven products of 3 x 3 x 2 multiply-adds
    tensors = 4 + 8  # q, k, v, out; again with dout, and dq, dk, dv
    assert moved == tensors * 3 * 2 * 2


def test_tests_are_shared_out_and_failures_seen(tmp_path, monkeypatch, capfd):
    file = tmp_path / "test_some.py"
    file.write_text("def test_a(): pass\ndef test_b(): pass\ndef test_c(): assert not FLAG\n")
    monkeypatch.setattr(gpu_tests, "ROOT", tmp_path)
    found = gpu_tests.collect([str(file)])
    assert [Path(line).name.split("::")[1] for line in found] == ["test_a", "test_b", "test_c"]
    assert gpu_tests.run(found[:2], 2)
    assert not gpu_tests.run(found, 2)
    assert "FLAG" in capfd.readouterr().out
    with pytest.raises(RuntimeError, match="collects nothing"):
        gpu_tests.collect([str(tmp_path / "absent.py")])
