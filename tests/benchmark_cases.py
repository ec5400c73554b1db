"""A supernet so small that every way of running it takes milliseconds."""

from __future__ import annotations

from benchmarks.cases import Case
from benchmarks.runner import Effort
from growtas.space import SearchSpace, SupernetSize

SPACE = SearchSpace(
    embed_dim=(32, 40),
    depth=(1, 2),
    num_heads=(1, 2),
    mlp_ratio=(2.0, 3.0),
    head_dim=32,
    supernet=SupernetSize(64, 2, 4.0, 2),
)
CASE = Case(SPACE, "smallest", 2, "float32", "train", image_size=24, patch_size=8, num_classes=5)
SHORT = Effort(min_rounds=2, max_rounds=2, seconds=0)
