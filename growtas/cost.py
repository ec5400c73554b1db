"""Exact sizes and multiply-adds of subnets: the public names of `growtas.space.cost`."""

from growtas.space.cost import (
    Cost,
    CostFunction,
    autoformer_complexity,
    format_count,
    macs,
    model_cost,
    num_params,
    parse_count,
)

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
