"""linear on Triton: every width class and fusion, sizes from the host and from the device."""

from __future__ import annotations

import oracles
import pytest
import several
import torch
from linear_cases import case, check, check_accumulation
from oracles import DTYPES, bits_equal

from growtas import kernels
from growtas.kernels.call import Grads
from growtas.kernels.extents import LinearExtents, LinearSizes
from growtas.kernels.linear import gpu, gpu_plan
from growtas.kernels.linear.api import Around, LinearCall
from growtas.kernels.triton import configs

PLAIN = Around(False, None, None)
OPERANDS = ("x", "weight", "bias", "residual")


@pytest.fixture(autouse=True)
def _several_splits(monkeypatch):
    """The tests' few rows would be summed by one program."""
    monkeypatch.setattr(gpu_plan, "MIN_SPLIT", 16)


@pytest.fixture
def _large_tiles(monkeypatch, device):
    """In the interpreter it is programs that take time, not products."""
    if device == "cpu":
        for name, bits, sizes in list(configs.TABLES[80]):
            blocks = (256, 256, 16) if "weight" in name else (16, 256, 256)
            if name.startswith("linear"):
                blocks = (256, 256) if "fold" in name else blocks
                monkeypatch.setitem(
                    configs.TABLES[80], (name, bits, sizes), configs.Config(blocks, 4, 1)
                )


@pytest.fixture
def launched(monkeypatch):
    """The names of the kernels launched, in order."""
    names = []
    run = gpu_plan.Launch.run

    def counted(self):
        names.append(self.kernel.__name__)
        run(self)

    monkeypatch.setattr(gpu_plan.Launch, "run", counted)
    return names


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("in_features", "out_features"), [(1, 1), (15, 33), (16, 32), (129, 70)])
def test_plain(device, dtype, in_features, out_features):
    inputs, cotangent = case(in_features, out_features, device=device)
    check(inputs, cotangent, dtype, out_features=out_features)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("fused", ["input_activation", "scale", "residual", "all"])
def test_fused(device, dtype, fused):
    """Each alone and all at once, on the slices of stacked matrices."""
    arguments = {"input_activation": "gelu"} if fused in ("input_activation", "all") else {}
    if fused in ("scale", "all"):
        arguments["sample_scale"] = torch.tensor([0.0, 1.25, 1.0], device=device)
    residual = fused in ("residual", "all")
    inputs, cotangent = case(35, 18, shape=(2, 3, 7), residual=residual, device=device)
    check(inputs, cotangent, dtype, out_features=18, **arguments)


@pytest.mark.usefixtures("_large_tiles")
@pytest.mark.parametrize("width", oracles.EMBED_WIDTHS)
def test_autoformer_embed_widths(device, width):
    """q, k and v of every embed dim, in the buffers of its space; the bias read as a prefix."""
    in_max = next(m for m in (256, 448, 640) if m >= width)
    inputs, cotangent = case(
        width, 3 * 64, rows=(1, 5), in_max=in_max, shape=(3, 4, 64), flat_bias=True, device=device
    )
    actual = check(inputs, cotangent, torch.float16, out_features=3 * 64)
    assert torch.all(actual["bias"][3 * 3 * 64 :] == 0)


@pytest.mark.usefixtures("_large_tiles")
@pytest.mark.parametrize("hidden", oracles.HIDDEN_WIDTHS)
def test_autoformer_hidden_widths(device, hidden):
    """fc1, then fc2 with its input's GELU, a factor and a residual, at every hidden width."""
    inputs, cotangent = case(216, hidden, rows=(1, 5), in_max=256, shape=(2560,), device=device)
    check(inputs, cotangent, torch.float16, out_features=hidden)
    inputs, cotangent = case(
        hidden, 216, rows=(1, 5), in_max=2560, shape=(256,), residual=True, device=device
    )
    check(
        inputs, cotangent, torch.float16, out_features=216, input_activation="gelu",
        sample_scale=torch.tensor([1.25], device=device),
    )  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_float32_parameters_and_stream(device, dtype):
    """As under autocast: low-precision activations, float32 parameters and residual stream."""
    inputs, cotangent = case(24, 40, residual=True, device=device)
    inputs["x"] = inputs["x"].to(dtype)
    leaves = [inputs[name].requires_grad_() for name in OPERANDS]
    y = kernels.linear(*leaves[:3], out_features=40, residual=leaves[3])
    assert y.dtype == torch.float32
    gradients = torch.autograd.grad(y, leaves, cotangent)
    assert [g.dtype for g in gradients] == [dtype, *[torch.float32] * 3]
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    want = oracles.linear(*exact[:3], out_features=40, residual=exact[3])
    tolerance = {"rtol": 0, "atol": 8 * torch.finfo(dtype).eps}
    torch.testing.assert_close(y.double(), want, **tolerance)
    for actual, golden in zip(
        gradients, torch.autograd.grad(want, exact, cotangent.double()), strict=True
    ):
        torch.testing.assert_close(actual.double(), golden, **tolerance)


