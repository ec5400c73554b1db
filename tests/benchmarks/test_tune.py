"""The tuning script's choices, with times made up: no GPU is needed to hold its logic."""

from __future__ import annotations

import contextlib

import pytest
import torch

from benchmarks import tune
from growtas.kernels.triton import configs
from growtas.kernels.triton.configs import Config

KEY = ("some_kernel", 16, (64,))
PRESENT = Config((32, 64), 4, 2)
SECONDS = {PRESENT: 3.0, Config((64, 64), 4, 2): 2.0, Config((32, 32), 4, 2): 1.0}


@pytest.fixture
def table(monkeypatch):
    """One row; a call computes with the row that is in the table at the time."""
    rows = {("other_kernel", 16, ()): PRESENT, KEY: PRESENT}
    monkeypatch.setattr(configs, "TABLES", {90: rows})

    def call():
        blocks = rows[KEY].blocks
        if blocks[0] == 16:
            raise RuntimeError("out of resources: shared memory")
        return {"": torch.ones(3) + (1.0 if blocks == (32, 32) else 1e-4 * blocks[0])}

    monkeypatch.setattr(tune, "workload_of", lambda key: tune.Workload("some work", call))
    monkeypatch.setattr(tune, "seconds", lambda call, rounds: [SECONDS.get(rows[KEY], 9.0)] * 3)
    monkeypatch.setattr(tune.kernels, "use_backend", lambda name: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    return rows


def test_the_fastest_right_candidate_is_printed_as_a_row(table, capsys):
    found = tune.tune(KEY, 90, limit=1000, rounds=3)
    assert found[0] == (2.0, Config((64, 64), 4, 2))  # (32, 32) is faster, and wrong
    assert (3.0, PRESENT) in found
    printed = capsys.readouterr().out
    assert "WRONG" in printed
    assert "RuntimeError" in printed
    line = next(line for line in printed.splitlines() if not line.startswith("#"))
    assert eval("{" + line + "}", {"Config": Config}) == {KEY: Config((64, 64), 4, 2)}
    assert table[KEY] == PRESENT
    assert list(table) == [("other_kernel", 16, ()), KEY]


def test_a_present_row_that_does_not_run_is_reported(table, monkeypatch, capsys):
    table[KEY] = Config((16, 16), 4, 2)
    assert tune.tune(KEY, 90, limit=5, rounds=3) == []
    assert "the present row does not run" in capsys.readouterr().out


def test_candidates_begin_with_the_present_and_do_not_repeat():
    found = list(tune.candidates(PRESENT, 1000))
    assert found[0] == PRESENT
    assert len(set(found)) == len(found)
    assert all(min(config.blocks) >= 16 for config in found)
    assert list(tune.candidates(PRESENT, 7)) == found[:7]
    assert all(min(config.blocks) >= 2 for config in tune.candidates(Config((4,), 4, 1), 1000))


def test_every_kernel_that_takes_time_has_a_workload(monkeypatch):
    for name in ("attention", "layer_norm", "linear", "adamw"):
        monkeypatch.setattr(tune, name, lambda *arguments, name=name: name)
    for architecture in configs.TABLES:
        for key in configs.TABLES[architecture]:
            found = tune.workload_of(key)
            assert found is None or key[0].startswith(found)
            assert found is not None or "fold" in key[0]


@pytest.mark.skipif(torch.cuda.is_available(), reason="it would run")
def test_it_refuses_to_run_without_a_gpu(capsys):
    with pytest.raises(SystemExit) as stopped:
        tune.main([])
    assert stopped.value.code == 2
    assert "there is no CUDA device" in capsys.readouterr().err
