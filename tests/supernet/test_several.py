"""Several subnets in one call: each gets its part of the batch and the numbers it gets alone."""

from __future__ import annotations

import pytest
import torch
from oracles import bits_equal
from poison import poison_uninitialised_memory

from growtas import Subnet, kernels
from growtas.supernet.graph import GraphedForward

from .conftest import build
from .test_static import Steps, backend, boxes, close, drawn, recorded  # noqa: F401

NAN = float("nan")
BATCH = 6


def parts(count, *tensors):
    """Of every tensor the parts that the subnets get."""
    return zip(*(tensor.tensor_split(count) for tensor in tensors), strict=True)


def groups_of(seed):
    """One, two or three subnets."""
    subnets = drawn(14, seed)[2:]
    return [subnets[:1], subnets[1:3], subnets[3:6], subnets[6:9], subnets[9:11]]


def one_by_one(steps, subnets):
    """Logits of the ordinary path and, in `steps.plain`, the sum of its gradients."""
    steps.plain.zero_grad()
    logits = []
    for subnet, images, cotangent in zip(
        subnets, *zip(*parts(len(subnets), steps.images, steps.cotangent), strict=True), strict=True
    ):
        logits.append(steps.plain(images, subnet))
        logits[-1].backward(cotangent)
    return torch.cat(logits).detach()


def read(model, subnets):
    """Of every parameter, which entries some of the subnets reads."""
    masks = {name: torch.zeros_like(p, dtype=torch.bool) for name, p in model.named_parameters()}
    for subnet in subnets:
        for name, box in boxes(model, subnet).items():
            if box is not None:
                masks[name][box] = True
    return masks


@torch.no_grad()
def poison(model, clean, masks):
    """NaN in weights that no subnet reads, and 7 in gradients of them; else 0."""
    for name, parameter in model.named_parameters():
        parameter.copy_(torch.where(masks[name], clean[name], NAN))
        parameter.grad.copy_(torch.where(masks[name], 0.0, 7.0))


def assert_gradients(steps, masks, tolerance):
    """Those of one by one; where no subnet reads what was there before."""
    plain = dict(steps.plain.named_parameters())
    for name, parameter in steps.model.named_parameters():
        want = plain[name].grad
        want = torch.zeros_like(parameter) if want is None else want
        close(parameter.grad, torch.where(masks[name], want, 7.0), tolerance)
        assert torch.all(parameter.grad[~masks[name]] == 7.0), name


def test_a_list_of_subnets_has_the_bits_of_one_by_one(backend):  # noqa: F811
    steps = Steps(torch.float32, BATCH)
    for subnets in groups_of(0):
        want = one_by_one(steps, subnets)
        masks = read(steps.model, subnets)
        poison(steps.model, steps.clean, masks)
        logits = steps.model(steps.images, subnets, gradients=steps.accumulator)
        assert bits_equal(logits, want)
        logits.backward(steps.cotangent)
        assert_gradients(steps, masks, 1e-5)


def test_dense_gradients_of_a_list(backend):  # noqa: F811
    steps = Steps(batch=BATCH)
    for subnets in groups_of(1)[1:3]:
        one_by_one(steps, subnets)
        steps.model.zero_grad()
        steps.model(steps.images, tuple(subnets)).backward(steps.cotangent)
        for (name, actual), want in zip(
            steps.model.named_parameters(), steps.plain.parameters(), strict=True
        ):
            assert (actual.grad is None) == (want.grad is None), name
            if want.grad is not None:
                close(actual.grad, want.grad, 1e-12)


def test_extents_of_several_subnets(backend, monkeypatch):  # noqa: F811
    """Dozens of tables in a row, with NaN in everything that no subnet has."""
    poison_uninitialised_memory(monkeypatch)
    steps = Steps(batch=BATCH)
    tables = {count: steps.model.new_extents(count) for count in (1, 2, 3)}
    for seed in range(5):
        for subnets in groups_of(seed):
            want = one_by_one(steps, subnets)
            masks = read(steps.model, subnets)
            poison(steps.model, steps.clean, masks)
            extents = tables[len(subnets)]
            extents.write(subnets)
            logits = steps.model.forward_static(
                steps.images, extents, gradients=steps.accumulator
            )  # fmt: skip
            close(logits.detach(), want, 1e-12)
            logits.backward(steps.cotangent)
            assert_gradients(steps, masks, 1e-12)


