"""Search: score many subnets of a trained supernet and find the best one inside each limit.

>>> evaluator = Evaluator.from_loader(model, loader)
>>> config = SearchConfig(limits=[{"max_params": "6M"}, {"max_params": "8M"}])
>>> result = search(space, evaluator, config, model_cost(model), run_dir="runs/search", resume=True)
>>> result["<=6M"].subnet, result["<=6M"].score
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from growtas.base.optional import lazy_names
from growtas.search.candidate import Candidate, Score, Scorer, pareto_front, rank_key
from growtas.search.config import Limit, SearchConfig
from growtas.search.operators import crossover, mutate
from growtas.search.result import LimitResult, SearchResult
from growtas.search.run import evolution, random_search, score_random, search
from growtas.space.cost import Cost, CostFunction, format_count, model_cost, parse_count

if TYPE_CHECKING:
    from growtas.search.evaluator import Evaluator

__all__ = [
    "Candidate",
    "Cost",
    "CostFunction",
    "Evaluator",
    "Limit",
    "LimitResult",
    "Score",
    "Scorer",
    "SearchConfig",
    "SearchResult",
    "crossover",
    "evolution",
    "format_count",
    "model_cost",
    "mutate",
    "pareto_front",
    "parse_count",
    "random_search",
    "rank_key",
    "score_random",
    "search",
]


# The only part that needs torch; settings and results are read without it.
__getattr__ = lazy_names(__name__, {"Evaluator": "growtas.search.evaluator"})
