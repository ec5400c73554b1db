"""The runs of a study: nothing is repeated, and a failure keeps the others."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks.studies import jobs


def test_runs_are_carried_out_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = []

    def run(arguments: list[str], *, env: dict[str, str], check: bool) -> SimpleNamespace:
        name, folder = arguments[arguments.index("--job") + 1], Path(arguments[-1])
        begun.append(name)
        assert env["OMP_NUM_THREADS"] == "1"
        if name != "broken":
            jobs.store(folder, name, {"name": name})
        return SimpleNamespace(returncode=int(name == "broken"))

    monkeypatch.setattr(jobs, "subprocess", SimpleNamespace(run=run))
    names = ["a-0", "broken", "a-1"]
    options = jobs.command_line("some", None).parse_args(["--folder", str(tmp_path)])
    reports = []
    for _ in range(2):
        with pytest.raises(SystemExit, match="these runs failed; the others are kept: broken"):
            jobs.run("module", options, names, lambda: reports.append(1))
    assert sorted(begun) == ["a-0", "a-1", "broken", "broken"]
    assert len(reports) == 2
    documents = jobs.finished(tmp_path, names)
    assert [document["name"] for document in documents] == ["a-0", "a-1"]
    assert documents[0]["provenance"]["torch"]
    assert json.loads(jobs.result(tmp_path, "a-0").read_text()) == documents[0]


def test_a_report_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "subprocess", None)
    options = jobs.command_line("some", None).parse_args(["--folder", str(tmp_path), "--report"])
    reports = []
    jobs.run("module", options, ["a"], lambda: reports.append(1))
    assert reports == [1]
