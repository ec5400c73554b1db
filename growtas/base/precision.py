"""Mixed precision: which dtype a run computes in, and the context that makes it so."""

from __future__ import annotations

import torch

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "off": None}


def amp_dtype(amp: str, device: torch.device) -> torch.dtype | None:
    """The dtype of matrix products; None for float32.

    Args:
        amp: "bf16", "fp16", "off", or "auto": bf16 on a GPU that has it, fp16 on another GPU, off
            on a CPU.
        device: where the run computes.

    Raises:
        ValueError: another word, or bf16 on a GPU without it.
    """
    if amp == "auto":
        if device.type != "cuda":
            return None
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    if amp not in _DTYPES:
        raise ValueError(f"amp must be auto, bf16, fp16 or off, got {amp!r}")
    if amp == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise ValueError("amp is 'bf16', which this GPU lacks; allowed: 'auto', 'fp16', 'off'")
    return _DTYPES[amp]


def autocast(dtype: torch.dtype | None, device: torch.device) -> torch.autocast:
    """Autocast to `dtype` on `device`; does nothing for None."""
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)
