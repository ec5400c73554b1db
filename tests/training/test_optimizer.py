"""AdamW over boxes against torch.optim.AdamW, and the bits of frozen boxes."""

import itertools
import random

import pytest
import torch

from growtas.training.optimizer import AdamW, boxes_outside

SHAPES = [(6,), (4, 6), (3, 4, 2, 6), (8, 4)]
GRID = {"lr": 3e-3, "betas": (0.8, 0.95), "eps": 1e-8, "weight_decay": 0.1}


def parameters(seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.nn.Parameter(torch.randn(shape, generator=generator, dtype=dtype)) for shape in SHAPES
    ]


def box(extent):
    return tuple(slice(0, side) for side in extent)


def random_extents(rng):
    """A leading box per parameter, or None for a parameter that the step does not use."""
    return [
        None if rng.random() < 0.3 else tuple(rng.randint(1, side) for side in shape)
        for shape in SHAPES
    ]


def random_gradients(extents, generator):
    gradients = []
    for shape, extent in zip(SHAPES, extents, strict=True):
        gradient = torch.zeros(shape)
        if extent is not None:
            gradient[box(extent)] = torch.randn(extent, generator=generator)
        gradients.append(gradient)
    return gradients


@pytest.mark.parametrize("seed", range(30))
def test_boxes_outside_cover_the_union_without_the_frozen_box_once(seed):
    rng = random.Random(seed)
    sides = [rng.randint(1, 4) for _ in range(rng.randint(1, 4))]
    frozen = None if seed % 7 == 0 else [rng.randint(0, 5) for _ in sides]
    actives = [sides, [rng.randint(1, 4) for _ in sides], [rng.randint(0, 4) for _ in sides]]
    actives = actives[: rng.randint(1, 3)]
    boxes = boxes_outside(actives, frozen)
    assert len(actives) > 1 or len(boxes) <= len(sides)
    covered = [
        point
        for found in boxes
        for point in itertools.product(*(range(s.start, s.stop) for s in found))
    ]
    expected = {
        point
        for active in actives
        for point in itertools.product(*map(range, active))
        if frozen is None or not all(x < f for x, f in zip(point, frozen, strict=True))
    }
    assert len(covered) == len(set(covered))
    assert set(covered) == expected


def test_dense_is_torch_adamw_with_zero_filled_gradients():
    rng, generator = random.Random(1), torch.Generator().manual_seed(1)
    ours, theirs = parameters(), parameters()
    groups = [
        {"params": ours[:2], "weight_decay": 0.0},
        {"params": ours[2:]},
    ]
    optimizer = AdamW(groups, **GRID)
    reference = torch.optim.AdamW(
        [{"params": theirs[:2], "weight_decay": 0.0}, {"params": theirs[2:]}], **GRID
    )
    for _ in range(40):
        extents = random_extents(rng)
        gradients = random_gradients(extents, generator)
        for p, q, extent, gradient in zip(ours, theirs, extents, gradients, strict=True):
            p.grad = None if extent is None else gradient.clone()
            q.grad = gradient
        optimizer.step()
        reference.step()
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(
            optimizer.state[p]["exp_avg_sq"], reference.state[q]["exp_avg_sq"], rtol=1e-6, atol=1e-8
        )


def test_dense_moves_and_decays_what_is_not_sampled():
    (parameter,) = parameters()[1:2]
    optimizer = AdamW([parameter], **GRID)
    parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    before = parameter.detach().clone()
    parameter.grad = None
    optimizer.step()
    # m = 0.8 * 0.2 and v = 0.95 * 0.05 after one zero gradient, corrected for two steps.
    motion = 3e-3 * (0.16 / (1 - 0.8**2)) / ((0.0475 / (1 - 0.95**2)) ** 0.5)
    torch.testing.assert_close(parameter.detach(), before * (1 - 3e-4) - motion)


