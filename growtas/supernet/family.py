"""What a family of weight-sharing models is to those who train, search and ship it."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from torch import Tensor, nn

from growtas.kernels import GradientAccumulator
from growtas.kernels.gradients import leading_box
from growtas.space.cost import Cost
from growtas.space.family import AnySpace
from growtas.supernet.geometry import Box, Geometry


class Family(Protocol):
    """A module of the largest sizes; subnets are those of its space.

    Attributes:
        space: the choices of every axis.
        geometry: what the parameters' dimensions follow.
        config: the other arguments, as plain values.
    """

    geometry: Geometry
    config: dict[str, Any]

    @property
    def space(self) -> AnySpace: ...

    @classmethod
    def from_config(cls, config: Mapping[str, Any], space: Any) -> Family:
        """A freshly initialised model with another's `config`."""

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]: ...

    def sample(self, rng: random.Random) -> Any:
        """A subnet of the space."""

    def boxes(self, subnet: Any) -> dict[str, Box]:
        """For each parameter that a subnet reads, the leading box it reads; others are absent."""

    def cost(self, subnet: Any) -> Cost:
        """Size of the extracted subnet."""

    def forward(
        self, images: Tensor, subnet: Any, *, gradients: GradientAccumulator | None = None
    ) -> Tensor:
        """Class logits of a subnet, computed on the leading boxes of the parameters in place."""

    def extract(self, subnet: Any) -> nn.Module:
        """The subnet as an ordinary module with its own copy of the weights; same logits."""


def slices(model: nn.Module, boxes: Mapping[str, Box]) -> dict[str, Tensor]:
    """Views of what a subnet reads, by the parameters' names."""
    state = model.state_dict()
    return {name: leading_box(state[name], box) for name, box in boxes.items()}
