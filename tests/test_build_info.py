"""A clone that hides an installed growtas with the compiled core says so, and only then."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import growtas
from growtas.base import build_info

PACKAGE = Path(growtas.__file__).parent


def install(site: Path, *, built: bool = True, editable: Path | None = None) -> None:
    """As pip leaves it in `site`, or for an editable install in the clone."""
    info = site / "growtas-9.9.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: growtas\nVersion: 9.9\n")
    if editable is not None:
        origin = {"url": editable.as_uri(), "dir_info": {"editable": True}}
        (info / "direct_url.json").write_text(json.dumps(origin))
    package = (editable or site) / "growtas"
    package.mkdir(parents=True)
    (package / "_build.json").write_text(json.dumps({"built": built}))


@pytest.fixture
def clone(tmp_path):
    """What is imported of a clone that was never built."""
    package = tmp_path / "clone" / "growtas"
    (package / "base").mkdir(parents=True)
    base = ("base/__init__.py", "base/optional.py", "base/build_info.py")
    for name in ("__init__.py", "version.py", *base):
        shutil.copy(PACKAGE / name, package / name)
    return package.parent


def said_on_import(clone: Path, site: Path, **environment: str) -> str:
    # Without the site packages, where growtas may be installed.
    command = [sys.executable, "-S", "-c", "import growtas; print(growtas.__file__)"]
    inherited = {name: text for name, text in os.environ.items() if name != "GROWTAS_BUILD"}
    done = subprocess.run(
        command,
        cwd=clone,
        env={**inherited, "PYTHONPATH": str(site), **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    assert str(clone) in done.stdout
    return done.stderr


@pytest.mark.parametrize("kind", ["plain", "editable"])
def test_one_line_names_both_places(clone, tmp_path, kind):
    site, other = tmp_path / "site", tmp_path / "other clone"
    install(site, editable=other if kind == "editable" else None)
    said, *source = said_on_import(clone, site).splitlines()
    assert len(source) <= 1  # the line that imports, which Python shows from 3.13 on
    assert f"imported from {clone / 'growtas'}," in said
    assert f"installed in {(other if kind == 'editable' else site) / 'growtas'}," in said


def test_silent_where_it_was_wanted(clone, tmp_path):
    install(tmp_path / "site")
    assert said_on_import(clone, tmp_path / "site", GROWTAS_BUILD="0") == ""


def test_silent_where_nothing_is_hidden(clone, tmp_path):
    install(tmp_path / "site", built=False)  # no faster than the clone
    assert said_on_import(clone, tmp_path / "site") == ""
    assert said_on_import(clone, tmp_path / "empty") == ""


def test_silent_and_unasked_where_it_was_built(clone, tmp_path):
    install(tmp_path / "site")
    (clone / "growtas" / "_build.json").write_text(json.dumps({"built": False}))
    (clone / "growtas" / "base" / "build_info.py").unlink()
    assert said_on_import(clone, tmp_path / "site") == ""


def test_info_says_it_too(tmp_path, monkeypatch):
    install(tmp_path / "site")
    monkeypatch.setattr(build_info, "_HERE", tmp_path / "clone")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    facts = build_info.build_info.__wrapped__()
    assert not facts["built"]
    assert str(tmp_path / "site" / "growtas") in facts["reason"]
