"""What makes a run the same run: the settings that its numbers depend on, compared on resume."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Fields that say how a run is carried out, not what comes out of it: they may change on resume.
_FREE = {
    "train": (
        "eval_every",
        "checkpoint_every",
        "log_every",
        "device",
        "threads",
        "tensorboard",
        "progress",
    ),
    "data": ("root", "download", "eval_batch_size", "workers", "skip_unreadable"),
}


def lasting(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by section, as plain values, without the fields that may change on resume."""
    return {
        section: {name: value for name, value in values.items() if name not in _FREE[section]}
        if section in _FREE
        else values
        for section, values in settings.items()
    }
