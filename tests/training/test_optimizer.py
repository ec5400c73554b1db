"""AdamW over boxes against torch.optim.AdamW, and the bits of frozen boxes."""

import itertools
import random

import pytest
import torch
from training.training_setup import SPACE, supernet

from growtas import kernels
from growtas.training.optimizer import AdamW

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


class Run:
    """A supernet, its subnets, and an optimizer with the usual two groups."""

    def __init__(self, make, groups=("bias", "norm", "token", "pos")):
        self.model = supernet()
        free = [p for n, p in self.model.named_parameters() if any(word in n for word in groups)]
        rest = [p for p in self.model.parameters() if not any(p is q for q in free)]
        self.optimizer = make([{"params": free, "weight_decay": 0.0}, {"params": rest}])

    def active(self, subnet):
        boxes = self.model.extents(subnet)
        return [{p: boxes[n] for n, p in self.model.named_parameters() if n in boxes}]

    def weights(self):
        return torch.cat([p.detach().flatten() for p in self.model.parameters()])


def shallow_then_all(count=40):
    """Subnets as two stages draw them: the second block has no gradient before the second one."""
    rng = random.Random(4)
    shallow = SPACE.restrict(depth=1, mlp_ratio=1.0)
    return [(shallow if step < count // 2 else SPACE).sample(rng) for step in range(count)]


@pytest.mark.parametrize(("inactive", "none"), [("dense", False), ("skip", True)])
@pytest.mark.parametrize("kernel", ["fused", "plain"])
def test_dense_and_skip_are_torch_adamw_on_the_gradients_of_a_supernet(inactive, none, kernel):
    """ "dense": torch with zero_grad(set_to_none=False), the default before 2.0; "skip": True."""
    exact = kernel == "fused"
    theirs = Run(lambda groups: torch.optim.AdamW(groups, **GRID, fused=exact))
    ours = Run(lambda groups: AdamW(groups, **GRID, inactive=inactive))
    for p in ours.model.parameters():
        p.grad = torch.zeros_like(p)  # as GradientAccumulator does: says nothing about sampling
    generator = torch.Generator().manual_seed(0)
    drawn = shallow_then_all()
    for step, subnet in enumerate(drawn):
        if step in (len(drawn) // 4, 3 * len(drawn) // 4):  # a resume, before and after all began
            saved = ours.optimizer.state_dict()
            ours.optimizer = AdamW(ours.optimizer.param_groups, **GRID, inactive=inactive)
            ours.optimizer.load_state_dict(saved)
        theirs.optimizer.zero_grad(set_to_none=none)
        images = torch.randn(4, 1, 8, 8, generator=generator)
        theirs.model(images, subnet).square().mean().backward()
        for p, q in zip(ours.model.parameters(), theirs.model.parameters(), strict=True):
            p.grad.zero_()
            if q.grad is not None:
                p.grad.copy_(q.grad)
        theirs.optimizer.step()
        # plain PyTorch's backend calls the very kernel of torch's fused optimizer
        with kernels.use_backend("reference" if exact else "auto"):
            ours.optimizer.step(active=ours.active(subnet))
        if exact:
            assert torch.equal(ours.weights(), theirs.weights()), step
    torch.testing.assert_close(ours.weights(), theirs.weights(), rtol=1e-6, atol=1e-6)
    for p, start in zip(ours.model.parameters(), supernet().parameters(), strict=True):
        assert not torch.equal(p, start)


def test_dense_counts_from_a_parameters_first_gradient():
    """The second block stays as it is while it is not sampled; then it takes a first step."""
    run = Run(lambda groups: AdamW(groups, **{**GRID, "weight_decay": 0.5}))
    start = {n: p.detach().clone() for n, p in run.model.named_parameters()}
    for p in run.model.parameters():
        p.grad = torch.zeros_like(p)
    for _ in range(5):
        for n, p in run.model.named_parameters():
            p.grad.fill_(float("blocks.1" not in n))
        run.optimizer.step(active=run.active(SPACE.smallest()))
    named = dict(run.model.named_parameters())
    assert all(torch.equal(p, start[n]) for n, p in named.items() if "blocks.1" in n)
    assert not torch.equal(named["blocks.0.norm1.bias"], start["blocks.0.norm1.bias"])
    assert all(p not in run.optimizer.state for n, p in named.items() if "blocks.1" in n)
    for p in run.model.parameters():
        p.grad.fill_(1.0)
    run.optimizer.step(active=run.active(SPACE.largest()))
    bias = named["blocks.1.norm1.bias"].detach()
    torch.testing.assert_close(bias, torch.full_like(bias, -GRID["lr"]))


def test_without_active_dense_follows_the_gradients_like_torch():
    first, second = parameters()[:2]
    optimizer = AdamW([first, second], **GRID)
    before = second.detach().clone()
    first.grad = torch.ones_like(first)
    optimizer.step()
    assert torch.equal(second, before)
    second.grad = torch.ones_like(second)
    optimizer.step()
    torch.testing.assert_close(second.detach(), before * (1 - 3e-4) - 3e-3)


@pytest.mark.parametrize("inactive", ["dense", "masked", "skip"])
def test_reset_regions_go_on_as_parameters_of_their_own(inactive):
    """A 6 x 8 matrix, reset beyond 2 x 4 and later beyond 4 x 8 as three stages do, against torch's
    AdamW for each part ("masked": for each weight), begun again where a reset says so."""
    boxes = [(2, 4), (4, 8), (6, 8)]
    generator, rng = torch.Generator().manual_seed(6), random.Random(6)
    matrix = torch.nn.Parameter(torch.randn(6, 8, generator=generator))
    ours = AdamW([matrix], **GRID, inactive=inactive)

    def mask(extent):
        found = torch.zeros(6, 8, dtype=torch.bool)
        found[box(extent)] = True
        return found

    shells = [mask(boxes[0]), mask(boxes[1]) & ~mask(boxes[0]), ~mask(boxes[1])]
    masks = shells if inactive != "masked" else list(torch.eye(48).bool().view(48, 6, 8))
    parts = [torch.nn.Parameter(matrix.detach()[m].clone()) for m in masks]
    theirs = [torch.optim.AdamW([part], **GRID) for part in parts]
    for stage in range(3):
        if stage:
            ours.reset({matrix: boxes[stage - 1]}, {matrix: boxes[stage]})
            for i, m in enumerate(masks):
                if (m & shells[stage]).any():
                    theirs[i] = torch.optim.AdamW([parts[i]], **GRID)
        for step in range(6):
            extent = (1, 2) if step == 0 else (rng.randint(1, 6), rng.randint(1, 8))
            gradient = torch.randn(6, 8, generator=generator) * mask(extent)
            matrix.grad = gradient.clone()
            ours.step(active=[{matrix: extent}])
            for i, (m, part) in enumerate(zip(masks, parts, strict=True)):
                undivided = stage == 0 and inactive != "masked"
                begun = bool(theirs[i].state) and inactive == "dense"
                if undivided or begun or (mask(extent) & m).any():
                    part.grad = gradient[m]
                    theirs[i].step()
                torch.testing.assert_close(matrix[m], part, rtol=1e-6, atol=1e-6)
            saved, ours = ours.state_dict(), AdamW([matrix], **GRID, inactive=inactive)
            ours.load_state_dict(saved)


def test_reset_of_boxes_that_do_not_nest_changes_nothing():
    (matrix,) = parameters()[1:2]  # 4 x 6
    optimizer = AdamW([matrix], **GRID)
    matrix.grad = torch.ones_like(matrix)
    optimizer.step()
    optimizer.reset({matrix: (2, 3)}, {matrix: (4, 6)})
    before = str(optimizer.state_dict())
    for old, new in (((3, 2), (4, 6)), ((3, 4), (2, 6)), ((1, 1), (4, 7))):
        with pytest.raises(ValueError, match=r"not nested|not within|does not fit"):
            optimizer.reset({matrix: old}, {matrix: new})
    assert str(optimizer.state_dict()) == before


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


@pytest.mark.parametrize("inactive", ["dense", "masked", "skip"])
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


@pytest.mark.parametrize("inactive", ["dense", "masked", "skip"])
@pytest.mark.parametrize("largest", [0.5, 1e6])
def test_clipping_is_torchs_over_what_moves(inactive, largest):
    """As clip_grad_norm_ after the gradients of frozen boxes were zeroed; they are not written."""
    runs = []
    for own in (True, False):
        params = parameters()
        # A large eps: else the length of the gradient would not matter.
        optimizer = AdamW(params, lr=1e-2, eps=1.0, inactive=inactive)
        optimizer.freeze({params[1]: (2, 3)})
        generator = torch.Generator().manual_seed(2)
        for _ in range(3):
            for p in params:
                p.grad = torch.randn(p.shape, generator=generator)
            kept = [p.grad.clone() for p in params]
            if not own:
                params[1].grad[:2, :3] = 0
                torch.nn.utils.clip_grad_norm_(params, largest)
            active = [{p: tuple(p.shape) for p in params}]
            optimizer.step(active=active, clip_grad=largest if own else None)
            assert not own or all(torch.equal(p.grad, g) for p, g in zip(params, kept, strict=True))
        runs.append(params)
    for ours, theirs in zip(*runs, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)


class Stepper:
    """Has taken a step in the optimizer's place."""

    def __init__(self, optimizer):
        self.optimizer, self.calls = optimizer, 0

    def hand_back(self):
        self.calls += 1
        return {
            p: [count + 1 for _, count in state["shells"]]
            for p, state in self.optimizer.state.items()
        }


def test_who_steps_hands_back_before_the_counts_are_needed_or_anything_changes():
    (parameter,) = parameters()[1:2]
    optimizer = AdamW([parameter])
    parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    uses = [  # and how many steps are counted after each
        (optimizer.state_dict, 2),
        (optimizer.step, 4),
        (lambda: optimizer.freeze({parameter: (1, 1)}), 5),
        (lambda: optimizer.hand_over(Stepper(optimizer)), 6),
        (lambda: optimizer.reset({}, {parameter: (4, 6)}), 0),
    ]
    for use, steps in uses:
        stepper = Stepper(optimizer)
        optimizer.hand_over(stepper)
        assert optimizer.stepper is stepper
        use()
        assert stepper.calls == 1
        assert optimizer.stepper is not stepper
        assert optimizer.state[parameter]["shells"] == [((4, 6), steps)]
        optimizer.stepper = None
    saved = optimizer.state_dict()
    for forget in (optimizer.restart, lambda: optimizer.load_state_dict(saved)):
        stepper = Stepper(optimizer)
        optimizer.hand_over(stepper)
        forget()
        assert optimizer.stepper is None
        restored = [state["shells"] for state in optimizer.state.values()]
        assert restored in ([], [saved["state"][0]["shells"]])
        optimizer.state_dict()
        assert stepper.calls == 1


@pytest.mark.parametrize("inactive", ["dense", "masked", "skip"])
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
    with pytest.raises(ValueError, match=r"'sometimes'.*'dense', 'masked', 'skip'"):
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
