"""What a recipe says about the supernet: its search space, and everything else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from growtas.base.checks import at_least, positive_float
from growtas.base.config import ConfigError
from growtas.space import SearchSpace


@dataclass(frozen=True)
class ModelConfig:
    """What the supernet is apart from its search space; AutoFormer's model by default."""

    patch_size: int = 16  # pixels per patch side
    # What the classifier reads: the mean of the patch tokens, or the class token.
    pool: Literal["mean", "cls"] = "mean"
    class_token: bool = True  # it takes part in attention even if the classifier reads the mean
    absolute_position: bool = True  # learned position embedding, added once to the patches
    # Learned 2-D relative positions on keys and values, in every block.
    relative_position: bool = True
    max_relative_position: int = 14  # longer distances count as this one, in patches
    drop_path: float = 0.0  # stochastic depth rate of the last block; linear in depth from 0
    qkv_bias: Literal["blocks", "autoformer"] = "blocks"  # "autoformer": for its checkpoints
    layer_norm_eps: float = 1e-5
    init_std: float = 0.02  # of the initial weights; narrow models need more, see Supernet

    def __post_init__(self) -> None:
        for name, least in (("patch_size", 1), ("max_relative_position", 0)):
            at_least(name, getattr(self, name), least)
        if not 0.0 <= self.drop_path < 1.0:
            raise ValueError(f"drop_path must be in [0, 1), got {self.drop_path}")
        if not 0.0 < self.init_std <= 1.0:
            raise ValueError(f"init_std must be in (0, 1], got {self.init_std}")
        positive_float("layer_norm_eps", self.layer_norm_eps)
        if self.pool == "cls" and not self.class_token:
            raise ValueError("pool: cls needs class_token: true")


def read_space(space: str | Mapping[str, Any]) -> SearchSpace:
    """The search space of a preset's name or of a recipe's choices.

    Raises:
        ConfigError: neither of these.
    """
    try:
        return SearchSpace.preset(space) if isinstance(space, str) else SearchSpace.from_dict(space)
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigError(f"space: {message(error)}") from None


def message(error: Exception) -> str:
    """What an error says, without the quotes that a KeyError puts around it."""
    return str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
