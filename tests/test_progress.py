"""What long work shows: a bar on a terminal, lines elsewhere."""

from __future__ import annotations

import sys

import pytest

from growtas.base import progress
from growtas.base.progress import Progress


def show(progress: Progress, times: int = 1) -> None:
    for _ in range(times):
        progress.step()
        progress.show("epoch 1/2, stage 1", "loss 1.234")
    progress.tell("stage 2 begins")
    progress.close()


def build(total: int, done: int, say=None, shown: bool = True) -> Progress:
    return Progress(total, done, unit="step", show=shown, say=say)


def test_what_is_told_is_said_and_nothing_is_shown_unless_asked(capsys):
    said: list[str] = []
    show(build(4, 2, said.append, shown=False))
    assert said == ["stage 2 begins"]
    show(build(4, 2, shown=False))
    assert capsys.readouterr() == ("", "")


def test_on_a_terminal_lines_stand_above_a_bar(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    said: list[str] = []
    show(build(4, 2, said.append))
    out, err = capsys.readouterr()
    assert said == []
    assert out == "stage 2 begins\n"
    assert "epoch 1/2, stage 1:  75%" in err
    assert "3/4" in err
    assert "loss 1.234" in err


def test_elsewhere_there_are_lines(capsys):
    said: list[str] = []
    show(build(4, 2, said.append))
    assert said == ["stage 2 begins"]
    assert capsys.readouterr() == ("", "3/4 steps, epoch 1/2, stage 1: loss 1.234\n")


@pytest.mark.parametrize(("seconds", "lines"), [(10, [1, 4, 6]), (30, [1, 2, 3, 4, 5, 6])])
def test_lines_are_half_a_minute_apart_but_for_the_last(capsys, monkeypatch, seconds, lines):
    clock = iter(range(0, 600, seconds))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    show(build(6, 0), times=6)
    shown = capsys.readouterr().err.splitlines()
    assert [int(line.partition("/")[0]) for line in shown] == lines
