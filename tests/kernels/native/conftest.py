"""The compiled operators; nothing here runs without them."""

from __future__ import annotations

import pytest

from growtas.kernels import native_library


@pytest.fixture(autouse=True)
def _native_library():
    available, reason = native_library.status()
    if not available:
        pytest.skip(reason)
