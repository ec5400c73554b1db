"""forward_static: for any subnet the ordinary path's numbers, from launches that are always the
same, with NaN in everything the subnet does not have."""

from __future__ import annotations

import random

import pytest
import torch
from oracles import BACKENDS
from poison import poison_uninitialised_memory
from torch.utils._python_dispatch import TorchDispatchMode

from growtas import Subnet, kernels
from growtas.kernels import attention, layer_norm, linear  # noqa: F401  registers the operators
from growtas.kernels.attention import reference as attention_reference
from growtas.kernels.layer_norm import reference as layer_norm_reference
from growtas.kernels.linear import reference as linear_reference
from growtas.supernet.vit.layers import Block

from .conftest import SPACE, build

NAN = float("nan")


@pytest.fixture(params=BACKENDS)
def backend(request):
    try:
        with kernels.use_backend(request.param):
            yield request.param
    except kernels.BackendUnavailable as error:
        pytest.skip(str(error))


def drawn(count, seed=0):
    """Random subnets, of the space and of any other sizes that fit the supernet and its widths."""
    rng = random.Random(seed)
    subnets = [SPACE.smallest(), SPACE.largest()]
    while len(subnets) < count:
        depth = rng.randint(1, 4)
        heads = tuple(rng.randint(1, 4) for _ in range(depth))
        ratios = tuple(rng.choice([0.5, 1.5, 2.0, 4.0]) for _ in range(depth))
        subnets += [SPACE.sample(rng), Subnet(8 * rng.randint(1, 7), heads, ratios)]
    return subnets


def boxes(model, subnet):
    """Of every parameter, what the subnet has: a box, or nothing."""
    found = model.extents(subnet)
    return {
        name: tuple(slice(0, n) for n in found[name]) if name in found else None
        for name, _ in model.named_parameters()
    }


@torch.no_grad()
def poison(model, clean, subnet):
    """Outside the subnet's boxes NaN in weights and 7 in gradients; gradients 0 inside."""
    inner = boxes(model, subnet)
    for name, parameter in model.named_parameters():
        parameter.fill_(NAN)
        parameter.grad.fill_(7.0)
        if inner[name] is not None:
            parameter[inner[name]] = clean[name][inner[name]]
            parameter.grad[inner[name]] = 0
    return inner


class Steps:
    """One static step function, and the ordinary step to compare it with."""

    def __init__(self, dtype=torch.float64, batch=2, **options):
        self.model = build(**options).to(dtype)
        self.plain = build(**options).to(dtype)
        self.clean = {n: p.detach().clone() for n, p in self.model.named_parameters()}
        self.accumulator = kernels.GradientAccumulator(self.model.parameters())
        self.extents = self.model.new_extents()
        generator = torch.Generator().manual_seed(1)
        channels = self.model.config["in_chans"]
        self.images = torch.randn(batch, channels, *self.model.image_size, generator=generator)
        self.images = self.images.to(dtype)
        self.cotangent = torch.randn(batch, 7, generator=generator).to(dtype)

    def static(self, subnet):
        self.inner = poison(self.model, self.clean, subnet)
        self.extents.write(subnet)
        logits = self.model.forward_static(self.images, self.extents, gradients=self.accumulator)
        logits.backward(self.cotangent)
        return logits.detach()

    def ordinary(self, subnet):
        self.plain.zero_grad()
        logits = self.plain(self.images, subnet)
        logits.backward(self.cotangent)
        return logits.detach()

    def check(self, subnet, tolerance):
        close(self.static(subnet), self.ordinary(subnet), tolerance)
        plain = dict(self.plain.named_parameters())
        for name, parameter in self.model.named_parameters():
            box, grad = self.inner[name], parameter.grad.clone()
            if box is not None:
                close(grad[box], plain[name].grad[box], tolerance)
                grad[box] = 7.0
            assert torch.all(grad == 7.0), f"{name}: a gradient outside of {subnet}"


def close(actual, want, tolerance):
    assert (actual - want).abs().max() <= tolerance * want.abs().max().clamp(min=1.0)


def test_hundreds_of_subnets_in_a_row(backend, monkeypatch):
    """Logits and gradients in float64; what the subnet lacks is NaN before every step."""
    poison_uninitialised_memory(monkeypatch)
    steps = Steps()
    for subnet in drawn(200):
        steps.check(subnet, 1e-12)


def test_float32(backend, monkeypatch):
    """At most three times the error of the ordinary path."""
    poison_uninitialised_memory(monkeypatch)
    exact, steps = Steps(), Steps(torch.float32)
    for subnet in drawn(30, seed=1):
        want, actual, plain = exact.ordinary(subnet), steps.static(subnet), steps.ordinary(subnet)
        pairs = {"logits": (want, actual, plain)}
        golden, ordinary = (dict(s.named_parameters()) for s in (exact.plain, steps.plain))
        for name, parameter in steps.model.named_parameters():
            if (box := steps.inner[name]) is not None:
                gradients = (golden[name].grad, parameter.grad, ordinary[name].grad)
                pairs[name] = tuple(g[box] for g in gradients)
        for name, (want, actual, plain) in pairs.items():
            error, allowed = ((x.double() - want).abs().max() for x in (actual, plain))
            scale = torch.finfo(torch.float32).eps * want.abs().max()
            assert error <= 3 * allowed + 8 * scale, name


@pytest.mark.parametrize(
    "options",
    [
        {"pool": "cls"},
        {"class_token": False},
        {"relative_position": False},
        {"absolute_position": False},
        {"max_relative_position": 1},
        {"qkv_bias": "autoformer"},
        {"in_chans": 1},
        {"image_size": (8, 20)},
    ],
    ids=str,
)
def test_every_kind_of_supernet(backend, options, monkeypatch):
    poison_uninitialised_memory(monkeypatch)
    steps = Steps(**options)
    for subnet in drawn(12, seed=2):
        steps.check(subnet, 1e-12)


