"""Strategies by name, from the values of a recipe."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from growtas.base.checks import listed
from growtas.base.config import ConfigError, build, nearest
from growtas.schedule.plan import Strategy
from growtas.space import SearchSpace
from growtas.space.cost import CostFunction

# The module of each and, in it, the dataclass of its recipe values; its method `build` makes one.
STRATEGIES = {
    "uniform": "growtas.schedule.uniform:UniformConfig",
    "growtas": "growtas.schedule.growtas:GrowTASConfig",
    "candidates": "growtas.schedule.candidates:CandidatesConfig",
}


def build_strategy(
    config: Mapping[str, Any], space: SearchSpace, cost: CostFunction | None = None
) -> Strategy:
    """A strategy from recipe values.

    Args:
        config: `name`, one of `STRATEGIES`, and fields of its dataclass; for example ``{"name":
            "growtas", "variant": "paper", "plus": True}`` or ``{"name": "growtas", "stages":
            [{"start": 0, "restrict": {"embed_dim": [192]}}, {"start": 0.5}]}``.
        space: the space of the run; it names the preset if the config does not.
        cost: size of a subnet of the model (`growtas.cost.model_cost`), for `stratify`. Without it
            the windows are not checked, and `plan` fails.

    Raises:
        ConfigError: (a ValueError) an unknown name or field, with the nearest known one, or a value
            that is not allowed.
    """
    if not isinstance(config, Mapping) or "name" not in config:
        raise ConfigError(f"a strategy needs a name ({listed(STRATEGIES)}), got {config!r}")
    name = config["name"]
    if name not in STRATEGIES:
        hint = nearest(str(name), STRATEGIES)
        raise ConfigError(f"unknown strategy {name!r}{hint}; known: {listed(STRATEGIES)}")
    module, _, recipe_values = STRATEGIES[name].partition(":")
    values = {key: value for key, value in config.items() if key != "name"}
    cls: Any = getattr(importlib.import_module(module), recipe_values)
    try:
        return build(cls, values).build(space, cost)
    except ValueError as error:
        raise ConfigError(str(error)) from None
