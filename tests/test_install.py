"""What installing growtas leaves behind; asked where it is installed, as `make test` does."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

try:
    INSTALLED: metadata.Distribution | None = metadata.distribution("growtas")
except metadata.PackageNotFoundError:
    INSTALLED = None

pytestmark = pytest.mark.skipif(INSTALLED is None, reason="growtas is not installed")


def test_a_folder_of_that_name_does_not_hide_the_package(tmp_path):
    """The folder above a clone holds a folder called growtas, which is no package."""
    (tmp_path / "growtas" / "growtas").mkdir(parents=True)
    code = "import importlib.util as u; print(u.find_spec('growtas').origin)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip().endswith("__init__.py")


def test_the_licence_is_told_whatever_setuptools_built_it():
    assert INSTALLED is not None
    assert INSTALLED.metadata["License"] == "Apache-2.0"