@pytest.mark.parametrize("shape", [(10,), (3, 2, 5)], ids=["matrix", "stacked"])
def test_accumulates_inside_and_keeps_every_bit_outside(device, shape):
    check_accumulation(shape, device=device, rows=(3, 21))


@pytest.mark.parametrize("trained", ["weight", "bias"])
def test_one_gradient_only(device, trained):
    inputs, cotangent = case(20, 70, device=device)
    both = oracles.outputs_and_gradients(kernels.linear, inputs, cotangent, out_features=70)
    inputs[trained].requires_grad_()
    y = kernels.linear(*(inputs[name] for name in OPERANDS[:3]), out_features=70)
    assert bits_equal(torch.autograd.grad(y, inputs[trained], cotangent)[0], both[trained])


def test_rows_are_summed_in_splits_of_fixed_order(device, launched):
    """Repetition gives the same bits; one launch forward, two backward. The splits are added up by
    the same programs and in the same order where they have a launch of their own."""
    inputs, cotangent = case(40, 70, rows=(5, 26), residual=True, device=device)
    arguments = {"input_activation": "gelu", "sample_scale": torch.rand(5, device=device)}
    first, second = (
        oracles.outputs_and_gradients(
            kernels.linear, inputs, cotangent, out_features=70, **arguments
        )
        for _ in range(2)
    )
    assert all(bits_equal(first[name], second[name]) for name in first)
    assert launched[:3] == [
        "linear_forward_kernel",
        "linear_weight_gradient_kernel",
        "linear_input_gradient_kernel",
    ]
    assert launched[3:] == launched[:3]
    launched.clear()
    leaves = [inputs[name].requires_grad_() for name in ("weight", "bias")]
    y = kernels.linear(
        inputs["x"], *leaves, out_features=70, residual=inputs["residual"], **arguments
    )
    for name, gradient in zip(
        ("weight", "bias"), torch.autograd.grad(y, leaves, cotangent), strict=True
    ):
        assert bits_equal(gradient, first[name])
    assert launched[1:] == ["linear_weight_gradient_kernel", "linear_fold_kernel"]
    weight = inputs["weight"].detach()
    call = gpu_plan.in_rows(LinearCall(inputs["x"], weight, None, 70, PLAIN, None))
    launch, _ = gpu_plan.plan_weight_gradient(
        gpu_plan.Target(80, "ieee"), call, cotangent.flatten(0, 1), weight[None], None
    )
    assert launch.arguments[3].shape == (9, 1, 70, 40)  # 130 rows in splits of 16 or more


def test_rows_by_strides(device):
    """Rows of a wider tensor and an expanded gradient are read by their strides."""
    inputs, _ = case(40, 18, shape=(2, 3, 7), device=device)
    wide = torch.full((3, 7, 64), float("nan"), device=device)
    wide[..., :40] = inputs["x"]
    results = []
    for x in (inputs["x"], wide[..., :40]):
        x = x.detach().requires_grad_()
        y = kernels.linear(x, inputs["weight"], inputs["bias"], out_features=18)
        results.append((y.detach(), torch.autograd.grad(y.sum(), x)[0]))
    assert all(bits_equal(a, b) for a, b in zip(*results, strict=True))


