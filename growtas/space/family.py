"""What search, schedules and tables of sizes ask of subnets and spaces, whatever their family."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, ClassVar, Protocol

from growtas.space.subnet import Axes


class AnySubnet(Protocol):
    """A frozen dataclass: a value for each of its axes."""

    axes: ClassVar[Axes]
    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def depth(self) -> int: ...


class AnySpace(Protocol):
    """The choices of every axis, each in an attribute of the axis's name."""

    @property
    def depth(self) -> Sequence[int]: ...

    def sample(self, rng: random.Random) -> Any: ...

    def smallest(self) -> Any: ...

    def largest(self) -> Any: ...
