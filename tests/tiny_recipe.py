"""The smallest recipe that goes through the whole chain, in seconds on one core."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from growtas.base.config import dump_yaml
from growtas.run.recipe import Recipe


def values(folder: Path) -> dict[str, Any]:
    """Plain values of the recipe; the run goes to `folder`."""
    return {
        "space": {
            "embed_dim": [8, 16],
            "depth": [1, 2],
            "num_heads": [1, 2],
            "mlp_ratio": [1, 2],
            "head_dim": 8,
        },
        "model": {"patch_size": 4, "class_token": False, "max_relative_position": 2},
        "data": {"dataset": "digits", "batch_size": 256, "workers": 0, "search_fraction": 0.2},
        "augment": {"auto_augment": None, "mixup": 0, "cutmix": 0, "repeated_aug": 1, "reprob": 0},
        "optim": {"lr": 5e-3, "lr_base_batch": 0, "warmup_epochs": 0},
        "train": {"epochs": 2, "progress": False, "device": "cpu"},
        "strategy": {
            "name": "growtas",
            "stages": [{"start": 0, "restrict": {"embed_dim": [8]}}, {"start": 1}],
            "plus": {"epochs": 1, "lr": 1e-3, "min_lr": 1e-3, "freeze": {"embed_dim": [8]}},
        },
        "search": {
            "population": 4,
            "generations": 2,
            "parents": 2,
            "limits": [{"name": "small", "max_params": 2500}, {"name": "any"}],
        },
        "output": {"dir": str(folder), "random_subnets": 5},
    }


def write(folder: Path) -> Path:
    """The recipe as a file beside `folder`."""
    path = folder.with_suffix(".yaml")
    path.write_text(dump_yaml(values(folder)))
    return path


def load(folder: Path, *overrides: str) -> Recipe:
    """The recipe itself."""
    return Recipe.from_dict(values(folder), overrides)