def test_masked_weights_follow_adamw_over_the_steps_that_sampled_them():
    rng, generator = random.Random(2), torch.Generator().manual_seed(2)
    ours, initial = parameters(), parameters()
    optimizer = AdamW(ours, **GRID, inactive="masked")
    history = []
    for _ in range(25):
        extents = random_extents(rng)
        gradients = random_gradients(extents, generator)
        history.append((extents, gradients))
        for p, gradient in zip(ours, gradients, strict=True):
            p.grad = gradient.clone()
        active = {p: e for p, e in zip(ours, extents, strict=True) if e is not None}
        optimizer.step(active=[active])
    for index, start in enumerate(initial):
        for point in itertools.product(*map(range, SHAPES[index])):
            weight = torch.nn.Parameter(start[point].detach().clone())
            reference = torch.optim.AdamW([weight], **GRID)
            for extents, gradients in history:
                extent = extents[index]
                if extent is not None and all(x < e for x, e in zip(point, extent, strict=True)):
                    weight.grad = gradients[index][point].clone()
                    reference.step()
            torch.testing.assert_close(ours[index][point], weight, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("inactive", ["dense", "masked"])
def test_frozen_boxes_keep_their_bits_and_the_rest_moves_as_if_nothing_was_frozen(inactive):
    rng, generator = random.Random(3), torch.Generator().manual_seed(3)
    frozen_extents = [(4,), (2, 6), (3, 2, 2, 3), (8, 4)]  # the last one whole
    ours, free, start = parameters(), parameters(), parameters()
    optimizer = AdamW(ours, **GRID, inactive=inactive)
    reference = AdamW(free, **GRID, inactive=inactive)

    def step(count):
        for _ in range(count):
            extents = random_extents(rng)
            gradients = random_gradients(extents, generator)
            for p, q, gradient in zip(ours, free, gradients, strict=True):
                p.grad, q.grad = gradient.clone(), gradient.clone()
            for chosen, run in ((ours, optimizer), (free, reference)):
                active = {p: e for p, e in zip(chosen, extents, strict=True) if e is not None}
                run.step(active=[active])

    step(5)  # moments exist when the freeze begins
    before = [p.detach().clone() for p in ours]
    optimizer.freeze(dict(zip(ours, frozen_extents, strict=True)))
    step(10)
    for p, q, old, extent, initial in zip(ours, free, before, frozen_extents, start, strict=True):
        assert torch.equal(p[box(extent)], old[box(extent)])
        outside = torch.ones(p.shape, dtype=torch.bool)
        outside[box(extent)] = False
        torch.testing.assert_close(p[outside], q[outside], rtol=1e-6, atol=1e-6)
        assert not outside.any() or not torch.equal(p[outside], initial[outside])
    optimizer.freeze({})
    step(3)
    assert not torch.equal(ours[0], before[0])


def test_masked_step_of_several_subnets_moves_the_union_of_their_boxes_once():
    (parameter,) = parameters()[1:2]  # 4 x 6
    optimizer = AdamW([parameter], lr=1e-2, weight_decay=0.0, inactive="masked")
    before = parameter.detach().clone()
    parameter.grad = torch.ones_like(parameter)
    optimizer.step(active=[{parameter: (4, 2)}, {parameter: (1, 6)}, {parameter: (4, 2)}, {}])
    sampled = torch.zeros(4, 6, dtype=torch.bool)
    sampled[:, :2] = sampled[:1] = True
    assert torch.equal(parameter[~sampled], before[~sampled])
    moved = (before - parameter.detach())[sampled]
    torch.testing.assert_close(moved, torch.full_like(moved, 1e-2), rtol=1e-4, atol=1e-6)


def test_zero_frozen_grad_leaves_the_rest():
    (parameter,) = parameters()[1:2]
    optimizer = AdamW([parameter])
    optimizer.freeze({parameter: (2, 3)})
    parameter.grad = torch.ones_like(parameter)
    optimizer.zero_frozen_grad()
    assert parameter.grad.sum() == parameter.numel() - 6
    assert parameter.grad[:2, :3].abs().sum() == 0


@pytest.mark.parametrize("inactive", ["dense", "masked"])
def test_state_dict_continues_the_same_numbers(inactive):
    def run(optimizer, params, steps, generator):
        for _ in range(steps):
            for p in params:
                p.grad = torch.randn(p.shape, generator=generator)
            optimizer.step(active=[{p: p.shape for p in params}], lr_scale=0.5)

    whole, generator = parameters(), torch.Generator().manual_seed(5)
    run(AdamW(whole, **GRID, inactive=inactive), whole, 6, generator)

    first, generator = parameters(), torch.Generator().manual_seed(5)
    optimizer = AdamW(first, **GRID, inactive=inactive)
    run(optimizer, first, 3, generator)
    second = [torch.nn.Parameter(p.detach().clone()) for p in first]
    resumed = AdamW(second, **GRID, inactive=inactive)
    resumed.load_state_dict(optimizer.state_dict())
    run(resumed, second, 3, generator)
    for p, q in zip(whole, second, strict=True):
        assert torch.equal(p, q)


def test_lr_scale_and_restart():
    params = parameters()
    optimizer = AdamW(params, lr=1e-2, weight_decay=0.0)
    for p in params:
        p.grad = torch.ones_like(p)
    before = [p.detach().clone() for p in params]
    optimizer.step(lr_scale=0.5)
    # The first step of Adam moves every weight by the learning rate.
    for p, old in zip(params, before, strict=True):
        torch.testing.assert_close(old - p, torch.full_like(p, 5e-3), rtol=1e-4, atol=1e-6)
    optimizer.step()
    optimizer.restart()
    before = [p.detach().clone() for p in params]
    optimizer.step()
    for p, old in zip(params, before, strict=True):
        torch.testing.assert_close(old - p, torch.full_like(p, 1e-2), rtol=1e-4, atol=1e-6)


def test_wrong_use_is_refused():
    params = parameters()
    with pytest.raises(ValueError, match=r"'sometimes'.*'dense', 'masked'"):
        AdamW(params, inactive="sometimes")
    with pytest.raises(ValueError, match="betas"):
        AdamW(params, betas=(0.9, 1.0))
    masked = AdamW(params, inactive="masked")
    with pytest.raises(ValueError, match="needs `active`"):
        masked.step()
    with pytest.raises(ValueError, match=r"box \(7,\) does not fit .* \(6,\)"):
        masked.step(active=[{params[0]: (7,)}])
    with pytest.raises(ValueError, match="has no gradient"):
        masked.step(active=[{params[0]: (2,)}])
    with pytest.raises(ValueError, match="not in this optimizer"):
        masked.freeze({torch.nn.Parameter(torch.zeros(3)): (1,)})
    with pytest.raises(ValueError, match=r"state of inactive='masked'"):
        AdamW(params).load_state_dict(masked.state_dict())
