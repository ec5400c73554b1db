"""What other tests rely on."""

from __future__ import annotations

import pytest
import torch
from interpreter import problem
from poison import poison_uninitialised_memory


def test_unwritten_memory_is_nan_and_stays_a_leaf(monkeypatch):
    """Also where torch makes a leaf that requires grad, as its checkpoints do."""
    poison_uninitialised_memory(monkeypatch)
    leaf = torch.empty(3, requires_grad=True)
    assert leaf.isnan().all()
    assert leaf.is_leaf
    assert leaf.requires_grad
    assert torch.empty_like(leaf).isnan().all()
    assert leaf.new_empty(2).isnan().all()
    assert torch.empty(3, dtype=torch.int32).shape == (3,)


@pytest.mark.parametrize(
    ("triton", "numpy", "works"),
    [("3.6.0", "2.3.5", True), ("3.6.0", "2.4.0", False), ("3.7.0", "2.4.0", True),
     ("3.10.1+git1", "2.10.0", True)],
)  # fmt: skip
def test_versions_of_the_interpreter_and_numpy(triton, numpy, works):
    found = problem(triton, numpy)
    if works:
        assert found is None
    else:
        assert f"Triton {triton}" in found
        assert f"numpy {numpy}" in found
