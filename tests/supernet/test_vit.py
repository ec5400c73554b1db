"""The supernet reads exactly its slices, keeps no state, and fits every ordinary training loop."""

from __future__ import annotations

import contextlib
import copy
import random
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._dynamo.utils import counters

import growtas
from growtas import kernels
from growtas.kernels import dispatch, native_library
from growtas.supernet.vit import layers

from .conftest import SPACE, build


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"pool": "cls"},
        {"class_token": False},
        {"relative_position": False},
        {"absolute_position": False},
        {"max_relative_position": 2},
        {"qkv_bias": "autoformer"},
        {"in_chans": 1},
        {"image_size": (8, 20)},
    ],
    ids=str,
)
def test_extents_are_exactly_what_a_subnet_reads(options, subnets):
    """Everything outside may be NaN; every entry inside has an influence (a gradient)."""
    model = build(**options)
    channels, (height, width) = model.config["in_chans"], model.image_size
    images = torch.randn(2, channels, height, width)
    for subnet in subnets:
        boxes = model.extents(subnet)
        clean = model(images, subnet)
        poisoned = copy.deepcopy(model)
        for name, parameter in poisoned.named_parameters():
            values = torch.full_like(parameter, float("nan"))
            if name in boxes:
                box = tuple(slice(0, extent) for extent in boxes[name])
                values[box] = parameter.detach()[box]
            parameter.data = values
        assert torch.equal(poisoned(images, subnet), clean)

        model.zero_grad()
        model(images, subnet).square().sum().backward()
        for name, parameter in model.named_parameters():
            if name not in boxes:
                assert parameter.grad is None
            elif not name.endswith(("rel_pos", "qkv.bias")):
                # tables have rows for distances a small grid lacks; a key bias has no influence
                box = tuple(slice(0, extent) for extent in boxes[name])
                assert (parameter.grad[box] != 0).float().mean() > 0.9, name


