"""The AdamW and norm kernels: torch.optim.AdamW inside the boxes, not a bit outside."""

from __future__ import annotations

import pytest
import torch
from adamw_cases import SETTINGS, SHAPES, arrays, assert_close, box
from oracles import bits_equal

from growtas.kernels import AdamWRow, adamw_, gradient_norm
from growtas.kernels.adamw import reference

SETTINGS_BUT_LR = {key: value for key, value in SETTINGS.items() if key != "lr"}
# Beyond one tile in either direction; five dimensions of which none can be joined.
LARGE = [(40, 700), (5000,), (3, 3, 3, 3, 6)]


def whole(shape):
    return tuple(slice(0, n) for n in shape)


def row_of(values, device, *, boxes, **others):
    return AdamWRow(*(v.to(device, copy=True) for v in values), boxes=boxes, **others)


def moved(row):
    return row.parameter, row.exp_avg, row.exp_avg_sq


def cut(values):
    """Float32 with bfloat16's leading bits, the others zero."""
    return (values.view(torch.int32) & ~0xFFFF).view(torch.float32)


@pytest.fixture
def no_other_way(monkeypatch, device):
    """The plain path is not taken."""

    def fail(*arguments):
        raise AssertionError("rows went the plain way")

    monkeypatch.setattr(reference, "step_", fail)
    monkeypatch.setattr(reference, "gradient_norm", fail)


@pytest.mark.parametrize("shape", [*SHAPES, *LARGE], ids=str)
def test_whole_tensors_follow_torch(device, no_other_way, shape):
    values = arrays(shape)
    row = row_of(values, device, boxes=[whole(shape)], step=4)
    adamw_([row], **SETTINGS)
    assert_close([t.cpu() for t in moved(row)], values, 3, SETTINGS)
    assert bits_equal(row.gradient.cpu(), values[1])


@pytest.mark.parametrize("steps", [1, 2, 600, 100_000])
@pytest.mark.parametrize("settings", [
    SETTINGS, {**SETTINGS, "weight_decay": 0.0}, {**SETTINGS, "betas": (0.0, 0.0)},
    {**SETTINGS, "betas": (0.5, 0.999_99)},
])  # fmt: skip
def test_settings_and_bias_correction(device, no_other_way, settings, steps):
    values = arrays((9, 7))
    row = row_of(values, device, boxes=[whole((9, 7))], step=steps)
    adamw_([row], **settings)
    assert_close([t.cpu() for t in moved(row)], values, steps - 1, settings)


@pytest.mark.parametrize("counted", [False, True])
def test_boxes_of_many_rows_at_once(device, no_other_way, counted):
    """Inside a box as torch does it on the cut-out box; outside, NaN and all, not a bit changes."""
    rows, saved = [], []
    for seed, shape in enumerate([*SHAPES, *LARGE]):
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
            count = count.to(device)
        shadow = torch.full(shape, 5.0, dtype=torch.bfloat16, device=device)
        others = {"step": 7.0, "counts": count, "shadow": shadow}
        rows.append(row_of(values, device, boxes=[box(shape), lower], **others))
        saved.append((values, inside, lower))
    adamw_(rows, **SETTINGS)
    for row, (values, inside, lower) in zip(rows, saved, strict=True):
        after = [t.cpu() for t in moved(row)]
        for part, before in ((box(inside.shape), 6), (lower, 2 if counted else 6)):
            if inside[part].numel():
                assert_close([t[part] for t in after], [v[part] for v in values], before, SETTINGS)
        for got, start in zip(after, (values[0], *values[2:]), strict=True):
            assert bits_equal(got[~inside], start[~inside])
        shadow = row.shadow.cpu()
        if device == "cuda":
            assert torch.equal(shadow[inside], after[0][inside].bfloat16())
        else:  # the interpreter cuts bits off instead of rounding
            assert torch.equal(shadow[inside].float(), cut(after[0][inside]))
        assert torch.all(shadow[~inside] == 5)
        if counted:
            count = row.counts.cpu()
            assert torch.all(count[box(inside.shape)] == 7)
            assert torch.all(count[lower] == 3)
            assert torch.all(count[~inside] == 6)


@pytest.mark.parametrize("largest", [0.5, 1e6])
def test_clipping_by_the_norm_of_what_moves(device, no_other_way, largest):
    shapes = [*SHAPES, *LARGE]
    rows, saved = [], []
    for seed, shape in enumerate(shapes):
        values = arrays(shape, seed=seed)
        inside = torch.zeros(shape, dtype=torch.bool)
        inside[box(shape)] = True
        values[1][~inside] = float("nan")
        rows.append(row_of(values, device, boxes=[box(shape)], step=4))
        saved.append([v[box(shape)].clone() for v in values])
    want = torch.linalg.vector_norm(torch.cat([v[1].double().flatten() for v in saved]))
    norm = gradient_norm(rows)
    assert abs(norm.item() - want) <= 1e-6 * want
    assert bits_equal(norm.view(1), gradient_norm(rows).view(1))
    adamw_(rows, **SETTINGS, clip=(norm, largest))
    factor = min(1.0, largest / (norm.item() + 1e-6))
    for row, values in zip(rows, saved, strict=True):
        got = [t[box(t.shape)].cpu() for t in moved(row)]
        assert_close(got, [values[0], values[1] * factor, *values[2:]], 3, SETTINGS)


