"""Search spaces, subnets and their sizes. Pure Python."""

from growtas.space.search_space import SearchSpace, SpaceDifference
from growtas.space.subnet import AXES, Subnet, SupernetSize

__all__ = ["AXES", "SearchSpace", "SpaceDifference", "Subnet", "SupernetSize"]
