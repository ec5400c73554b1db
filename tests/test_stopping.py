"""SIGINT and SIGTERM: the step under way is saved, and the run goes on from it to the same bits."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import tiny_recipe
import torch

from growtas import load_supernet
from growtas.base import stopping
from growtas.cli import main
from growtas.training.checkpoint import load_checkpoint
from growtas.training.trainer import Trainer

pytest.importorskip("timm")
pytest.importorskip("sklearn")

# In the middle of the second of three epochs of four steps, where the first stage has ended.
STEP = 6
# Augmentation, mixing and erasing draw random numbers that a continued run has to repeat.
AUGMENT = [
    "augment.scale=[0.5,1.0]",
    "augment.mixup=0.8",
    "augment.reprob=0.5",
    "train.ema_decay=0.9",
]


@pytest.fixture(autouse=True)
def sigint_means_something():
    """A shell starts what runs in its background with SIGINT ignored, which growtas respects."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Folder of a training that nobody stopped; not to be changed."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert main(["train", str(tiny_recipe.write(folder)), *AUGMENT]) == 0
    return folder


def same_run(folder: Path, whole: Path) -> None:
    """The two runs have the same weights and the same figures."""
    ours, theirs = (load_supernet(f / "supernet.safetensors").state_dict() for f in (folder, whole))
    for name, value in theirs.items():
        assert torch.equal(ours[name], value), name
    timing = ("seconds", "images_per_second")
    rows = [
        [
            {name: value for name, value in row.items() if name not in timing}
            for row in csv.DictReader((f / "metrics.csv").open())
        ]
        for f in (folder, whole)
    ]
    assert rows[0] == rows[1]
    assert len(rows[0]) == 3


# The last step of an epoch has its evaluation ahead.
@pytest.mark.parametrize(("signum", "step"), [(signal.SIGINT, STEP), (signal.SIGTERM, 8)])
def test_a_signal_saves_the_step_and_the_run_goes_on(
    whole, tmp_path, monkeypatch, capsys, signum, step
):
    folder = tmp_path / "run"
    arguments = ["train", str(tiny_recipe.write(folder)), *AUGMENT]
    take = Trainer._train_step

    def take_and_signal(self, images, labels):
        result = take(self, images, labels)
        if self.step == step:
            os.kill(os.getpid(), signum)
        return result

    handlers = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_train_step", take_and_signal)
        assert main(arguments) == 128 + signum
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == handlers
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"stopped after step {step} of 12" in error
    assert load_checkpoint(folder / "checkpoint.pt")["step"] == step
    assert not (folder / "supernet.safetensors").exists()
    assert main([*arguments, "--resume"]) == 0
    same_run(folder, whole)


def test_a_real_process_with_workers_is_told_to_end(whole, tmp_path):
    """The signal goes to the whole process group, as torchrun and job managers send it."""
    folder = tmp_path / "run"
    arguments = ["train", str(tiny_recipe.write(folder)), *AUGMENT]
    program = f"""
import os, signal, sys
from growtas.cli import main
from growtas.training.trainer import Trainer
take = Trainer._train_step
def take_and_signal(self, images, labels):
    result = take(self, images, labels)
    if self.step == {STEP}:
        os.killpg(0, signal.SIGTERM)
    return result
Trainer._train_step = take_and_signal
sys.exit(main({[*arguments, "data.workers=2", "train.progress=true"]!r}))
"""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, start_new_session=True,
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 143, done.stderr
    assert "Traceback" not in done.stderr
    assert "\r" not in done.stderr  # lines, as this is no terminal
    assert "4/12 steps, epoch 1/3, stage 1/2: loss " in done.stderr
    assert f"stopped after step {STEP} of 12" in done.stderr
    assert load_checkpoint(folder / "checkpoint.pt")["step"] == STEP
    # Other workers, the same numbers: a batch's depend on nothing that was read before it.
    assert main([*arguments, "--resume"]) == 0
    same_run(folder, whole)


def test_outside_a_loop_a_signal_ends_the_command_at_once(monkeypatch, capsys):
    from growtas.run import pipeline

    monkeypatch.setattr(pipeline, "run", lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM))
    assert main(["run", "digits"]) == 143
    assert "--resume" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("signals", "survived"),
    [
        ([signal.SIGINT], 1),  # raised at the end
        ([signal.SIGTERM, signal.SIGTERM], 2),  # torchrun and a job's manager both send it
        ([signal.SIGTERM, signal.SIGINT, signal.SIGINT], 1),  # who asks twice does not wait
    ],
)
def test_a_loop_that_never_looks_is_stopped_after_all(signals, survived):
    passed: list[int] = []

    def loop():
        with stopping.postponed():
            for signum in signals:
                os.kill(os.getpid(), signum)
                passed.append(stopping.wanted())

    with stopping.handled(), pytest.raises(stopping.Stopped):
        loop()
    assert passed == [signals[0]] * survived


def test_only_the_command_and_only_the_main_thread_handle_signals():
    before = signal.getsignal(signal.SIGTERM)
    found = []

    def elsewhere():
        with stopping.handled():
            found.append((stopping.is_handled(), signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert found == [(False, before)]
    assert signal.getsignal(signal.SIGTERM) is before


def test_an_ignored_signal_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stopping.handled():
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