def test_norm_of_no_boxes_is_zero_and_nan_is_not_hidden(device):
    values = arrays((4, 3))
    assert gradient_norm([row_of(values, device, boxes=[], step=1)]) == 0
    values[1][0, 0] = float("nan")
    row = row_of(values, device, boxes=[whole((4, 3))], step=1)
    norm = gradient_norm([row])
    assert norm.isnan()
    adamw_([row], **SETTINGS, clip=(norm, 1.0))
    assert row.parameter.isnan().all()


def test_everything_that_changes_from_step_to_step_may_be_on_the_device(device, no_other_way):
    values = arrays((9, 7))
    step, lr = (torch.tensor(n, device=device) for n in (3.0, 0.25))
    numbers = row_of(values, device, boxes=[whole((9, 7))], step=3)
    tensors = row_of(values, device, boxes=[whole((9, 7))], step=step)
    for _ in range(2):
        adamw_([numbers], lr=lr.item(), **SETTINGS_BUT_LR)
        adamw_([tensors], lr=lr, **SETTINGS_BUT_LR)
        assert bits_equal(numbers.parameter, tensors.parameter)
        numbers = numbers._replace(step=numbers.step + 1)
        step += 1
        lr *= 0.5


def test_table_follows_what_changes(device, no_other_way):
    """Another box, another gradient, another number of updates, more rows, then fewer."""
    values = arrays((40, 24))
    first = row_of(values, device, boxes=[(slice(0, 40), slice(0, 8))], step=1)
    second = first._replace(
        boxes=[(slice(0, 13), slice(0, 24))], gradient=first.gradient * 2, step=5
    )
    many = [row_of(arrays((8,), seed=n), device, boxes=[whole((8,))], step=n + 1)
            for n in range(70)]  # fmt: skip
    state = [t.cpu().clone() for t in moved(first)]
    tables = {}

    def expect(part, gradient, before):
        inputs = [state[0], gradient, *state[1:]]
        got = [t.cpu() for t in moved(first)]
        assert_close([t[part] for t in got], [t[part] for t in inputs], before, SETTINGS)
        outside = torch.ones(40, 24, dtype=torch.bool)
        outside[part] = False
        assert all(bits_equal(a[outside], b[outside]) for a, b in zip(got, state, strict=True))
        state[:] = [t.clone() for t in got]

    adamw_([first], **SETTINGS, tables=tables)
    expect(first.boxes[0], values[1], 0)
    adamw_([second], **SETTINGS, tables=tables)
    expect(second.boxes[0], values[1] * 2, 4)
    adamw_([first, *many], **SETTINGS, tables=tables)
    expect(first.boxes[0], values[1], 0)
    for n, row in enumerate(many):
        assert_close([t.cpu() for t in moved(row)], arrays((8,), seed=n), n, SETTINGS)
    adamw_([second], **SETTINGS, tables=tables)
    expect(second.boxes[0], values[1] * 2, 4)


def test_table_is_written_only_when_rows_change(device, monkeypatch):
    from growtas.kernels.adamw.gpu_table import Table

    written = []
    write = Table._write
    monkeypatch.setattr(Table, "_write", lambda self, rows: written.append(1) or write(self, rows))
    row = row_of(arrays((40, 24)), device, boxes=[whole((40, 24))], step=1)
    tables = {}
    for step in range(1, 4):
        adamw_([row._replace(step=step)], **SETTINGS, tables=tables)
        gradient_norm([row], tables=tables)
    assert len(written) == 2
    other = row._replace(boxes=[(slice(0, 3), slice(0, 8))])
    adamw_([other], **SETTINGS, tables=tables)
    assert len(written) == 3
    adamw_([other], **SETTINGS)  # nothing is kept
    assert len(written) == 4


def test_rows_that_are_not_contiguous(device):
    values = arrays((12, 10))
    row = AdamWRow(*(v.to(device, copy=True).t() for v in values), boxes=[whole((10, 12))], step=1)
    norm = gradient_norm([row])
    torch.testing.assert_close(norm.cpu(), torch.linalg.vector_norm(values[1]))
    adamw_([row], **SETTINGS)
    assert_close([t.t().cpu() for t in moved(row)], values, 0, SETTINGS)


def test_same_bits_again(device, no_other_way):
    def run():
        counts = torch.zeros(300, 200, device=device)
        row = row_of(arrays((300, 200)), device, boxes=[(slice(0, 299), slice(1, 190))],
                     counts=counts)  # fmt: skip
        adamw_([row], **SETTINGS, clip=(gradient_norm([row]), 1.0))
        return row.parameter

    assert bits_equal(run(), run())


@pytest.mark.parametrize("shape", [(7,), (6, 8), (3, 4, 5), (2, 3, 4, 5), (2, 2, 3, 3, 4)], ids=str)
def test_pieces_hold_every_weight_of_a_box_once(shape):
    from growtas.kernels.adamw.gpu_pieces import pieces

    numbers = torch.arange(torch.Size(shape).numel()).view(shape)
    for seed in range(60):
        g = torch.Generator().manual_seed(seed)
        ends = [sorted(torch.randint(0, n + 1, (2,), generator=g).tolist()) for n in shape]
        bounds = tuple((0, n) if seed % (d + 2) == 0 else (a, b)
                       for d, (n, (a, b)) in enumerate(zip(shape, ends, strict=True)))  # fmt: skip
        found = []
        for piece in pieces(shape, bounds, 4):
            size_1, size_2 = piece.sizes
            for r in range(piece.runs):
                at = piece.start + piece.strides[0] * (r // (size_1 * size_2))
                at += piece.strides[1] * (r // size_2 % size_1) + piece.strides[2] * (r % size_2)
                found += range(at, at + piece.run)
        box = tuple(slice(a, b) for a, b in bounds)
        assert sorted(found) == numbers[box].flatten().tolist()
