"""adamw_static_: the ordinary optimizer's steps, with everything that changes in tensors."""

from __future__ import annotations

import math
import random

import pytest
import torch
from kernels.adamw_static_cases import (
    GROUPS,
    SIDES,
    Ordinary,
    Static,
    boxes_of,
    leading,
    random_extents,
    random_gradients,
)
from oracles import bits_equal

from growtas import kernels
from growtas.kernels import native_library
from growtas.kernels.adamw.api import adamw_static_, static_unavailable
from growtas.kernels.adamw.static_table import INACTIVE, Sides, StaticRow, StaticTable
from growtas.kernels.dispatch import BackendUnavailable

MODES = ["dense", "skip", "masked"]


@pytest.fixture(params=["native", "reference"])
def backend(request):
    try:
        with kernels.use_backend(request.param):
            yield request.param
    except BackendUnavailable as error:
        pytest.skip(str(error))


def assert_close(got, plain, exact):
    """Error against float64 at most twice that of the ordinary float32 path."""
    for ours, theirs, want in zip(got, plain, exact, strict=True):
        for a, b, w in zip(ours, theirs, want, strict=True):
            eps = torch.finfo(a.dtype).eps if a.dtype == torch.float32 else 1e-12
            allowed = 2 * (b.double() - w.double()).abs().max() + 4 * eps * w.abs().max()
            assert (a.double() - w).abs().max() <= allowed


