"""What a training shows: lines, or a bar with lines above it."""

from __future__ import annotations

from growtas.training.progress import Progress


def show(progress: Progress) -> None:
    progress.step()
    progress.show("epoch 1/2, stage 1", 1.2345, 0.5, 99.9)
    progress.tell("stage 2 begins")
    progress.close()


def test_without_a_bar_lines_are_said(capsys):
    said: list[str] = []
    show(Progress(4, 2, bar=False, say=said.append))
    assert said == ["stage 2 begins"]
    show(Progress(4, 2, bar=False, say=None))
    assert capsys.readouterr() == ("", "")


def test_with_a_bar_lines_stand_above_it(capsys):
    said: list[str] = []
    show(Progress(4, 2, bar=True, say=said.append))
    out, err = capsys.readouterr()
    assert said == []
    assert out == "stage 2 begins\n"
    assert "epoch 1/2, stage 1:  75%" in err
    assert "3/4" in err
    assert "loss 1.234, accuracy 0.500, 100 images/s" in err
