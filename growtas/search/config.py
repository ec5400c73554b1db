"""What to search for and how: the limits on the model and the settings of the evolution."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from growtas.base.checks import at_least, listed, plain_name, warn
from growtas.base.config import nearest
from growtas.search.candidate import Objective, check_word
from growtas.space.cost import Count, format_count, parse_count

# What names a subnet without a search, and folders of a run.
_TAKEN = ("best", "smallest", "largest", "analysis", "extend-vs-crop", "tensorboard")
# Endings of a run's files and of files with subnets.
_FILES = (
    ".csv", ".json", ".jsonl", ".png", ".pt", ".pth", ".safetensors", ".tar",
    ".yaml", ".yml",
)  # fmt: skip


@dataclass(frozen=True)
class Limit:
    """One window on the size of the model, both ends allowed; the search returns its best subnet.

    Bounds are numbers or texts such as ``"6M"`` (see `parse_count`) and are kept as ints; a bound
    left out does not bind. Parameters and multiply-adds are those of the extracted model.

    Raises:
        TypeError, ValueError: a bound is not a count, a window ends before it begins, or the name
            cannot be a folder's or means something else.
    """

    # How results refer to this limit: a plain file name, because its winner's folder is called so.
    # Left out, it is made from the bounds: "5M-6M", "<=1.3G MACs".
    name: str = ""
    max_params: Count = None
    min_params: Count = None
    max_macs: Count = None
    min_macs: Count = None

    def __post_init__(self) -> None:
        for bound in ("max_params", "min_params", "max_macs", "min_macs"):
            value = getattr(self, bound)
            if value is not None:
                object.__setattr__(self, bound, parse_count(value, bound))
        for axis in ("params", "macs"):
            low, high = self.window(axis)
            if low > high:
                span = f"min_{axis} = {format_count(low)}, max_{axis} = {format_count(high)}"
                raise ValueError(f"a window must not end before it begins, got {span}")
        if not isinstance(self.name, str):
            raise TypeError(f"the name of a limit must be a text, got {self.name!r}")
        made = self._describe()
        if not self.name:
            object.__setattr__(self, "name", made)
        elif self.name != made:  # which results have as a name, too
            plain_name("the name of a limit", self.name)
            if self.name.casefold() in _TAKEN or self.name.casefold().endswith(_FILES):
                raise ValueError(
                    f"the name of a limit is {self.name!r}, which means something else in a run; "
                    f"allowed: none of {listed(_TAKEN)}, and no ending like {listed(_FILES)}"
                )

    def window(self, axis: str) -> tuple[float, float]:
        """(min, max) allowed on "params" or "macs"; 0 and infinity where no bound is set."""
        low, high = getattr(self, f"min_{axis}"), getattr(self, f"max_{axis}")
        return (0 if low is None else low), (math.inf if high is None else high)

    @property
    def is_bounded(self) -> bool:
        """Whether any bound is set."""
        return any(self.window(axis) != (0, math.inf) for axis in ("params", "macs"))

    def admits(self, params: int, macs: int) -> bool:
        """Whether a model of this size is inside the window."""
        return self.excess(params, macs) == 0

    def excess(self, params: int, macs: int) -> float:
        """How far outside the window this size is: relative distances to the violated bounds."""
        total = 0.0
        for value, (low, high) in ((params, self.window("params")), (macs, self.window("macs"))):
            if value > high:
                total += (value - high) / value
            elif value < low:
                total += (low - value) / low
        return total

    def _describe(self) -> str:
        parts = []
        for axis, unit in (("params", ""), ("macs", " MACs")):
            low, high = self.window(axis)
            if low and high < math.inf:
                parts.append(f"{format_count(low)}-{format_count(high)}{unit}")
            elif high < math.inf:
                parts.append(f"<={format_count(high)}{unit}")
            elif low:
                parts.append(f">={format_count(low)}{unit}")
        return ", ".join(parts) or "unlimited"


@dataclass(frozen=True)
class SearchConfig:
    """Settings of a search. The defaults are the paper's (GrowTAS 3.3) and AutoFormer's operators.

    The budget is `population * generations` evaluated subnets for every limit, whatever the method;
    none is evaluated twice, and all limits share what is evaluated. Warns if there are more parents
    than a generation has subnets.

    Raises:
        TypeError, ValueError: a value of the wrong kind or outside its range; the message names it.
    """

    method: Literal["evolution", "random"] = "evolution"  # "random": a baseline of equal budget
    population: int = 50  # subnets evaluated in each generation, for each limit
    generations: int = 20  # the first one is random
    parents: int = 10  # the best so far inside the limit, from which a generation is bred
    mutation_prob: float = 0.2  # a mutant redraws the heads, and the MLP ratio, of each block
    depth_prob: float = 0.4  # ... and its depth
    embed_prob: float = 0.4  # ... and its embedding dim, with these probabilities
    # Children of two parents, and mutants, per generation; None: population / 2.
    crossover_size: int | None = None
    mutation_size: int | None = None
    objective: Objective = "accuracy"  # ranks subnets; the other breaks ties
    limits: tuple[Limit, ...] = ()  # windows on parameters and MACs, searched in one call; (): all
    seed: int = 0
    # "autoformer": propose what AutoFormer's code proposes for this seed and these scores; for one
    # limit, on parameters, and the objective accuracy. See growtas.search.autoformer.
    compat: Literal["autoformer"] | None = None
    batch_size: int = 256  # images per evaluation step, in each process
    max_images: int | None = None  # images used, spread evenly over the search split; None: all

    def __post_init__(self) -> None:
        check_word("method", self.method, ("evolution", "random"))
        check_word("objective", self.objective, get_args(Objective))
        for name in ("population", "generations", "parents", "batch_size"):
            at_least(name, getattr(self, name), 1)
        for name, least in (("max_images", 1), ("crossover_size", 0), ("mutation_size", 0)):
            if getattr(self, name) is not None:
                at_least(name, getattr(self, name), least)
        at_least("seed", self.seed, None)
        for name in ("mutation_prob", "depth_prob", "embed_prob"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise TypeError(f"{name} must be a number, got {value!r}")
            if not 0 <= value <= 1:
                raise ValueError(f"{name} must be between 0 and 1, got {value}")
        if self.num_mutations + self.num_crossovers > self.population:
            raise ValueError(
                f"mutation_size + crossover_size is {self.num_mutations} + {self.num_crossovers}, "
                f"more than the population of {self.population}"
            )
        object.__setattr__(self, "limits", _as_limits(self.limits))
        self._check_compat()
        self._warn_of_parents()

    def _warn_of_parents(self) -> None:
        if self.method == "random" or self.parents <= self.population or self.generations == 1:
            return
        first = self.parents // self.population + 2  # has more scored subnets than parents
        few = first <= self.generations
        when = f"before generation {first} of {self.generations}" if few else "in any generation"
        warn(
            f"search.parents is {self.parents}, more than search.population, {self.population}: "
            f"nothing is selected {when}, as every subnet scored so far is a parent"
        )

    def _check_compat(self) -> None:
        """Refuse what AutoFormer's search cannot do: there are no draws of it to repeat."""
        if self.compat not in (None, "autoformer"):
            raise ValueError(f"compat must be autoformer or null, got {self.compat!r}")
        if self.compat is None:
            return
        needs = "compat: autoformer needs"
        if self.method != "evolution":
            raise ValueError(f"{needs} the method evolution, got {self.method!r}")
        if self.objective != "accuracy":
            raise ValueError(f"{needs} the objective accuracy, got {self.objective!r}")
        if len(self.windows) > 1:
            names = ", ".join(limit.name for limit in self.windows)
            raise ValueError(f"{needs} one limit, got {len(self.windows)} ({names})")
        if self.windows[0].window("macs") != (0, math.inf):
            raise ValueError(f"{needs} a limit on parameters only, got {self.windows[0].name!r}")
        if self.parents == 50:
            # AutoFormer keeps its best 50 for display, then in the list of the parents, which so
            # gets all of them twice.
            raise ValueError(f"{needs} parents other than 50, with which AutoFormer counts twice")

    @property
    def num_mutations(self) -> int:
        """Mutants wanted in each generation."""
        return self.population // 2 if self.mutation_size is None else self.mutation_size

    @property
    def num_crossovers(self) -> int:
        """Children of two parents wanted in each generation."""
        return self.population // 2 if self.crossover_size is None else self.crossover_size

    @property
    def windows(self) -> tuple[Limit, ...]:
        """The limits to search under: `limits`, or the one that admits every subnet."""
        return self.limits or (Limit(),)


def _as_limits(values: Any) -> tuple[Limit, ...]:
    if isinstance(values, (str, Mapping, Limit)) or not isinstance(values, Iterable):
        raise TypeError(
            f"limits must be a list of windows such as [{{max_params: 6M}}], got {values!r}"
        )
    limits = tuple(_as_limit(value, f"limits[{i}]") for i, value in enumerate(values))
    names = [limit.name for limit in limits]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"limits must have different names, got {name!r} twice")
    return limits


def _as_limit(value: Any, where: str) -> Limit:
    if isinstance(value, Limit):
        return value
    if not isinstance(value, Mapping):
        raise TypeError(f"{where} must be a window such as {{max_params: 6M}}, got {value!r}")
    known = [field.name for field in fields(Limit)]
    for key in value:
        if key not in known:
            hint = nearest(str(key), known)
            raise ValueError(f"unknown field {key!r} in {where}{hint}; known: {listed(known)}")
    try:
        return Limit(**value)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{where}: {error}") from None
