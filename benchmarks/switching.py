"""What a new subnet at every step costs, against one fixed subnet of the mean size."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from torch import Tensor

from benchmarks.cases import Case, make_batch
from benchmarks.rows import Book, Row, quantile
from benchmarks.runner import Rows, measure_once, no_gc, survived
from benchmarks.variants import Variant
from growtas.cost import macs
from growtas.space import SearchSpace, Subnet


def random_subnets(space: SearchSpace, count: int, seed: int = 0) -> list[Subnet]:
    """`count` subnets drawn uniformly."""
    rng = random.Random(seed)
    return [space.sample(rng) for _ in range(count)]


def mean_size_subnet(case: Case, subnets: Sequence[Subnet], seed: int = 1) -> Subnet:
    """Of 500 drawn subnets the one whose multiply-adds are closest to the mean of `subnets`."""

    def cost(subnet: Subnet) -> int:
        return macs(case.space, subnet, image_size=case.image_size, patch_size=case.patch_size)

    mean = sum(map(cost, subnets)) / len(subnets)
    drawn = random_subnets(case.space, 500, seed)
    return min(drawn, key=lambda subnet: abs(cost(subnet) - mean))


def ratio_of_sums(pairs: Sequence[tuple[float, float]], resamples: int = 1000) -> list[float]:
    """sum of the first / sum of the second, and that of bootstrap resamples (the spread)."""

    def ratio(some: Sequence[tuple[float, float]]) -> float:
        return sum(a for a, _ in some) / sum(b for _, b in some)

    rng = random.Random(0)
    return [ratio(pairs), *(ratio(rng.choices(pairs, k=len(pairs))) for _ in range(resamples))]


def run_switching(variants: Mapping[str, Variant], case: Case, book: Book, count: int) -> list[Row]:
    """`count` training steps on random subnets, each followed by one on the fixed subnet.

    Every variant's block shapes are warm: the ratio is the cost of switching, not of compiling.
    The ratio's row holds the ratio of the sums and bootstrap quantiles.
    """
    batch = make_batch(case, book.device)
    subnets = random_subnets(case.space, count)
    fixed = mean_size_subnet(case, subnets)
    rows = Rows.of_case(book, case, task="switching")
    for name, variant in variants.items():
        with survived(rows, name):
            variant.model.train()
            for subnet in (*block_shapes(case.space), fixed):
                variant.train_step(case, *batch, subnet)
            with no_gc():
                pairs = [
                    (_time(variant, case, batch, subnet), _time(variant, case, batch, fixed))
                    for subnet in subnets
                ]
            rows.add(name, "random_subnet_time", "s", [a for a, _ in pairs])
            rows.add(name, "fixed_subnet_time", "s", [b for _, b in pairs])
            value, *resampled = ratio_of_sums(pairs)
            rows.add_summary(
                name,
                "random_over_fixed",
                "1",
                median=value,
                q20=quantile(resampled, 0.2),
                q80=quantile(resampled, 0.8),
                n=len(pairs),
            )
            variant.model.zero_grad()
    return rows.rows


def _time(variant: Variant, case: Case, batch: tuple[Tensor, Tensor], subnet: Subnet) -> float:
    device = batch[0].device.type
    return measure_once(lambda: variant.train_step(case, *batch, subnet), device)["wall_time"]


def block_shapes(space: SearchSpace) -> list[Subnet]:
    """Few subnets that together hold every (width, heads, ratio) a block can have."""
    shapes = [(h, r) for h in space.num_heads for r in space.mlp_ratio]
    depth = space.supernet.depth
    subnets = []
    for embed_dim in space.embed_dim:
        for start in range(0, len(shapes), depth):
            some = shapes[start : start + depth]
            some = (some * depth)[: max(space.depth)]
            subnets.append(Subnet(embed_dim, tuple(h for h, _ in some), tuple(r for _, r in some)))
    return subnets
