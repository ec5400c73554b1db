"""The GrowTAS paper's figures (arXiv 2512.12296), for any supernet and data set.

Each is a function that returns plain rows, one that draws them, and a command that leaves a CSV
and a PNG: ``growtas analyze extend-vs-crop | similarity | limits | distribution``. See
docs/analysis.md.
"""

from __future__ import annotations

from growtas.base.optional import lazy_names

_NAMES = {
    "distribution": ("DistributionRow", "score_window"),
    "extend_vs_crop": ("ExtendCropRow", "extended", "score_derived", "train_alone"),
    "limits": ("LimitRow", "best_of_random", "score_choices", "search_winners"),
    "sampling": ("derived_subnets", "random_subnets"),
    "similarity": ("Comparison", "SimilarityRow", "compare_tokens"),
    "subject": ("Subject",),
}
_HOME = {name: f"{__name__}.{module}" for module, names in _NAMES.items() for name in names}
__all__ = sorted(_HOME)

# Only on first use: the command line lists its options without torch.
__getattr__ = lazy_names(__name__, _HOME)
