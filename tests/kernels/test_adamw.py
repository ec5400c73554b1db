"""adamw_: torch.optim.AdamW inside the boxes, not a bit outside."""

from __future__ import annotations

import pytest
import torch
from oracles import bits_equal

from growtas.kernels import AdamWRow, adamw_

SHAPES = [(40, 24), (3, 4, 8, 12), (77,), (1, 1, 5), (130, 200)]
SETTINGS = {"lr": 1e-2, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.05}


def box(shape, low=3, high=4):
    """The middle of a tensor: starts above 0 where there is room."""
    return tuple(slice(n // low, n - n // high) for n in shape)


def arrays(shape, dtype=torch.float32, seed=0):
    g = torch.Generator().manual_seed(seed)
    draws = [torch.randn(shape, generator=g, dtype=torch.float64) for _ in range(4)]
    draws[3] = draws[3].square() * 1e-2
    return [draw.to(dtype) for draw in draws]


def oracle(values, count, dtype, settings):
    """One step of torch's optimizer on the values given, after `count` steps before it."""
    weight, gradient, first, second = (v.to(dtype, copy=True) for v in values)
    weight = torch.nn.Parameter(weight)
    weight.grad = gradient
    optimizer = torch.optim.AdamW([weight], foreach=False, **settings)
    optimizer.state[weight] = {
        "step": torch.tensor(float(count)), "exp_avg": first.clone(), "exp_avg_sq": second.clone(),
    }  # fmt: skip
    optimizer.step()
    state = optimizer.state[weight]
    return weight.detach(), state["exp_avg"], state["exp_avg_sq"]


def assert_close(got, values, count, settings):
    golden = oracle(values, count, torch.float64, settings)
    plain = oracle(values, count, values[0].dtype, settings)
    for actual, want, other in zip(got, golden, plain, strict=True):
        error = (actual.double() - want).abs().max()
        # torch's own bias correction cancels: its float64 is right to some 1e-13
        eps = max(torch.finfo(actual.dtype).eps, 1e-12)
        assert error <= 2 * (other.double() - want).abs().max() + 2 * eps * want.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_whole_tensors_follow_torch(backend, shape, dtype):
    values = arrays(shape, dtype)
    row = AdamWRow(*(v.clone() for v in values), boxes=[tuple(slice(0, n) for n in shape)], step=4)
    adamw_([row], **SETTINGS)
    assert_close((row.parameter, row.exp_avg, row.exp_avg_sq), values, 3, SETTINGS)
    assert bits_equal(row.gradient, values[1])


@pytest.mark.parametrize("settings", [
    {**SETTINGS, "weight_decay": 0.0}, {**SETTINGS, "betas": (0.0, 0.0)}, {**SETTINGS, "eps": 0.1},
])  # fmt: skip
def test_settings(backend, settings):
    values = arrays((9, 7))
    row = AdamWRow(*(v.clone() for v in values), boxes=[(slice(0, 9), slice(0, 7))], step=1)
    adamw_([row], **settings)
    assert_close((row.parameter, row.exp_avg, row.exp_avg_sq), values, 0, settings)


@pytest.mark.parametrize("counted", [False, True])
def test_boxes_of_many_rows_at_once(backend, counted):
    """Inside a box as torch does it on the cut-out box; outside, NaN and all, not a bit changes."""
    rows, saved = [], []
    for seed, shape in enumerate(SHAPES):
        values = arrays(shape, seed=seed)
        inside = torch.zeros(shape, dtype=torch.bool)
        lower = tuple(slice(0, n // 3) for n in shape)
        for part in (box(shape), lower):
            inside[part] = True
        for value in values:
            value[~inside] = float("nan")
        count = torch.full(shape, 6.0) if counted else None
        if count is not None:
            count[lower] = 2.0
        shadow = torch.full(shape, 5.0, dtype=torch.bfloat16)
        rows.append(AdamWRow(*(v.clone() for v in values), [box(shape), lower], 7.0, count, shadow))
        saved.append((values, inside, lower))
    adamw_(rows, **SETTINGS)
    for row, (values, inside, lower) in zip(rows, saved, strict=True):
        moved = (row.parameter, row.exp_avg, row.exp_avg_sq)
        assert_close(
            [t[box(t.shape)] for t in moved], [v[box(v.shape)] for v in values], 6, SETTINGS
        )
        if all(n // 3 for n in inside.shape):
            before = 2 if counted else 6
            assert_close([t[lower] for t in moved], [v[lower] for v in values], before, SETTINGS)
        for after, before in zip(moved, (values[0], *values[2:]), strict=True):
            assert bits_equal(after[~inside], before[~inside])
        assert torch.equal(row.shadow[inside], row.parameter[inside].bfloat16())
        assert torch.all(row.shadow[~inside] == 5)
        if counted:
            assert torch.all(row.counts[box(inside.shape)] == 7)
            assert torch.all(row.counts[lower] == 3)
            assert torch.all(row.counts[~inside] == 6)


def test_counts_that_change_from_weight_to_weight(backend):
    values = arrays((50,))
    count = torch.arange(50.0) % 7
    row = AdamWRow(*(v.clone() for v in values), boxes=[(slice(0, 50),)], counts=count.clone())
    adamw_([row], **SETTINGS)
    assert torch.equal(row.counts, count + 1)
    for n in range(7):
        pick = count == n
        got = [t[pick] for t in (row.parameter, row.exp_avg, row.exp_avg_sq)]
        assert_close(got, [v[pick] for v in values], n, SETTINGS)


def test_same_bits_again_and_with_any_number_of_threads(backend):
    def run(threads):
        torch.set_num_threads(threads)
        values = arrays((300, 200))
        row = AdamWRow(
            *values, boxes=[(slice(0, 299), slice(1, 190))], counts=torch.zeros(300, 200)
        )
        adamw_([row], **SETTINGS)
        return row.parameter

    threads = torch.get_num_threads()
    try:
        first = run(1)
        assert bits_equal(first, run(1))
        assert bits_equal(first, run(3))
    finally:
        torch.set_num_threads(threads)


def test_tensors_that_are_not_contiguous(backend):
    values = arrays((12, 10))
    row = AdamWRow(*(v.clone().t() for v in values), boxes=[(slice(0, 10), slice(0, 12))], step=1)
    adamw_([row], **SETTINGS)
    assert_close([t.t() for t in (row.parameter, row.exp_avg, row.exp_avg_sq)], values, 0, SETTINGS)


def test_bad_input_is_named():
    values = arrays((4, 3))
    whole = (slice(0, 4), slice(0, 3))
    with pytest.raises(ValueError, match=r"box .*5.* is not inside a parameter of shape \(4, 3\)"):
        adamw_([AdamWRow(*values, boxes=[(slice(0, 5), slice(0, 3))], step=1)], lr=0.1)
    with pytest.raises(ValueError, match="step must be 1 or more, got 0"):
        adamw_([AdamWRow(*values, boxes=[whole])], lr=0.1)
    with pytest.raises(ValueError, match=r"state of shape \(3, 4\)"):
        adamw_([AdamWRow(*values[:3], values[3].t(), boxes=[whole], step=1)], lr=0.1)
