"""Strategies by name: published settings of GrowTAS, and strategies from recipe values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from growtas.base.checks import listed
from growtas.base.config import ConfigError, build, nearest
from growtas.schedule.candidates import Candidates
from growtas.schedule.growtas import GrowTAS, PlusPhase, Stage
from growtas.schedule.plan import GrowthInit, Strategy
from growtas.schedule.sequence import SequenceName
from growtas.schedule.stratify import Stratify
from growtas.schedule.transition import Plateau
from growtas.schedule.uniform import Uniform
from growtas.space import SearchSpace
from growtas.space.cost import CostFunction
from growtas.supernet.vit.subnet_files import load_subnets, subnets_in

Variant = Literal["code", "paper", "committed"]


@dataclass(frozen=True)
class _Numbers:
    transition: float  # T_1 as a fraction of the epochs
    plus_epochs: int
    plus_lr: float  # at a batch of 512 images, like the run's lr
    plus_min_lr: float


# Section 4.1.2: T_1 = 250, 225, 200 of 500 epochs; fine-tuning from 5e-5, 5e-5, 2e-7 with the
# paper's batch of 8 x 128 images, hence half of that at 512.
_PAPER = {
    "autoformer-tiny": _Numbers(0.5, 20, 2.5e-5, 1e-5),
    "autoformer-small": _Numbers(0.45, 20, 2.5e-5, 1e-5),
    "autoformer-base": _Numbers(0.4, 10, 1e-7, 1e-7),
}
# The authors' files as committed: T_1 = 400, 400, 200, and 1e-5 in S. Their number of fine-tuning
# epochs varies (20 or 40), so the paper's stay.
_COMMITTED = {
    "autoformer-tiny": _Numbers(0.8, 20, 2.5e-5, 1e-5),
    "autoformer-small": _Numbers(0.8, 20, 1e-5, 1e-5),
    "autoformer-base": _Numbers(0.4, 10, 1e-7, 1e-7),
}


def growtas_preset(name: str, *, variant: Variant = "code", plus: bool = False) -> GrowTAS:
    """GrowTAS with published settings for one of the AutoFormer spaces.

    The paper's text and its authors' code differ, in A_1 and in numbers:

    - "code": the code's sub-spaces with the paper's numbers (section 4.1.2). Stage 1 samples the
      two smaller embedding dims with everything else free; the plus phase freezes what the smallest
      embedding dim reads and samples the other two.
    - "paper": one A_1 for both, the smallest embedding dim with the smallest MLP ratio, the two
      axes of the paper's footnote 1; the paper's numbers.
    - "committed": the sub-spaces of "code" with the numbers in the code's files: the transition at
      epoch 400 of 500 in T and S (200 in B), fine-tuning of S from 1e-5 (at 512 images).

    Args:
        name: "autoformer-tiny", "autoformer-small" or "autoformer-base".
        variant: which reading.
        plus: whether to add the GrowTAS+ phase.

    Raises:
        ValueError: the name or the variant is unknown.
    """
    if name not in _PAPER:
        raise ValueError(
            f"no GrowTAS preset for space {name!r}{nearest(name, _PAPER)}; "
            f"known: {listed(_PAPER)}. Other spaces need stages and, for plus, its values"
        )
    space, numbers = (
        SearchSpace.preset(name),
        (_COMMITTED if variant == "committed" else _PAPER)[name],
    )
    first: dict[str, tuple[float, ...]]
    frozen: dict[str, tuple[float, ...]]
    if variant in ("code", "committed"):
        first, frozen = {"embed_dim": space.embed_dim[:-1]}, {"embed_dim": space.embed_dim[:1]}
    elif variant == "paper":
        first = frozen = {"embed_dim": space.embed_dim[:1], "mlp_ratio": space.mlp_ratio[:1]}
    else:
        raise ValueError(f"variant is {variant!r}; known: {listed(get_args(Variant))}")
    fine_tuning = PlusPhase(
        numbers.plus_epochs, numbers.plus_lr, numbers.plus_min_lr, freeze=frozen
    )
    return GrowTAS(
        [Stage(0.0, first), Stage(numbers.transition)], plus=fine_tuning if plus else None
    )


@dataclass(frozen=True)
class UniformConfig:
    """Recipe values of `Uniform`."""

    sequence: SequenceName | None = None  # whose draws to repeat; null: our own, by train.seed
    stratify: Stratify | None = None  # axis, min, max, bins: draw all sizes equally often

    def build(self, space: SearchSpace, cost: CostFunction | None) -> Uniform:
        """The strategy."""
        return Uniform(sequence=self.sequence, stratify=self.stratify, cost=cost)


@dataclass(frozen=True)
class GrowTASConfig:
    """Recipe values of `GrowTAS`; what is not given comes from `growtas_preset`."""

    preset: str | None = None  # space whose published settings to use; default: the run's own space
    variant: Variant = "code"  # which reading of them: code, paper or committed
    stages: tuple[Stage, ...] = ()  # start and restrict of each; none: the preset's
    plus: bool | PlusPhase = (
        False  # true: the preset's GrowTAS+ phase; or epochs, lr, min_lr, freeze
    )
    growth_init: GrowthInit = "none"  # start of the weights that a stage adds: none, reinit, zero
    reset_moments: bool = False  # let AdamW forget moments and step counts of these weights
    # When a stage begins: at its start ("epoch"), or earlier, once the loss of the stage before has
    # stopped falling ("plateau", or its min_delta, patience and min_epochs).
    transition: Literal["epoch", "plateau"] | Plateau = "epoch"
    sequence: SequenceName | None = None  # whose draws to repeat; null: our own, by train.seed
    stratify: Stratify | None = None  # axis, min, max, bins: draw all sizes equally often

    def build(self, space: SearchSpace, cost: CostFunction | None) -> GrowTAS:
        """The strategy for `space`."""
        rule = Plateau() if self.transition == "plateau" else self.transition
        options: dict[str, Any] = {
            "growth_init": self.growth_init,
            "reset_moments": self.reset_moments,
            "transition": rule if isinstance(rule, Plateau) else None,
            "sequence": self.sequence,
            "stratify": self.stratify,
            "cost": cost,
        }
        if self.stages and self.plus is not True:
            return GrowTAS(self.stages, plus=self.plus or None, **options)
        preset = growtas_preset(self.preset or space.name, variant=self.variant, plus=True)
        plus = preset.plus if self.plus is True else self.plus or None
        return GrowTAS(self.stages or preset.stages, plus=plus, **options)


@dataclass(frozen=True)
class CandidatesConfig:
    """Recipe values of `Candidates`; the subnets come from one of `subnets` and `file`."""

    subnets: list[Any] = field(default_factory=list)  # embed_dim, num_heads, mlp_ratio of each
    file: str | None = None  # a file that `load_subnets` reads, such as PreNAS's candidates
    group_by: tuple[Literal["embed_dim", "depth"], ...] = ()  # draw a group first, then from it
    sequence: Literal["prenas"] | None = None  # PreNAS's draws; null: our own, by train.seed

    def __post_init__(self) -> None:
        if bool(self.subnets) == (self.file is not None):
            raise ValueError("candidates need either subnets or a file")

    def build(self, space: SearchSpace, cost: CostFunction | None) -> Candidates:
        """The strategy."""
        try:
            found = (
                subnets_in(self.subnets, "subnets")
                if self.file is None
                else load_subnets(self.file)
            )
        except OSError as error:
            raise ValueError(f"cannot read candidates: {error}") from None
        return Candidates(list(found.values()), group_by=self.group_by, sequence=self.sequence)


_CONFIGS: dict[str, type[UniformConfig] | type[GrowTASConfig] | type[CandidatesConfig]] = {
    "uniform": UniformConfig,
    "growtas": GrowTASConfig,
    "candidates": CandidatesConfig,
}


def build_strategy(
    config: Mapping[str, Any], space: SearchSpace, cost: CostFunction | None = None
) -> Strategy:
    """A strategy from recipe values.

    Args:
        config: `name`, "uniform", "growtas" or "candidates", and the fields of `UniformConfig`,
            `GrowTASConfig` or `CandidatesConfig`; for example ``{"name": "growtas", "variant":
            "paper", "plus": True}`` or ``{"name": "growtas", "stages": [{"start": 0, "restrict":
            {"embed_dim": [192]}}, {"start": 0.5}]}``.
        space: the space of the run; it names the preset if the config does not.
        cost: size of a subnet of the model (`growtas.cost.model_cost`), for `stratify`. Without it
            the windows are not checked, and `plan` fails.

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
        return build(_CONFIGS[name], values).build(space, cost)
    except ValueError as error:
        raise ConfigError(str(error)) from None
