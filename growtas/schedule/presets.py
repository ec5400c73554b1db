"""Strategies by name: the settings of the GrowTAS paper, and strategies from recipe values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from growtas.checks import listed
from growtas.config import ConfigError, build, nearest
from growtas.schedule.growtas import GrowTAS, PlusPhase, Stage
from growtas.schedule.plan import Strategy
from growtas.schedule.uniform import Uniform
from growtas.space import SearchSpace

Variant = Literal["code", "paper"]


@dataclass(frozen=True)
class _PaperNumbers:
    transition: float  # T_1 as a fraction of the epochs
    plus_epochs: int
    plus_lr: float  # at a batch of 512 images, like the run's lr
    plus_min_lr: float


# Section 4.1.2: T_1 = 250, 225, 200 of 500 epochs; fine-tuning from 5e-5, 5e-5, 2e-7 with the
# paper's batch of 8 x 128 images, hence half of that at 512.
_PAPER = {
    "autoformer-tiny": _PaperNumbers(0.5, 20, 2.5e-5, 1e-5),
    "autoformer-small": _PaperNumbers(0.45, 20, 2.5e-5, 1e-5),
    "autoformer-base": _PaperNumbers(0.4, 10, 1e-7, 1e-7),
}


def growtas_preset(name: str, *, variant: Variant = "code", plus: bool = False) -> GrowTAS:
    """GrowTAS with the settings of the paper for one of the AutoFormer spaces.

    Two sub-spaces A_1 are on record, as the paper's text and its authors' code differ:

    - "code": stage 1 samples the two smaller embedding dims with everything else free; the plus
      phase freezes what the smallest embedding dim reads and samples the other two.
    - "paper": one A_1 for both, the smallest embedding dim with the smallest MLP ratio, the two
      axes of the paper's footnote 1.

    Args:
        name: "autoformer-tiny", "autoformer-small" or "autoformer-base".
        variant: which A_1.
        plus: whether to add the GrowTAS+ phase.

    Raises:
        ValueError: the name or the variant is unknown.
    """
    if name not in _PAPER:
        raise ValueError(
            f"no GrowTAS preset for space {name!r}{nearest(name, _PAPER)}; "
            f"known: {listed(_PAPER)}. Other spaces need stages and, for plus, its values"
        )
    space, numbers = SearchSpace.preset(name), _PAPER[name]
    first: dict[str, tuple[float, ...]]
    frozen: dict[str, tuple[float, ...]]
    if variant == "code":
        first, frozen = {"embed_dim": space.embed_dim[:-1]}, {"embed_dim": space.embed_dim[:1]}
    elif variant == "paper":
        first = frozen = {"embed_dim": space.embed_dim[:1], "mlp_ratio": space.mlp_ratio[:1]}
    else:
        raise ValueError(f"variant is {variant!r}; known: code, paper")
    fine_tuning = PlusPhase(
        numbers.plus_epochs, numbers.plus_lr, numbers.plus_min_lr, freeze=frozen
    )
    return GrowTAS(
        [Stage(0.0, first), Stage(numbers.transition)], plus=fine_tuning if plus else None
    )


@dataclass(frozen=True)
class UniformConfig:
    """Recipe values of `Uniform`."""

    def build(self, space: SearchSpace) -> Uniform:
        """The strategy."""
        return Uniform()


@dataclass(frozen=True)
class GrowTASConfig:
    """Recipe values of `GrowTAS`; what is not given comes from `growtas_preset`."""

    preset: str | None = None  # space whose paper settings to use; default: the run's own space
    variant: Variant = "code"  # which A_1 the preset uses
    stages: tuple[Stage, ...] = ()  # start and restrict of each; none: the preset's
    plus: bool | PlusPhase = (
        False  # true: the preset's GrowTAS+ phase; or epochs, lr, min_lr, freeze
    )

    def build(self, space: SearchSpace) -> GrowTAS:
        """The strategy for `space`."""
        if self.stages and self.plus is not True:
            return GrowTAS(self.stages, plus=self.plus or None)
        preset = growtas_preset(self.preset or space.name, variant=self.variant, plus=True)
        plus = preset.plus if self.plus is True else self.plus or None
        return GrowTAS(self.stages or preset.stages, plus=plus)


_CONFIGS: dict[str, type[UniformConfig] | type[GrowTASConfig]] = {
    "uniform": UniformConfig,
    "growtas": GrowTASConfig,
}


def build_strategy(config: Mapping[str, Any], space: SearchSpace) -> Strategy:
    """A strategy from recipe values.

    Args:
        config: `name`, "uniform" or "growtas", and the fields of `GrowTASConfig`; for example
            ``{"name": "growtas", "variant": "paper", "plus": True}`` or ``{"name": "growtas",
            "stages": [{"start": 0, "restrict": {"embed_dim": [192]}}, {"start": 0.5}]}``.
        space: the space of the run; it names the preset if the config does not.

    Raises:
        ConfigError: (a ValueError) an unknown name or field, with the nearest known one, or a value
            that is not allowed.
    """
    if not isinstance(config, Mapping) or "name" not in config:
        raise ConfigError(f"a strategy needs a name ({listed(_CONFIGS)}), got {config!r}")
    name = config["name"]
    if name not in _CONFIGS:
        raise ConfigError(
            f"unknown strategy {name!r}{nearest(str(name), _CONFIGS)}; known: {listed(_CONFIGS)}"
        )
    values = {key: value for key, value in config.items() if key != "name"}
    try:
        return build(_CONFIGS[name], values).build(space)
    except ValueError as error:
        raise ConfigError(str(error)) from None
