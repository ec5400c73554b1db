"""Boxes cut out of boxes, point by point."""

import itertools
import random

import pytest

from growtas.training.boxes import boxes_outside


@pytest.mark.parametrize("seed", range(30))
def test_boxes_outside_cover_the_union_without_the_removed_once(seed):
    rng = random.Random(seed)
    sides = [rng.randint(1, 4) for _ in range(rng.randint(1, 4))]
    removed = [[rng.randint(0, 5) for _ in sides] for _ in range(seed % 3)]
    actives = [sides, [rng.randint(1, 4) for _ in sides], [rng.randint(0, 4) for _ in sides]]
    actives = actives[: rng.randint(1, 3)]
    boxes = boxes_outside(actives, removed)
    assert len(actives) + len(removed) > 2 or len(boxes) <= len(sides)
    covered = [
        point
        for found in boxes
        for point in itertools.product(*(range(s.start, s.stop) for s in found))
    ]
    expected = {
        point
        for active in actives
        for point in itertools.product(*map(range, active))
        if not any(all(x < f for x, f in zip(point, cut, strict=True)) for cut in removed)
    }
    assert len(covered) == len(set(covered))
    assert set(covered) == expected
