"""The GrowTAS paper's figures (arXiv 2512.12296), for any supernet and data set.

Each is a function that returns plain rows, one that draws them, and a command that leaves a CSV
and a PNG: ``growtas analyze extend-vs-crop | similarity | limits | distribution``. See
docs/analysis.md.
"""

from __future__ import annotations

import importlib
from typing import Any

_MODULES = {
    "Comparison": "similarity",
    "DistributionRow": "distribution",
    "ExtendCropRow": "extend_vs_crop",
    "LimitRow": "limits",
    "SimilarityRow": "similarity",
    "Subject": "subject",
    "best_of_random": "limits",
    "compare_tokens": "similarity",
    "derived_subnets": "sampling",
    "extended": "extend_vs_crop",
    "random_subnets": "sampling",
    "score_choices": "limits",
    "score_derived": "extend_vs_crop",
    "score_window": "distribution",
    "search_winners": "limits",
    "train_alone": "extend_vs_crop",
}
__all__ = sorted(_MODULES)


def __getattr__(name: str) -> Any:
    if name in _MODULES:  # only now: the command line lists its options without torch
        return getattr(importlib.import_module(f"growtas.analysis.{_MODULES[name]}"), name)
    raise AttributeError(f"module 'growtas.analysis' has no attribute {name!r}")