def test_golden_shape_of_a_step(model, images, subnets):
    """An ordinary loop lowers the loss of the subnet it trains."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    labels = torch.tensor([0, 3, 6])
    for subnet in subnets[:2]:
        first = None
        for _ in range(12):
            loss = F.cross_entropy(model(images, subnet), labels)
            first = first or loss.item()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        assert loss.item() < 0.5 * first


def test_no_hidden_current_subnet(model, images, subnets):
    """Two subnets in flight at once: each backward belongs to its own forward."""
    small, large = subnets[:2]
    alone = {}
    for subnet in (small, large):
        model.zero_grad()
        model(images, subnet).square().sum().backward()
        alone[subnet] = model.head.weight.grad.clone()
    first, second = model(images, small), model(images, large)
    model.zero_grad()
    first.square().sum().backward()
    assert torch.equal(model.head.weight.grad, alone[small])
    second.square().sum().backward()
    torch.testing.assert_close(model.head.weight.grad, alone[small] + alone[large])


def test_backends_agree(model, images, subnets):
    if reason := native_library.unavailable():
        pytest.skip(reason)
    for subnet in subnets:
        results = []
        for backend in ("reference", "native"):
            with kernels.use_backend(backend):
                model.zero_grad()
                logits = model(images, subnet)
                logits.square().sum().backward()
                gradients = [p.grad.clone() for p in model.blocks[0].parameters()]
                results.append([logits.detach(), *gradients])
        for a, b in zip(*results, strict=True):
            torch.testing.assert_close(a, b, rtol=2e-5, atol=2e-5 * max(1.0, b.abs().max().item()))


def test_accumulate_equals_dense_over_several_subnets(model, images, subnets):
    """The sum over subnets, and after zero_ only the newest step is left."""
    dense = copy.deepcopy(model)
    accumulator = kernels.GradientAccumulator(model.parameters())
    for chosen in (subnets[1:4], subnets[:1]):
        accumulator.zero_()
        dense.zero_grad()
        for subnet in chosen:
            model(images, subnet, gradients=accumulator).square().sum().backward()
            dense(images, subnet).square().sum().backward()
        for (name, a), b in zip(model.named_parameters(), dense.parameters(), strict=True):
            want = torch.zeros_like(a) if b.grad is None else b.grad
            torch.testing.assert_close(a.grad, want, msg=lambda m, name=name: f"{name}: {m}")
    boxes = model.extents(subnets[0])
    weight = model.blocks[0].mlp.fc1.weight
    assert accumulator.dirty(weight) == boxes["blocks.0.mlp.fc1.weight"]
    assert accumulator.dirty(model.blocks[3].mlp.fc1.weight) is None


def test_autocast_trains_close_to_float32(model, images, subnets):
    subnet = subnets[1]
    want = model(images, subnet)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(images, subnet)
    assert logits.dtype == torch.bfloat16
    assert (logits.float() - want).abs().max() < 0.03 * want.abs().max()
    logits.float().square().sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in model.parameters() if p.grad is not None)


def test_deepcopy_after_a_step_is_independent(model, images, subnets):
    model(images, subnets[0]).sum().backward()
    twin = copy.deepcopy(model)
    before = twin(images, subnets[0])
    with torch.no_grad():
        model.head.bias.add_(1.0)
    assert torch.equal(twin(images, subnets[0]), before)


def test_drop_path_follows_the_supernet_depth_and_is_off_in_eval(images, subnets):
    model = build(drop_path=0.3)
    assert [block.drop_path for block in model.blocks] == pytest.approx([0.0, 0.1, 0.2, 0.3])
    subnet = subnets[1]
    model.eval()
    expected = build()(images, subnet)
    assert torch.equal(model(images, subnet), expected)
    model.train()
    torch.manual_seed(0)
    draws = torch.stack([model(images, subnet) for _ in range(200)])
    assert draws.std(0).max() > 1e-3
    torch.testing.assert_close(draws.mean(0), expected, rtol=0.3, atol=0.3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_drop_path_in_low_precision(dtype):
    """A factor is 0 or 1 / keep however coarse the draw is; 1 where nothing is dropped."""
    x = torch.zeros(5000, 1, dtype=dtype)
    for keep in (1.0, 0.999, 0.75):
        factors = layers.survival(x, keep, (5000,))
        assert factors.dtype == torch.float32
        assert set(factors.tolist()) <= {0.0, (torch.ones(1) / keep).item()}
        assert factors.mean() == pytest.approx(1, abs=0.03)
    assert torch.all(layers.survival(x, torch.ones(1, 1), (2, 5000)) == 1)


def test_drop_path_keeps_or_drops_whole_samples():
    block = build(drop_path=0.5).blocks[-1]
    factors = block._survival(torch.zeros(200, 3, 4))
    assert set(factors.tolist()) == {0.0, 2.0}
    assert 60 < (factors == 0).sum() < 140
    assert block.eval()._survival(torch.zeros(200, 3, 4)) is None


@pytest.mark.parametrize(
    ("space", "options"),
    [
        (SPACE, {"drop_path": 0.3}),
        # its largest subnet is as wide as the supernet, as in the published spaces
        (growtas.SearchSpace.preset("digits").restrict(depth=(4,)), {"class_token": False}),
        (growtas.SearchSpace((32, 48), (2, 3), (1, 2), (2.0, 3.0), 16), {}),
    ],
    ids=["micro", "digits", "one head"],
)
def test_one_graph_per_depth_under_torch_compile(space, options):
    """Widths, heads and hidden sizes are dynamic; only the depth unrolls another graph."""
    torch._dynamo.reset()
    counters["stats"].clear()
    model = growtas.Supernet(space, 8, 2, 10, 1, **options)
    compiled = torch.compile(model, dynamic=True, fullgraph=True, backend="aot_eager")
    images, rng = torch.randn(2, 1, 8, 8), random.Random(0)
    subnets = [space.largest(), *(space.sample(rng) for _ in range(4)), space.smallest()]
    for subnet in subnets:
        want, got = (
            torch.autograd.grad(run(images, subnet).square().sum(), model.head.weight)[0]
            for run in (model, compiled)
            if torch.manual_seed(0)  # of drop path
        )
        torch.testing.assert_close(got, want)
    assert counters["stats"]["unique_graphs"] == len({s.depth for s in subnets})


def test_state_dict_layout():
    """Names and shapes other code relies on (checkpoints, optimizer groups)."""
    model = build()
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    assert shapes["patch_embed.weight"] == (56, 48)
    assert shapes["cls_token"] == (1, 1, 56)
    assert shapes["pos_embed"] == (1, 17, 56)
    assert shapes["blocks.3.attn.qkv.weight"] == (3, 4, 8, 56)
    assert shapes["blocks.3.attn.qkv.bias"] == (3, 4, 8)
    assert shapes["blocks.3.attn.rel_pos"] == (4, 30, 8)
    assert shapes["blocks.3.attn.proj.weight"] == (56, 32)
    assert shapes["blocks.3.mlp.fc1.weight"] == (224, 56)
    assert shapes["blocks.3.mlp.fc2.weight"] == (56, 224)
    assert shapes["head.weight"] == (7, 56)
    assert build(qkv_bias="autoformer").blocks[0].attn.qkv.bias.shape == (96,)
    assert model.no_weight_decay() == {"pos_embed", "cls_token"}


def test_initialisation_follows_autoformer():
    torch.manual_seed(0)
    space = growtas.SearchSpace.preset("autoformer-tiny")
    state = growtas.Supernet(space).state_dict()
    for name, value in state.items():
        if name.startswith("patch_embed"):
            assert value.abs().max() <= 768**-0.5
            assert value.std() == pytest.approx(768**-0.5 / 3**0.5, rel=0.15)
        elif "norm" in name:
            assert torch.all(value == float(name.endswith("weight")))
        elif name.endswith("bias"):
            assert torch.all(value == 0)
        else:
            assert value.std() == pytest.approx(0.02, rel=0.15), name
    wide = growtas.Supernet(space, init_std=0.1)
    assert wide.blocks[0].mlp.fc2.weight.std().item() == pytest.approx(0.1, rel=0.05)
    assert wide.blocks[0].attn.rel_pos.std().item() == pytest.approx(0.1, rel=0.05)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 18}, "image_size 18 x 18 is not a multiple of patch_size 4"),
        ({"num_classes": 0}, "num_classes must be at least 1, got 0"),
        ({"drop_path": 1.0}, r"drop_path is 1.0, it must be in \[0, 1\)"),
        ({"layer_norm_eps": -1e-5}, "layer_norm_eps is -1e-05, it must be 0 or more"),
        ({"init_std": 0.0}, r"init_std is 0.0, it must be in \(0, 1\]"),
        ({"pool": "max"}, "pool is 'max', allowed: mean, cls"),
        ({"pool": "cls", "class_token": False}, "needs class_token=True"),
        ({"qkv_bias": "interleaved"}, "allowed: blocks, autoformer"),
        ({"max_relative_position": -1}, "max_relative_position is -1"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        build(**options)


def test_bad_inputs_are_named(model, images):
    Subnet = growtas.Subnet
    for subnet, message in [
        (Subnet(64, (2, 2), (2.0, 2.0)), "embed_dim = 64 is larger than the supernet's 56"),
        (Subnet(24, (2,) * 5, (2.0,) * 5), "depth = 5 is larger than the supernet's 4"),
        (Subnet(24, (2, 5), (2.0, 2.0)), r"num_heads\[1\] = 5 is larger than the supernet's 4"),
        (Subnet(56, (2, 2), (2.0, 5.0)), r"mlp_ratio\[1\] = 5.0 is larger than the supernet's 4.0"),
    ]:
        with pytest.raises(ValueError, match=message):
            model(images, subnet)
    with pytest.raises(TypeError, match="expected a Subnet, got 24"):
        model(images, 24)
    with pytest.raises(ValueError, match=r"images must be \[B, 3, 16, 16\], got \(3, 1, 16, 16\)"):
        model(images[:, :1], SPACE.smallest())


@pytest.mark.parametrize("way", ["one", "several", "static"])
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda x: (255 * x).to(torch.uint8), TypeError, "images must be of floats .*torch.uint8"),
        (lambda x: x.long(), TypeError, "images must be of floats .*torch.int64"),
        (lambda x: x.numpy(), TypeError, "images must be a torch.Tensor, got ndarray"),
        (lambda x: x.to("meta"), ValueError, "images must be .*, got a tensor on meta"),
    ],
    ids=["uint8", "int64", "numpy", "meta"],
)
def test_images_that_are_refused(model, images, way, change, error, message):
    subnet = SPACE.smallest()
    forward, given = {
        "one": (model, subnet),
        "several": (model, [subnet] * 3),
        "static": (model.forward_static, model.new_extents()),
    }[way]
    with pytest.raises(error, match=message):
        forward(change(images), given)


@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("backend", ["reference", "native", "triton"])
def test_an_empty_batch_has_gradients_of_zero(model, images, backend, accumulate, monkeypatch):
    if backend == "triton":
        pytest.importorskip("triton")
        monkeypatch.setattr(dispatch, "_cache", {})
        if torch.cuda.is_available():
            model, images = model.cuda(), images.cuda()
        else:
            monkeypatch.setenv("TRITON_INTERPRET", "1")
    try:
        with kernels.use_backend(backend):
            gradients = kernels.GradientAccumulator(model.parameters()) if accumulate else None
            empty = images[:0].requires_grad_()
            logits = model(empty, SPACE.largest(), gradients=gradients)
            logits.sum().backward()
    except kernels.BackendUnavailable as error:
        pytest.skip(str(error))
    assert logits.shape == (0, 7)
    assert empty.grad.shape == (0, 3, 16, 16)
    read = model.extents(SPACE.largest())
    for name, parameter in model.named_parameters():
        if name in read:
            assert not parameter.grad.any(), name


class _Wrapper(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, images, subnet):
        return self.inner(images, subnet)


def test_a_model_on_another_device_than_the_images_is_named(model, images):
    with pytest.raises(ValueError, match="images are on cpu, the model on meta"):
        model.to("meta")(images, SPACE.smallest())


def test_works_inside_another_module_and_in_half_precision(model, images, subnets):
    wrapped = _Wrapper(copy.deepcopy(model)).to(torch.bfloat16)
    logits = wrapped(images.bfloat16(), subnets[0])
    want = model(images, subnets[0])
    assert (logits.float() - want).abs().max() < 0.05 * want.abs().max()


@pytest.mark.parametrize("autocast", [False, True])
def test_outputs_of_layer_norms_are_not_kept_but_computed_again_to_the_bit(autocast, monkeypatch):
    """The same logits and gradients as when they are kept."""
    model = build()
    images = torch.randn(9, model.config["in_chans"], *model.image_size)
    outputs: list[weakref.ref] = []
    for block in model.blocks:
        fc1 = block.mlp.fc1  # given the norm's output
        fc1.register_forward_pre_hook(lambda _m, given: outputs.append(weakref.ref(given[0])))

    def run():
        model.zero_grad()
        outputs.clear()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            logits = model(images, SPACE.largest())
        kept = sum(output() is not None for output in outputs)
        logits.float().square().sum().backward()
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        return logits.detach(), grads, kept

    logits, gradients, kept = run()
    assert kept == 0
    monkeypatch.setattr(layers, "computed_again", lambda y, again: contextlib.nullcontext())
    plain_logits, plain_gradients, kept = run()
    assert kept == SPACE.largest().depth
    assert torch.equal(logits, plain_logits)
    for found, wanted in zip(gradients, plain_gradients, strict=True):
        assert torch.equal(found, wanted)
