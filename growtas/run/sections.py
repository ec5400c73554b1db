"""The recipe's sections on the model and on the output, and how its space is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

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
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if not 0.0 <= self.drop_path < 1.0:
            raise ValueError(f"drop_path must be in [0, 1), got {self.drop_path}")
        if not 0.0 < self.init_std <= 1.0:
            raise ValueError(f"init_std must be in (0, 1], got {self.init_std}")
        if not self.layer_norm_eps > 0.0:
            raise ValueError(f"layer_norm_eps must be positive, got {self.layer_norm_eps}")
        if self.pool == "cls" and not self.class_token:
            raise ValueError("pool: cls needs class_token: true")


@dataclass(frozen=True)
class OutputConfig:
    """Where the run leaves its files and what it draws."""

    dir: str | None = None  # folder of the run; default runs/<name of the recipe>
    random_subnets: int = 100  # random subnets that front.png shows beside the search's, 0 for none

    def __post_init__(self) -> None:
        if self.dir == "":
            raise ValueError("dir must be the name of a folder, or null for runs/<recipe>, got ''")
        if self.random_subnets < 0:
            raise ValueError(f"random_subnets must be at least 0, got {self.random_subnets}")


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
    """What an error says; str() puts the words of a KeyError in quotes."""
    return str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
