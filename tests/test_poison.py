from __future__ import annotations

import torch
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
