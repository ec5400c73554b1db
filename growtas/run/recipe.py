"""A recipe: everything one run needs, from the search space to where the results go, as YAML.

Package recipes (``growtas/recipes/*.yaml``) are found by name, any other recipe by path. Every
field has a default and can be overridden on the command line as ``section.field=value``. A run
saves the complete recipe as ``config.yaml``, which is itself a recipe.
"""

from __future__ import annotations

import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from growtas.base.atomic import write_atomically
from growtas.base.checks import at_least
from growtas.base.config import (
    ConfigError,
    Field,
    apply_override,
    build,
    convert,
    dotted,
    dump_yaml,
    load_yaml,
    nearest,
    read_text,
    split_override,
    to_plain,
)
from growtas.run import folder_sizes, recipes
from growtas.run.model import ModelConfig, message, read_space
from growtas.search.config import SearchConfig
from growtas.training.config import (
    AugmentConfig,
    DataConfig,
    OptimConfig,
    TrainConfig,
    check_pieces,
)

if TYPE_CHECKING:
    from growtas.schedule import Strategy
    from growtas.space import SearchSpace
    from growtas.space.cost import CostFunction
    from growtas.supernet import Supernet


@dataclass(frozen=True)
class OutputConfig:
    """Where the run leaves its files and what it draws."""

    dir: str | None = None  # folder of the run; default runs/<name of the recipe>
    random_subnets: int = 100  # random subnets that front.png shows beside the search's, 0 for none

    def __post_init__(self) -> None:
        if self.dir == "":
            raise ValueError("dir must be the name of a folder, or null for runs/<recipe>, got ''")
        at_least("random_subnets", self.random_subnets, 0)


@dataclass(frozen=True)
class Recipe:
    """The sections of a recipe; `load` reads one, `save` writes one complete with all defaults."""

    space: str | dict[str, Any]  # name of a preset ("autoformer-tiny", "digits"), or the choices
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    # Which subnet trains when, see growtas.schedule.build_strategy and docs/schedules.md.
    strategy: dict[str, Any] = field(default_factory=lambda: {"name": "uniform"})
    search: SearchConfig = field(default_factory=SearchConfig)
    output: OutputConfig = field(default_factory=OutputConfig)

    def __post_init__(self) -> None:
        """Builds the space and the strategy once, to find a mistake in them before any work.

        Raises:
            ValueError: settings that do not fit each other.
        """
        check_pieces(self.data, self.train)
        self.build_strategy(self.build_space())

    @classmethod
    def load(
        cls,
        source: str | Path,
        overrides: Sequence[str] = (),
        *,
        resume: bool = False,
        say: Callable[[str], None] = print,
    ) -> Recipe:
        """Reads a recipe and applies overrides.

        Args:
            source: name of a package recipe (`recipes.available`), or path of a YAML file.
            overrides: ``section.field=value`` each, values in YAML, ``[0]`` for a position in a
                list; later ones win.
            resume: what the recipe leaves to the images of a folder (``auto``, see
                `folder_sizes`) is taken from the run in its output folder, if there is one.
            say: receives the lines about what was chosen for ``auto``.

        Raises:
            ConfigError: no such recipe, a field that does not exist, a value of the wrong type or
                out of range.
            OSError: the file cannot be read.
        """
        text, name = _read(source)
        values = load_yaml(text, source=str(source))
        if not isinstance(values, dict):
            raise ConfigError(
                f"{source}: a recipe is a mapping with the sections {', '.join(_sections())}"
            )
        return cls.from_dict(values, overrides, name=name, resume=resume, say=say)

    @classmethod
    def from_dict(
        cls,
        values: Mapping[str, Any],
        overrides: Sequence[str] = (),
        *,
        name: str = "run",
        resume: bool = False,
        say: Callable[[str], None] = print,
    ) -> Recipe:
        """The same from plain values; `name` makes the default output folder, ``runs/<name>``."""
        values = dict(to_plain(values))
        for override in overrides:
            where, value = split_override(override)
            _check_section(where)
            apply_override(values, where, value)
        for section in values:
            _check_section((str(section),))
        output = convert(values.get("output") or {}, OutputConfig, where="output")
        if output.dir is None:
            values["output"] = {**to_plain(output), "dir": f"runs/{name}"}
        earlier = Path(values["output"]["dir"]) / "config.yaml"
        kept = None
        if resume and earlier.is_file():
            kept = load_yaml(read_text(earlier), source=str(earlier))
        folder_sizes.choose(values, say, kept)
        return build(cls, values)

    def to_dict(self) -> dict[str, Any]:
        """Plain values of every field; `from_dict` reads them back to an equal recipe."""
        return to_plain(self)

    def save(self, path: str | Path) -> None:
        """Writes the complete recipe as YAML."""
        write_atomically(path, self.to_yaml())

    def to_yaml(self) -> str:
        """The complete recipe as YAML text."""
        header = (
            "# Everything this run used, defaults included; `growtas run <this file>` repeats it.\n"
        )
        return header + dump_yaml(self.to_dict())

    @property
    def run_dir(self) -> Path:
        """Folder of the run."""
        return Path(self.output.dir or "runs")

    def build_space(self) -> SearchSpace:
        """The search space, from its preset name or its choices."""
        return read_space(self.space)

    def build_strategy(self, space: SearchSpace, cost: CostFunction | None = None) -> Strategy:
        """The training strategy, for a space that `build_space` built. One that stratifies can only
        be trained with the `cost` of its model (`growtas.space.cost.model_cost`)."""
        from growtas.schedule import build_strategy

        try:
            strategy = build_strategy(self.strategy, space, cost)
            strategy.phases(space, self.train.epochs)
        except (ValueError, TypeError, KeyError) as error:
            raise ConfigError(f"strategy: {message(error)}") from None
        return strategy

    def build_model(
        self, *, in_chans: int, image_size: int | tuple[int, int], num_classes: int
    ) -> Supernet:
        """A freshly initialised supernet for images of this shape."""
        from growtas.supernet import Supernet

        return Supernet(
            self.build_space(),
            image_size=image_size,
            num_classes=num_classes,
            in_chans=in_chans,
            **to_plain(self.model),
        )