@pytest.mark.parametrize(
    "options",
    [{}, {"class_token": False, "relative_position": False}, {"absolute_position": False},
     {"pool": "cls", "qkv_bias": "autoformer"}],
    ids=str,
)  # fmt: skip
def test_a_group_has_the_bits_of_a_call_of_its_own(backend, options):  # noqa: F811
    model = build(**options)
    images = torch.randn(BATCH, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    alone = model.new_extents()
    for subnets in groups_of(2):
        extents = model.new_extents(len(subnets))
        extents.write(subnets)
        with torch.no_grad():
            logits = model.forward_static(images, extents)
            for subnet, mine, own in zip(
                subnets, logits.tensor_split(len(subnets)), images.tensor_split(len(subnets)),
                strict=True,
            ):  # fmt: skip
                alone.write(subnet)
                assert bits_equal(mine, model.forward_static(own, alone))


def test_drop_path_and_autocast(backend):  # noqa: F811
    model = build(drop_path=0.5).train()
    images = torch.randn(BATCH, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    subnets = groups_of(3)[2]
    extents = model.new_extents(3)
    extents.write(subnets)

    def run():
        generator = torch.Generator().manual_seed(3)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return model.forward_static(images, extents, generator=generator)

    logits = run()
    assert logits.dtype == torch.bfloat16
    assert logits.isfinite().all()
    assert bits_equal(logits, run())
    model.eval()
    assert not torch.equal(logits, run())


def test_the_host_does_the_same_for_all_subnets(monkeypatch):
    steps = Steps(torch.float32, 4)
    extents = steps.model.new_extents(2)

    def step():
        logits = steps.model.forward_static(steps.images, extents, gradients=steps.accumulator)
        logits.backward(steps.cotangent)

    traces = []
    subnets = drawn(6, seed=5)
    for pair in (subnets[:2], subnets[2:4], subnets[4:]):
        extents.write(pair)
        traces.append(recorded(monkeypatch, step))
    assert len(traces[0]) > 1000
    assert traces[0] == traces[1] == traces[2]


def test_what_cannot_be_divided_is_refused():
    steps = Steps(torch.float32, BATCH)
    some = drawn(4)
    message = "a batch of 6 cannot be divided in {} equal groups"
    for count, subnets in ((4, some), (0, [])):
        with pytest.raises(ValueError, match=message.format(count)):
            steps.model(steps.images, subnets)
    with pytest.raises(ValueError, match=message.format(4)):
        steps.model.forward_static(steps.images, steps.model.new_extents(4))
    with pytest.raises(ValueError, match="images must be"):
        steps.model(steps.images[..., :8], some[:2])
    with pytest.raises(ValueError, match="embed_dim"):
        steps.model(steps.images, [some[0], Subnet(64, (1,), (1.0,))])


def test_a_space_whose_widths_are_no_multiples_of_8():
    """All of its subnets can be written."""
    from growtas import SearchSpace, Supernet, SupernetSize

    space = SearchSpace(
        embed_dim=(20, 32), depth=(1,), num_heads=(1,), mlp_ratio=(1.5, 2.0), head_dim=8,
        supernet=SupernetSize(embed_dim=64, num_heads=2, mlp_ratio=2.0, depth=1),
    )  # fmt: skip
    model = Supernet(space, 8, 4, 5)
    extents = model.new_extents()
    assert extents.embed_multiple == 4
    images = torch.randn(2, 3, 8, 8)
    extents.write(space.smallest())
    with kernels.use_backend("reference"), torch.no_grad():
        close(model.forward_static(images, extents), model(images, space.smallest()), 1e-5)


def test_a_graphed_forward_pass_of_several_subnets():
    model = build(drop_path=0.5)
    images = torch.randn(BATCH, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    subnets = drawn(9, seed=7)[2:]
    forward = GraphedForward(model, images, groups=2)
    assert forward.groups == 2
    model.eval()
    with torch.no_grad():
        for i in range(3):
            pair = subnets[2 * i : 2 * i + 2]
            close(forward(images, pair), model(images, pair), 1e-5)
            own = images[: BATCH // 2]  # the same for both, and again for others
            want = torch.cat([model(own, subnet) for subnet in pair])
            close(forward(own, pair), want, 1e-5)
            close(forward(None, pair[::-1]), want.roll(BATCH // 2, 0), 1e-5)
    with pytest.raises(ValueError, match="3 subnets for 2 groups"):
        forward(images, subnets[:3])
    with pytest.raises(ValueError, match=r"images are torch.float32 \(4, 3, 16, 16\)"):
        forward(images[:4], subnets[:2])
    with pytest.raises(ValueError, match="cannot be divided in 4"):
        GraphedForward(model, images, groups=4)