def test_dense_gradients_are_zero_outside(backend):
    steps = Steps()
    for subnet in drawn(6, seed=3):
        inner = poison(steps.model, steps.clean, subnet)
        for parameter in steps.model.parameters():
            parameter.grad = None
        steps.extents.write(subnet)
        steps.model.forward_static(steps.images, steps.extents).backward(steps.cotangent)
        for name, parameter in steps.model.named_parameters():
            outside = torch.ones_like(parameter, dtype=torch.bool)
            if inner[name] is not None:
                outside[inner[name]] = False
            assert torch.all(parameter.grad[outside] == 0), name
        for parameter in steps.model.parameters():  # as `poison` wants them
            parameter.grad = torch.zeros_like(parameter)


def test_inactive_blocks_pass_the_stream_on_to_the_bit(backend):
    """A block of NaN beyond the depth changes no bit of the logits."""
    steps = Steps(torch.float32)
    subnet = Subnet(32, (2, 3), (2.0, 4.0))
    logits = steps.static(subnet)
    finite = steps.model
    with torch.no_grad():
        for name, parameter in finite.named_parameters():
            parameter.copy_(steps.clean[name])
    again = finite.forward_static(steps.images, steps.extents)
    assert torch.equal(logits, again)


def test_drop_path_takes_its_factors_from_one_draw(backend, monkeypatch):
    model = build(drop_path=0.5).train()
    images = torch.randn(16, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    survival = model._survival(images, torch.Generator().manual_seed(3))
    assert survival.shape == (4, 2, 16)
    assert set(survival[3].flatten().tolist()) == {0.0, 2.0}
    assert torch.all(survival[0] == 1)
    extents = model.new_extents()
    subnet = Subnet(32, (2, 3, 1), (2.0, 4.0, 2.0))
    extents.write(subnet)
    actual = model.forward_static(
        images, extents, generator=torch.Generator().manual_seed(3)
    )  # fmt: skip
    draws = {block: iter(factors) for block, factors in zip(model.blocks, survival, strict=True)}
    monkeypatch.setattr(Block, "_survival", lambda block, x: next(draws[block]))
    torch.testing.assert_close(actual, model(images, subnet))
    model.eval()
    assert model._survival(images, None) is None


def test_autocast(backend):
    steps = Steps(torch.float32)
    for subnet in drawn(4, seed=4):
        want = steps.ordinary(subnet)
        poison(steps.model, steps.clean, subnet)
        steps.extents.write(subnet)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = steps.model.forward_static(
                steps.images, steps.extents, gradients=steps.accumulator
            )
            plain = steps.plain(steps.images, subnet)
        assert logits.dtype == torch.bfloat16
        logits.backward(steps.cotangent.bfloat16())
        error, allowed = ((x.float() - want).abs().max() for x in (logits, plain))
        assert error <= 2 * allowed + 2**-7 * want.abs().max()


def test_what_does_not_fit_is_refused():
    steps = Steps()
    with pytest.raises(ValueError, match="images must be"):
        steps.model.forward_static(steps.images[..., :8], steps.extents)
    other = kernels.Extents(3, 56, 4, 8, 224)
    with pytest.raises(ValueError, match="3 blocks, the supernet 4"):
        steps.model.forward_static(steps.images, other)
    with pytest.raises(ValueError, match="multiples of 4"):
        steps.extents.write(Subnet(8, (1,), (1.25,)))


def described(value):
    """All of an argument that a launch can depend on, but not the numbers in a tensor."""
    if isinstance(value, torch.Tensor):
        return (tuple(value.shape), value.stride(), value.dtype, value.storage_offset())
    if isinstance(value, (list, tuple)):
        return tuple(described(v) for v in value)
    return repr(value)


class Recorder(TorchDispatchMode):
    """Every operator with its arguments, those inside of growtas's operators too."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        self.calls.append((str(function), described(args), described(list(kwargs.items()))))
        assert function not in (
            torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default,
        ), "the host reads the device"  # fmt: skip
        return function(*args, **kwargs)


def recorded(monkeypatch, step):
    """What `step` calls, on the reference backend."""
    recorder = Recorder()

    def watched(function):
        def wrapper(*args):
            with recorder:
                return function(*args)

        return wrapper

    with monkeypatch.context() as patch:
        for module in (linear_reference, layer_norm_reference, attention_reference):
            for name in ("forward", "backward"):
                patch.setattr(module, name, watched(getattr(module, name)))
        with kernels.use_backend("reference"), recorder:
            step()
    return recorder.calls


def test_the_host_does_the_same_for_every_subnet(monkeypatch):
    """No shape, stride, branch or argument of any operator depends on the subnet."""
    steps = Steps(torch.float32, drop_path=0.2)

    def step():
        logits = steps.model.forward_static(
            steps.images, steps.extents, gradients=steps.accumulator
        )
        logits.backward(steps.cotangent)

    traces = []
    for subnet in drawn(4, seed=5):
        steps.extents.write(subnet)
        traces.append(recorded(monkeypatch, step))
    assert len(traces[0]) > 1000
    assert any("growtas.linear_backward" in name for name, *_ in traces[0])
    for trace in traces[1:]:
        assert trace == traces[0]


def test_the_recorder_sees_the_ordinary_path_change(monkeypatch):
    """The test above can fail."""
    steps = Steps(torch.float32)
    small, large = (
        recorded(monkeypatch, lambda s=s: steps.ordinary(s)) for s in drawn(2)
    )  # fmt: skip
    assert small != large