def test_weight_in_another_memory_format(device):
    """channels_last re-strides 4-D weights."""
    inputs, cotangent = case(6, 7, shape=(3, 2, 5), device=device)
    twin = inputs | {"weight": inputs["weight"].to(memory_format=torch.channels_last)}
    assert not twin["weight"].is_contiguous()
    results = [
        oracles.outputs_and_gradients(kernels.linear, given, cotangent, out_features=7)
        for given in (inputs, twin)
    ]
    assert all(bits_equal(results[0][name], results[1][name]) for name in results[0])


@pytest.mark.parametrize("shape", [(6,), (0, 6), (2, 0, 6)], ids=str)
def test_one_dimension_and_no_rows(device, shape):
    x = torch.randn(shape, device=device, requires_grad=True)
    weight = torch.randn(8, 6, device=device, requires_grad=True)
    y = kernels.linear(x, weight, out_features=5)
    torch.testing.assert_close(y, x @ weight[:5].T)
    y.sum().backward()
    torch.testing.assert_close(x.grad, weight[:5].sum(0).expand(shape))
    torch.testing.assert_close(weight.grad[:5], x.detach().reshape(-1, 6).sum(0).expand(5, 6))


# The largest subnet, whose sizes the launches and the activations have where the device knows the
# sizes: rows taken of each of two matrices, columns taken.
LARGEST = (36, 60)


def sizes(device, out, in_):
    return LinearSizes(*torch.tensor([[out], [in_]], dtype=torch.int32, device=device), 4)