def run(inactive, *, groups=1, count=12, largest=None, frozen=False, reset=False, seed=0):
    """The same steps by the static and the ordinary way, float32 and float64."""
    static_, plain = Static(inactive), Ordinary(inactive)
    exact = Ordinary(inactive, torch.float64)
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    for i in range(count):
        if frozen and i in (4, 8):
            boxes = boxes_of(random_extents(rng, 1))[0] if i == 4 else None
            static_.table.write_frozen(boxes or [None] * len(SIDES))
            for other in (plain, exact):
                pairs = zip(other.parameters, boxes or (), strict=False)
                other.optimizer.freeze(dict(pairs))
        if reset and i == 6:
            small = [tuple(-(-n // 2) for n in shape) for shape, _ in SIDES]
            shells = []
            for other in (plain, exact):
                whole = {p: tuple(p.shape) for p in other.parameters}
                other.optimizer.reset(dict(zip(other.parameters, small, strict=True)), whole)
            for row, p, box in zip(static_.rows, plain.parameters, small, strict=True):
                for moment in (row.exp_avg, row.exp_avg_sq, row.counts):
                    if moment is not None:
                        kept = moment[leading(box)].clone()
                        moment.zero_()
                        moment[leading(box)] = kept
                shape = tuple(p.shape)
                shells.append(plain.optimizer.state.get(p, {}).get("shells", [(shape, 0)]))
            static_.table.write_shells(shells)
        extents = random_extents(rng, groups)
        gradients = random_gradients(extents, generator)
        blend, lr_scale = (1.0, 0.3, 0.7)[i % 3], 1.0 - 0.05 * i
        static_.write(gradients, blend, lr_scale)
        adamw_static_(static_.table, extents, largest=largest)
        for other in (plain, exact):
            other.step(gradients, extents, largest, blend, lr_scale)
    return static_, plain, exact


@pytest.mark.parametrize("inactive", MODES)
@pytest.mark.parametrize("options", [
    {}, {"groups": 3}, {"largest": 2.0}, {"frozen": True, "largest": 3.0}, {"reset": True},
    {"frozen": True, "reset": True, "groups": 2, "largest": 1.0, "seed": 3},
], ids=lambda options: "-".join(options) or "plain")  # fmt: skip
def test_steps_are_those_of_the_ordinary_optimizer(backend, inactive, options):
    static_, plain, exact = run(inactive, **options)
    assert_close(static_.arrays(), plain.arrays(), exact.arrays())
    for p, (row, parameter) in enumerate(zip(static_.rows, plain.parameters, strict=True)):
        state = plain.optimizer.state.get(parameter, {})
        if inactive == "masked":
            assert torch.equal(row.counts, state["count"])
        elif state:
            steps = [count for _, count in state["shells"]]
            assert static_.table.steps[p, -len(steps) :].tolist() == steps


@pytest.mark.parametrize("inactive", MODES)
def test_the_reference_in_float64_is_the_ordinary_optimizer(inactive):
    with kernels.use_backend("reference"):
        static_, plain = Static(inactive, torch.float64), Ordinary(inactive, torch.float64)
        rng, generator = random.Random(1), torch.Generator().manual_seed(1)
        for _ in range(6):
            extents = random_extents(rng, 2)
            gradients = random_gradients(extents, generator)
            static_.write(gradients, 0.25)
            adamw_static_(static_.table, extents, largest=1.5)
            plain.step(gradients, extents, 1.5, 0.25)
    # With a float32 count per weight the ordinary one's bias correction is float32.
    rtol = 1e-6 if inactive == "masked" else 1e-12
    for ours, theirs in zip(static_.arrays(), plain.arrays(), strict=True):
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=rtol, atol=rtol / 10)


@pytest.mark.parametrize("inactive", MODES)
def test_what_does_not_move_keeps_its_bits_and_is_not_read(backend, inactive):
    """NaN in gradients, moments and weights outside; the frozen box inside, NaN too."""
    case = Static(inactive, shadows=True)
    rng, generator = random.Random(2), torch.Generator().manual_seed(2)
    extents, frozen = random_extents(rng, 2), boxes_of(random_extents(rng, 1))[0]
    moving = []
    for i, (shape, _) in enumerate(SIDES):
        sampled = torch.zeros(shape, dtype=torch.bool)
        for boxes in boxes_of(extents):
            sampled[leading(boxes[i])] = True
        # "dense" and "skip" move all of a parameter of which anything is sampled
        mask = sampled if inactive == "masked" else torch.full(shape, bool(sampled.any()))
        mask[leading(frozen[i])] = False
        moving.append(mask)
    gradients = [torch.randn(shape, generator=generator) for shape, _ in SIDES]
    case.write(gradients)
    for row, mask in zip(case.rows, moving, strict=True):
        for array in (row.parameter, row.gradient, row.exp_avg, row.exp_avg_sq, row.shadow):
            array[~mask] = math.nan
    case.table.write_frozen(frozen)
    before = [[None if a is None else a.clone() for a in row.arrays] for row in case.rows]
    adamw_static_(case.table, extents)
    for row, mask, old in zip(case.rows, moving, before, strict=True):
        for array, was in zip(row.arrays[:6], old, strict=False):
            if array is not None:
                assert bits_equal(array[~mask], was[~mask])
        assert row.parameter[mask].isfinite().all()
        if mask.any():
            assert not torch.equal(row.parameter[mask], old[0][mask])
        assert bits_equal(row.shadow[mask], row.parameter[mask].bfloat16())


@pytest.mark.parametrize("inactive", MODES)
def test_a_scaled_gradient_is_unscaled_and_one_that_is_not_finite_leaves_the_step_out(
    backend, inactive
):
    scaled, plain = Static(inactive), Static(inactive)
    rng, generator = random.Random(5), torch.Generator().manual_seed(5)
    scale = torch.tensor(1024.0)
    for step in range(4):
        extents = random_extents(rng, 1)
        gradients = random_gradients(extents, generator)
        if step == 2:  # between two good ones
            bad = [g.clone() for g in gradients]
            bad[0][0] = (math.inf, math.nan)[inactive == "skip"]
            scaled.write(bad, blend=0.0)
            before = [[a.clone() for a in arrays] for arrays in scaled.arrays()]
            counts = scaled.table.steps.clone()
            adamw_static_(scaled.table, extents, largest=1.0, scale=scale)
            assert scaled.table.found_inf == 1
            assert torch.equal(scaled.table.steps, counts)
            for old, new in zip(before, scaled.arrays(), strict=True):
                assert all(bits_equal(a, b) for a, b in zip(old, new, strict=True))
        scaled.write([g * 1024 for g in gradients], 0.5)
        plain.write(gradients, 0.5)
        adamw_static_(scaled.table, extents, largest=1.0, scale=scale)
        adamw_static_(plain.table, extents, largest=1.0)
        assert scaled.table.found_inf == 0
        torch.testing.assert_close(scaled.table.norm, plain.table.norm)
    for ours, theirs in zip(scaled.arrays(), plain.arrays(), strict=True):
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_the_averages_move_where_the_step_is_left_out(backend):
    case = Static("dense")
    extents = random_extents(random.Random(0), 1)
    case.write([torch.full(shape, math.inf) for shape, _ in SIDES], blend=0.25)
    for row in case.rows:
        row.average.zero_()
    adamw_static_(case.table, extents, scale=torch.tensor(2.0))
    for row in case.rows:
        torch.testing.assert_close(row.average, 0.25 * row.parameter)


def test_without_a_scale_what_is_not_finite_is_not_hidden(backend):
    case = Static("dense")
    extents = random_extents(random.Random(0), 1)
    gradients = random_gradients(extents, torch.Generator().manual_seed(0))
    gradients[0][0] = math.nan
    case.write(gradients)
    adamw_static_(case.table, extents, largest=1.0)
    assert case.table.norm.isnan()
    assert case.rows[0].parameter.isnan().all()


@pytest.mark.parametrize("inactive", MODES)
def test_same_bits_again_and_with_any_number_of_threads(backend, inactive):
    def once(threads):
        torch.set_num_threads(threads)
        arrays = run(inactive, groups=2, count=3, largest=1.0)[0].arrays()
        return [array for kind in arrays for array in kind]

    threads = torch.get_num_threads()
    try:
        first = once(1)
        for again in (once(1), once(3)):
            assert all(bits_equal(a, b) for a, b in zip(first, again, strict=True))
    finally:
        torch.set_num_threads(threads)


def test_nothing_but_tensors_changes_between_subnets(monkeypatch):
    """The compiled operator gets the same arguments whatever is sampled, frozen or reset."""
    if native_library.unavailable():
        pytest.skip("csrc is not built")
    calls = []

    class Recorder:
        def adamw_static_(self, *arguments):
            calls.append([
                (a.data_ptr(), a.shape) if isinstance(a, torch.Tensor) else a for a in arguments
            ])  # fmt: skip

    monkeypatch.setattr(native_library, "operators", Recorder)
    case = Static("dense")
    extents = random_extents(random.Random(0), 1)
    for i in range(3):
        extents.copy_(random_extents(random.Random(i), 1))
        case.table.write_frozen([shape for shape, _ in SIDES])
        case.table.write_shells([[((1,) * len(shape), 5), (shape, i)] for shape, _ in SIDES])
        case.write([torch.zeros(shape) for shape, _ in SIDES], lr_scale=1.0 / (i + 1))
        adamw_static_(case.table, extents, largest=1.0)
    assert calls[0] == calls[1] == calls[2]


def test_constants_of_the_compiled_code():
    assert INACTIVE == ("dense", "skip", "masked")
    assert len(GROUPS) == 2


def test_what_does_not_fit_is_named():
    p = torch.zeros(3, 4)
    sides = Sides((None, (0, 1)), active=4)
    with pytest.raises(ValueError, match=r"shape \(3, 4\) with 1 sides"):
        StaticTable([StaticRow(p, p, p, p, Sides((None,)))], "dense")
    with pytest.raises(ValueError, match="inactive='masked' without counts"):
        StaticTable([StaticRow(p, p, p, p, sides)], "masked")
    with pytest.raises(ValueError, match=r"state of shape \(4, 3\)"):
        StaticTable([StaticRow(p, p, p, p.t(), sides)], "dense")
    with pytest.raises(ValueError, match="not of one"):
        StaticTable([StaticRow(p, p.double(), p, p, sides)], "dense")
    table = StaticTable([StaticRow(p, p, p, p, sides)], "dense")
    with pytest.raises(ValueError, match="must be above 0, got 0"):
        adamw_static_(table, torch.zeros(1, 1, 5, dtype=torch.int32), largest=0.0)
    for shape in ((1, 1, 4), (1, 0, 5), (1, 5)):
        with pytest.raises(ValueError, match="a table that looks in 1 rows and 5 columns"):
            adamw_static_(table, torch.zeros(shape, dtype=torch.int32))


def test_other_dtypes_go_the_plain_way_on_the_cpu_only():
    p = torch.zeros(3, dtype=torch.float64)
    assert static_unavailable(p) is None
    if native_library.unavailable() is None:
        with kernels.use_backend("native"):
            assert "not torch.float64" in static_unavailable(p)
