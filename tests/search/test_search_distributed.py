from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import growtas
from growtas.search import SearchResult

WORKER = Path(__file__).with_name("distributed_worker.py")


def start(folder: Path, world_size: int) -> list[subprocess.Popen[str]]:
    folder.mkdir()
    root = str(Path(growtas.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": root}
    return [
        subprocess.Popen(
            [sys.executable, str(WORKER), str(rank), str(world_size), str(folder)],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world_size)
    ]


def test_two_ranks_decide_alike_and_count_every_image_once(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    processes = [*start(one, 1), *start(two, 2)]
    for process in processes:
        _, errors = process.communicate(timeout=240)
        assert process.returncode == 0, errors
    alone = SearchResult.load(one / "rank0.json")
    both = [SearchResult.load(two / f"rank{rank}.json") for rank in range(2)]
    assert both[0].to_json() == both[1].to_json()
    assert (two / "rank0.count").read_text().startswith("16 31 ")
    assert (two / "rank1.count").read_text().startswith("15 31 ")
    assert len({path.read_text().split()[2] for path in two.glob("*.count")}) == 1
    assert [c.subnet for c in both[0].candidates] == [c.subnet for c in alone.candidates]
    for ours, theirs in zip(both[0].candidates, alone.candidates, strict=True):
        assert ours.score.count == theirs.score.count == 31
        assert ours.score.accuracy == theirs.score.accuracy
        assert ours.score.loss == pytest.approx(theirs.score.loss, rel=1e-6)
    assert SearchResult.load(two / "search.json") == both[0]
