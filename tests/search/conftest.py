"""The spaces that the tests search."""

from __future__ import annotations

import pytest

from growtas import SearchSpace


@pytest.fixture
def digits() -> SearchSpace:
    return SearchSpace.preset("digits")


@pytest.fixture
def tiny() -> SearchSpace:
    return SearchSpace.preset("autoformer-tiny")


@pytest.fixture
def small_space() -> SearchSpace:
    """2 * (4 + 16) = 40 subnets."""
    return SearchSpace(
        embed_dim=(32, 48), depth=(1, 2), num_heads=(2, 3), mlp_ratio=(2.0, 4.0), head_dim=16
    )