def _read(source: str | Path) -> tuple[str, str]:
    """Text and name of a recipe; a name is a package recipe unless a file is called so."""
    path = Path(source)
    if path.is_file():
        # The config.yaml of a run is called after its folder: "config" would say nothing.
        name = path.parent.resolve().name if path.stem == "config" else path.stem
        return read_text(path), name
    names = recipes.available()
    if str(source) in names:
        return recipes.read(str(source)), str(source)
    if path.is_dir():
        config = path / "config.yaml"
        hint = f"; the recipe of this run is {config}" if config.is_file() else ""
        raise ConfigError(f"{source} is a folder, not a recipe{hint}")
    raise ConfigError(
        f"no recipe {str(source)!r}{nearest(str(source), names)}: neither a file nor one of "
        f"{', '.join(names)}"
    )


def _sections() -> list[str]:
    return [f.name for f in fields(Recipe)]


def _check_section(where: Field) -> None:
    """Refuses an unknown section; suggests ``train.epochs`` for a bare ``epochs``."""
    sections, first = _sections(), where[0]
    if first in sections:
        return
    leaves = _leaves()
    owners = [leaf for leaf in leaves if leaf.rpartition(".")[2] == first]
    if owners:
        hint = f" (did you mean {' or '.join(repr(owner) for owner in owners)}?)"
    else:
        hint = nearest(dotted(where), leaves) or nearest(str(first), sections)
    raise ConfigError(f"unknown section {first!r}{hint}; sections: {', '.join(sections)}")


def _leaves() -> list[str]:
    """``section.field`` of every section that is a dataclass."""
    classes = typing.get_type_hints(Recipe).items()
    return [f"{name}.{f.name}" for name, cls in classes if is_dataclass(cls) for f in fields(cls)]