@pytest.mark.parametrize(
    ("out", "in_", "dtype", "flat_bias"),
    [
        (4, 16, torch.float32, True),
        (20, 36, torch.float32, False),
        (20, 36, torch.bfloat16, True),
        (20, 36, torch.float16, False),
        (*LARGEST, torch.float32, True),
        (*LARGEST, torch.float32, False),
    ],
)
def test_device_extents(device, out, in_, dtype, flat_bias):
    """The results of the ordinary path inside the extents; beyond them nothing is read (it is NaN)
    or written."""
    given, cotangent = case(
        in_, out, in_max=64, shape=(2, 4, 10), flat_bias=flat_bias, residual=True, device=device
    )
    given = {name: value.to(dtype) for name, value in given.items()}
    weight, bias = given["weight"], given["bias"]
    before = [torch.randn(parameter.shape, device=device) for parameter in (weight, bias)]
    scale = torch.tensor([0.5, 0.0, 2.0], device=device)

    def step(x, residual, dy, out, extents):
        around = Around(True, scale, residual)
        y = gpu.forward(LinearCall(x, weight, bias, out, around, extents))
        gradients = tuple(gradient.clone() for gradient in before)
        around = around._replace(residual=None)
        call = LinearCall(x, weight, bias, out, around, extents)
        dx = gpu.backward(call, (), dy, Grads(gradients, True, None))
        return y, dx, *gradients

    def widened(value, width, largest):
        wide = torch.full((3, 7, value.shape[-1] // width, largest), float("nan"))
        wide = wide.to(value)
        wide[..., :width] = value.view(3, 7, -1, width)
        return wide.flatten(2)

    dy = cotangent.to(dtype)
    want = step(given["x"], given["residual"], dy, out, None)
    actual = step(
        widened(given["x"], in_, LARGEST[1]),
        *(widened(value, out, LARGEST[0]) for value in (given["residual"], dy)),
        LARGEST[0], sizes(device, out, in_),
    )  # fmt: skip
    for a, b, parts in zip(actual, want, (2, 1), strict=False):
        a, b = a.view(3, 7, parts, -1), b.view(3, 7, parts, -1)
        assert bits_equal(a[..., : b.shape[-1]], b)
        assert a[..., b.shape[-1] :].isnan().all()
    for a, b, untouched in zip(actual[2:], want[2:], before, strict=True):
        torch.testing.assert_close(a, b)  # the splits of the rows may be others
        outside = b == untouched
        assert outside.any()
        assert bits_equal(a[outside], untouched[outside])


def test_launches_with_device_extents_serve_every_subnet(device):
    """Nothing about a launch but the extents' values depends on the subnet: a graph can replay."""
    x = torch.zeros(21, LARGEST[1], device=device)
    dy = torch.zeros(21, 2 * LARGEST[0], device=device)
    weight = torch.zeros(2, 40, 64, device=device)

    def plans(extents):
        target = gpu_plan.Target(80, "ieee")
        around = PLAIN._replace(input_gelu=True)
        call = LinearCall(x, weight, None, LARGEST[0], around, extents)
        yield gpu_plan.plan_forward(target, call, dy)
        launch, fold = gpu_plan.plan_weight_gradient(target, call, dy, weight, None)
        yield launch
        yield gpu_plan.plan_input_gradient(target, call, dy, x, fold)
        yield gpu_plan.plan_fold(target, fold)

    def facts(launch):
        shapes = [
            (tuple(a.shape), a.stride()) if isinstance(a, torch.Tensor) else a
            for a in launch.arguments
        ]
        return launch._replace(arguments=tuple(shapes))

    small, large = (
        [facts(launch) for launch in plans(sizes(device, *subnet))] for subnet in ((4, 16), LARGEST)
    )
    assert small == large


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_products_left_to_cublas(monkeypatch, device, launched, dtype):
    """Plain products by torch on views of the slices agree with the kernels; the rest stays."""
    monkeypatch.setattr(gpu, "interpreted", lambda: False)
    monkeypatch.setattr(gpu, "architecture", lambda device: 80)
    inputs, cotangent = case(24, 40, device=device)
    check(inputs, cotangent, dtype, out_features=40)
    gradient = ["linear_weight_gradient_kernel", "linear_fold_kernel"]
    assert launched == ([] if dtype == torch.float32 else gradient)
    launched.clear()
    check(inputs, cotangent, dtype, out_features=40, input_activation="gelu")
    inputs, cotangent = case(24, 30, shape=(2, 4, 10), device=device)
    check(inputs, cotangent, dtype, out_features=30)
    with_rest = ["linear_weight_gradient_kernel", "linear_input_gradient_kernel"]
    assert launched == 2 * ["linear_forward_kernel", *with_rest]


def test_parameters_of_another_dtype_are_not_left_to_cublas(monkeypatch, device, launched):
    """cuBLAS would need a copy of the weight."""
    monkeypatch.setattr(gpu, "interpreted", lambda: False)
    monkeypatch.setattr(gpu, "architecture", lambda device: 80)
    inputs, _ = case(24, 40, device=device)
    kernels.linear(inputs["x"].half(), inputs["weight"], inputs["bias"], out_features=40)
    assert launched == ["linear_forward_kernel"]


@pytest.mark.parametrize("sizes", several.LINEAR_SIZES.values(), ids=several.LINEAR_SIZES)
@pytest.mark.parametrize("layout", ["matrix", "stacked", "flat"])
def test_several_subnets(device, sizes, layout):
    """Of 30 rows each, in one launch: tiles of rows belong to one subnet, sums over rows to all."""
    several.check_linear(
        sizes, device=device, exact=len(sizes) == 1, stacked=layout != "matrix",
        flat=layout == "flat", images=6,
    )  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_several_subnets_in_half_precision(device, dtype):
    several.check_linear(
        [(16, 72), (72, 24), (40, 40)], device=device, dtype=dtype, exact=False, images=6,
        launched=(72, 72),
    )  # fmt: skip


def test_several_subnets_of_which_one_has_no_outputs(device):
    several.check_linear([(13, 9), (0, 9)], device=device, exact=False, fused=False)


@pytest.mark.parametrize("flat", [False, True])
def test_several_subnets_without_a_gradient_of_the_input(device, launched, flat):
    """The parts of the gradients are then added up in a launch of their own: the same bits."""
    given, cotangent = case(12, 10, rows=(6, 9), shape=(3, 2, 5), flat_bias=flat, device=device)
    extents = LinearExtents(several.column([4, 10], device, 2), several.column([12, 8], device, 0))
    found = []
    for needed in (True, False):
        launched.clear()
        leaves = [given[name].clone().requires_grad_() for name in ("weight", "bias")]
        x = given["x"].clone().requires_grad_(needed)
        kernels.linear(x, *leaves, extents=extents).backward(cotangent)
        found.append([leaf.grad for leaf in leaves])
        assert ("linear_fold_kernel" in launched) == (flat or not needed)
    assert all(bits_equal(a, b) for a, b in zip(*found, strict=True))
