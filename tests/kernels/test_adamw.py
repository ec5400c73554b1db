"""adamw_: torch.optim.AdamW inside the boxes, not a bit outside."""

from __future__ import annotations

import pytest
import torch
from adamw_cases import SETTINGS, SHAPES, arrays, assert_close, box
from oracles import bits_equal

from growtas.kernels import AdamWRow, adamw_, gradient_norm


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


@pytest.mark.parametrize("largest", [0.5, 1e6])
def test_clipping_by_the_norm_of_what_moves(backend, largest):
    """As torch.nn.utils.clip_grad_norm_ on the cut-out boxes, then AdamW; gradients stay."""
    rows = [AdamWRow(*arrays(shape, seed=i), boxes=[box(shape)], step=4)
            for i, shape in enumerate(SHAPES)]  # fmt: skip
    saved = [[t[box(t.shape)].clone() for t in row.arrays[:4]] for row in rows]
    clipped = [torch.nn.Parameter(values[0].clone()) for values in saved]
    for parameter, values in zip(clipped, saved, strict=True):
        parameter.grad = values[1].clone()
    want = torch.nn.utils.clip_grad_norm_(clipped, largest)
    norm = gradient_norm(rows)
    torch.testing.assert_close(norm, want)
    assert bits_equal(norm.view(1), gradient_norm(rows).view(1))
    adamw_(rows, **SETTINGS, clip=(norm, largest))
    for row, values, parameter in zip(rows, saved, clipped, strict=True):
        got = [t[box(t.shape)] for t in (row.parameter, row.exp_avg, row.exp_avg_sq)]
        assert_close(got, [values[0], parameter.grad, *values[2:]], 3, SETTINGS)
        assert bits_equal(row.gradient[box(row.gradient.shape)], values[1])


def test_norm_of_no_boxes_is_zero_and_nan_is_not_hidden(backend):
    values = arrays((4, 3))
    assert gradient_norm([AdamWRow(*values, boxes=[], step=1)]) == 0
    values[1][0, 0] = float("nan")
    row = AdamWRow(*values, boxes=[(slice(0, 4), slice(0, 3))], step=1)
    norm = gradient_norm([row])
    assert norm.isnan()
    adamw_([row], **SETTINGS, clip=(norm, 1.0))
    assert row.parameter.isnan().all()


def test_learning_rate_and_step_as_tensors(backend):
    values = arrays((9, 7))
    boxes = [(slice(0, 9), slice(0, 7))]
    settings = {key: value for key, value in SETTINGS.items() if key != "lr"}
    numbers, tensors = (
        AdamWRow(*(v.clone() for v in values), boxes=boxes, step=step)
        for step in (3, torch.tensor(3.0))
    )
    adamw_([numbers], lr=0.25, **settings)
    adamw_([tensors], lr=torch.tensor(0.25), **settings)
    assert bits_equal(numbers.parameter, tensors.parameter)


def test_bad_input_is_named():
    values = arrays((4, 3))
    whole = (slice(0, 4), slice(0, 3))
    with pytest.raises(ValueError, match=r"box .*5.* is not inside a parameter of shape \(4, 3\)"):
        adamw_([AdamWRow(*values, boxes=[(slice(0, 5), slice(0, 3))], step=1)], lr=0.1)
    with pytest.raises(ValueError, match="step must be 1 or more, got 0"):
        adamw_([AdamWRow(*values, boxes=[whole])], lr=0.1)
    with pytest.raises(ValueError, match=r"state of shape \(3, 4\)"):
        adamw_([AdamWRow(*values[:3], values[3].t(), boxes=[whole], step=1)], lr=0.1)
    with pytest.raises(ValueError, match="the largest norm must be above 0, got 0"):
        adamw_([AdamWRow(*values, boxes=[whole], step=1)], lr=0.1, clip=(torch.ones(()), 0.0))
    with pytest.raises(ValueError, match="at least one row"):
        gradient_norm([])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"boxes": [(slice(0, 4, 2), slice(0, 3))]}, ValueError, "or skips entries"),
        ({"boxes": [(slice(-2, 4), slice(0, 3))]}, ValueError, r"not inside .*\(4, 3\)"),
        (
            {"boxes": [(slice(0, 3), slice(0, 3)), (slice(2, 4), slice(0, 1))]},
            ValueError, "overlap",
        ),
        ({"step": None}, TypeError, "step must be a number or a tensor, got None"),
        ({"step": float("nan")}, ValueError, "step must be 1 or more, got nan"),
        (
            {name: torch.ones(4, 3, dtype=torch.int64) for name in ("parameter", "gradient")},
            TypeError, "must be floats, got torch.int64",
        ),
    ],
)  # fmt: skip
def test_rows_that_are_refused(backend, change, error, message):
    values = arrays((4, 3))
    row = AdamWRow(*values, boxes=[(slice(0, 4), slice(0, 3))], step=1)._replace(**change)
    before = [array.clone() for array in row.arrays[:4]]
    with pytest.raises(error, match=message):
        adamw_([row], lr=0.1)
    assert all(map(torch.equal, row.arrays[:4], before))


def test_rows_that_share_memory_or_weights(backend):
    parameter, gradient, *moments = arrays((4, 3))
    boxes = [(slice(0, 4), slice(0, 3))]
    for row in (
        AdamWRow(parameter, parameter, *moments, boxes, step=1),
        AdamWRow(parameter, gradient, moments[0], moments[0], boxes, step=1),
    ):
        with pytest.raises(ValueError, match="two of them share it"):
            adamw_([row], lr=0.1)
    row = AdamWRow(parameter, gradient, *moments, boxes, step=1)
    with pytest.raises(ValueError, match="overlap"):
        adamw_([row, row._replace(step=2)], lr=0.1)
    halves = [row._replace(boxes=[(slice(a, a + 2), slice(0, 3))]) for a in (0, 2)]
    adamw_(halves, lr=0.1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": float("nan")}, "lr must be 0 or more and finite, got nan"),
        ({"lr": -0.1}, "lr must be 0 or more and finite, got -0.1"),
        ({"betas": (0.9, 1.0)}, r"betas must be two numbers in \[0, 1\), got \(0.9, 1.0\)"),
        ({"betas": (-0.1, 0.9)}, "betas must be two numbers"),
        ({"betas": (0.9,)}, "betas must be two numbers"),
        ({"eps": -1e-8}, "eps must be 0 or more and finite, got -1e-08"),
        ({"weight_decay": float("inf")}, "weight_decay must be 0 or more and finite, got inf"),
    ],
)
def test_settings_that_are_refused(settings, message):
    row = AdamWRow(*arrays((4, 3)), boxes=[(slice(0, 4), slice(0, 3))], step=1)
    with pytest.raises(ValueError, match=message):
        adamw_([row], **{**SETTINGS, **settings})
