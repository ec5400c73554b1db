"""Exact sizes and multiply-adds of subnets; pure Python, without torch."""

from growtas.compat.complexity import autoformer_complexity
from growtas.space.cost import Cost, CostFunction, format_count, model_cost, parse_count
from growtas.supernet.vit.geometry import macs, num_params

__all__ = [
    "Cost",
    "CostFunction",
    "autoformer_complexity",
    "format_count",
    "macs",
    "model_cost",
    "num_params",
    "parse_count",
]
