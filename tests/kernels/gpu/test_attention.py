"""The attention kernels against float64; small tiles, so that small grids take several."""

from __future__ import annotations

import attention_cases
import oracles
import pytest
import torch
from oracles import assert_within_budget, bits_equal

from growtas import kernels
from growtas.kernels.attention.api import AttentionCall
from growtas.kernels.call import Grads
from growtas.kernels.triton import configs
from growtas.kernels.triton import support as triton_support


@pytest.fixture
def gpu():
    """Imported within a test: Triton then knows whether it interprets."""
    from growtas.kernels.attention import gpu

    return gpu


@pytest.fixture
def any_dtype(monkeypatch):
    """The kernels do in the interpreter what dispatch, for all kernels, says it does wrongly."""
    monkeypatch.setattr(triton_support, "unsupported", lambda *tensors: None)


@pytest.fixture(autouse=True)
def _small_tiles(request, monkeypatch):
    """16 queries, 16 keys and 16 table rows per tile, whatever the tables say."""
    if "shipped_tiles" in request.fixturenames:
        return
    small = {
        key: config._replace(blocks=(16,) * len(config.blocks))
        for key, config in configs.TABLES[80].items()
        if key[0].startswith("attention")
    }
    monkeypatch.setattr(configs, "TABLES", {80: small, 90: small})


def case(grid, *, class_token=True, num_heads=2, head_dim=32, reach=14, batch=1, relative=True,
         seed=0):  # fmt: skip
    g = torch.Generator().manual_seed(seed)
    tokens = grid[0] * grid[1] + int(class_token)
    features = num_heads * head_dim
    inputs = {"qkv": torch.randn(batch, tokens, 3 * features, generator=g)}
    if relative:
        inputs["tables"] = torch.randn(4, 2 * reach + 2, head_dim, generator=g) * 0.5
    cotangent = torch.randn(batch, tokens, features, generator=g)
    return inputs, cotangent, {"num_heads": num_heads, "grid": grid}


def check(inputs, cotangent, arguments, device, dtype=torch.float32):
    stored = {name: value.to(device, dtype) for name, value in inputs.items()}
    cotangent = cotangent.to(device)
    if "tables" not in inputs:
        arguments = {**arguments, "tables": None}

    def run(function, precision):
        rounded = cotangent.to(dtype)
        return oracles.outputs_and_gradients(function, stored, rounded, precision, **arguments)

    plain = run(oracles.attention, dtype)
    golden = run(oracles.attention, torch.float64)
    assert_within_budget(run(kernels.attention, dtype), golden, plain, dtype)


@pytest.mark.parametrize("class_token", [True, False], ids=["cls", "nocls"])
@pytest.mark.parametrize("grid", [(1, 1), (1, 7), (3, 6), (5, 4)], ids=str)
def test_matches_float64(device, class_token, grid):
    check(*case(grid, class_token=class_token), device)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("head_dim", [64, 24])
def test_half_precision_and_head_dims(device, any_dtype, dtype, head_dim):
    check(*case((3, 6), head_dim=head_dim, batch=2), device, dtype)


@pytest.mark.parametrize("head_dim", [64, 8, 96])
def test_head_dims(device, head_dim):
    check(*case((3, 6), head_dim=head_dim), device)


@pytest.mark.parametrize("class_token", [True, False], ids=["cls", "nocls"])
@pytest.mark.parametrize("reach", [0, 1, 3])
def test_distances_are_clamped(device, reach, class_token):
    """A table shorter than the grid: far keys share its last rows."""
    check(*case((6, 5), reach=reach, class_token=class_token), device)


@pytest.mark.parametrize("class_token", [True, False], ids=["cls", "nocls"])
@pytest.mark.parametrize("grid", [(1, 63), (40, 1)], ids=str)
def test_more_slots_than_float32_products_take(device, grid, class_token):
    """More than 62 rows and columns together, and one shape below."""
    check(*case(grid, class_token=class_token), device)


@pytest.mark.parametrize("class_token", [True, False], ids=["cls", "nocls"])
def test_without_tables(device, class_token):
    check(*case((3, 6), class_token=class_token, relative=False), device)


def test_many_sequences_share_the_table_gradients_programs(device, gpu, monkeypatch):
    """Several sequences per program, the last program with fewer."""
    monkeypatch.setattr(gpu, "TABLE_SHARES", 3)
    check(*case((2, 3), batch=4, num_heads=1), device)


def test_large_logits_stay_finite(device):
    """The gradients' cancellation then costs digits: sum(dout * out) is taken before, not after,
    the rounding of the probabilities."""
    inputs, cotangent, arguments = case((3, 4))
    inputs["qkv"] *= 60
    stored = {name: value.to(device) for name, value in inputs.items()}
    found = oracles.outputs_and_gradients(
        kernels.attention, stored, cotangent.to(device), **arguments
    )
    golden = oracles.outputs_and_gradients(
        oracles.attention, stored, cotangent.to(device), torch.float64, **arguments
    )
    torch.testing.assert_close(found["output"].double(), golden["output"], rtol=1e-5, atol=1e-4)
    assert all(value.isfinite().all() for value in found.values())


@pytest.fixture
def shipped_tiles():
    """For tests that take the configurations as they are."""


@pytest.mark.skipif(not torch.cuda.is_available(), reason="the interpreter is too slow for it")
@pytest.mark.parametrize("dtype", oracles.DTYPES, ids=str)
@pytest.mark.parametrize("head_dim", [32, 64, 96, 128])
@pytest.mark.parametrize("grid", [(14, 14), (24, 24)], ids=str)
def test_shipped_configurations(device, shipped_tiles, dtype, head_dim, grid):
    check(*case(grid, head_dim=head_dim, num_heads=3, batch=2), device, dtype)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="the interpreter is too slow for it")
def test_more_tokens_than_most(device, shipped_tiles):
    """64 x 64 patches; offsets beyond 2**31 are for larger batches still."""
    check(*case((64, 64), num_heads=1), device, torch.float16)


@pytest.mark.parametrize(
    ("grid", "change"),
    [((1, 254), {}), ((2, 2), {"head_dim": 136}), ((2, 2), {"reach": 64})],
    ids=str,
)
def test_sizes_that_no_configuration_takes(device, grid, change):
    """Refused before anything is launched, by size and limit."""
    inputs, _, arguments = case(grid, **change)
    with pytest.raises(ValueError, match=r"head dims of up to 128, grids of up to 254 .* got head"):
        kernels.attention(**{k: v.to(device) for k, v in inputs.items()}, **arguments)


def test_every_kernel_has_a_configuration_for_the_largest_sizes(shipped_tiles, gpu):
    from growtas.kernels.attention.gpu_shape import LIMITS, Shape

    head_dim, both, rows = LIMITS
    for architecture in configs.TABLES:
        for dtype in oracles.DTYPES:
            shape = Shape(
                head_dim=head_dim, grid=(1, both - 1), class_token=1, table_rows=rows,
                dtype=dtype, precision="ieee", device_extents=False,
            )  # fmt: skip
            for kernel in (
                gpu.attention_forward_kernel, gpu.attention_query_gradient_kernel,
                gpu.attention_key_gradient_kernel, gpu.attention_table_partial_kernel,
            ):  # fmt: skip
                assert shape.config(kernel, architecture).warps > 0


def test_float32_tables_and_accumulation(device):
    """The tables' gradient is float32 where the tables are, and is added to what is there."""
    inputs, cotangent, arguments = case((3, 4))
    tables = torch.nn.Parameter(inputs["tables"].to(device))
    qkv = inputs["qkv"].to(device, torch.float16).requires_grad_()
    cotangent = cotangent.to(device, torch.float16)
    accumulator = kernels.GradientAccumulator([tables])
    start = torch.randn(tables.shape).to(device)
    tables.grad.copy_(start)
    kernels.attention(qkv, tables, gradients=accumulator, **arguments).backward(cotangent)
    accumulated, tables.grad = tables.grad, None
    kernels.attention(qkv, tables, **arguments).backward(cotangent)
    assert tables.grad.dtype == torch.float32
    torch.testing.assert_close(accumulated, start + tables.grad)
    unread = tables.grad == 0  # reach 14 on a 3 x 4 grid: most rows are never read
    assert unread.any()
    assert bits_equal(accumulated[unread], start[unread])


def test_same_bits_again(device):
    inputs, cotangent, arguments = case((3, 6), batch=2)
    stored = {name: value.to(device) for name, value in inputs.items()}
    first, second = (
        oracles.outputs_and_gradients(kernels.attention, stored, cotangent.to(device), **arguments)
        for _ in range(2)
    )
    assert all(bits_equal(first[name], second[name]) for name in first)


def test_number_of_heads_on_the_device(device, gpu):
    """Two of three heads: the same bits as without the third, which is neither read nor written."""
    inputs, cotangent, _ = case((3, 4), num_heads=2)
    qkv, tables = inputs["qkv"].to(device), inputs["tables"].to(device)
    cotangent = cotangent.to(device)
    batch, tokens, _ = qkv.shape

    def widened(tensor, parts):
        wide = torch.full((batch, tokens, parts, 3, 32), float("nan"), device=device)
        wide[:, :, :, :2] = tensor.view(batch, tokens, parts, 2, 32)
        return wide.flatten(2)

    def narrowed(tensor, parts):
        return tensor.view(batch, tokens, parts, 3, 32)[:, :, :, :2].flatten(2)

    heads = torch.tensor([2], dtype=torch.int32, device=device)
    call = AttentionCall(qkv, tables, 2, 3, 4, 0.2, None)
    out, lse = gpu.forward(call)
    wide_call = AttentionCall(widened(qkv, 3), tables, 3, 3, 4, 0.2, heads)
    wide_out, wide_lse = gpu.forward(wide_call)
    assert bits_equal(narrowed(wide_out, 1), out)
    of_heads = wide_lse.view(batch, 3, tokens)
    assert bits_equal(of_heads[:, :2].flatten(1), lse)
    assert wide_out.view(batch, tokens, 3, 32)[:, :, 2].isnan().all()  # torch.empty is poisoned
    assert of_heads[:, 2].isnan().all()

    gradient = torch.zeros_like(tables)
    dqkv = gpu.backward(call, (out, lse), cotangent, Grads((gradient,), True, None))
    wide_gradient = torch.zeros_like(tables)
    wide_dqkv = gpu.backward(
        wide_call, (wide_out, wide_lse), widened(cotangent, 1), Grads((wide_gradient,), True, None)
    )
    assert bits_equal(narrowed(wide_dqkv, 3), dqkv)
    assert wide_dqkv.view(batch, tokens, 3, 3, 32)[:, :, :, 2].isnan().all()
    torch.testing.assert_close(wide_gradient, gradient)  # shares are cut otherwise


@pytest.mark.parametrize("heads", attention_cases.HEADS.values(), ids=attention_cases.HEADS)
def test_several_subnets(device, heads):
    attention_cases.check_several(heads, device=device, exact=False)


def test_more_subnets_than_a_share_of_the_tables_gradient(device, gpu, monkeypatch):
    """A program's share of the sequences then lies in several subnets."""
    monkeypatch.setattr(gpu, "TABLE_SHARES", 2)
    attention_cases.check_several([1, 3, 2], device=device, exact=False, images=1)


@pytest.mark.parametrize("relative", [True, False])
def test_launches(device, gpu, monkeypatch, relative):
    """One forward; backward three, or two where there are no tables."""
    launched = []

    def counted(name, kernel):
        class Counted:
            arg_names, __name__ = kernel.arg_names, name

            def __getitem__(self, grid):
                launched.append(name)
                return kernel[grid]

        return Counted()

    for name in [name for name in vars(gpu) if name.endswith("_kernel")]:
        monkeypatch.setattr(gpu, name, counted(name, getattr(gpu, name)))
    inputs, cotangent, arguments = case((1, 3), relative=relative)
    stored = {name: x.to(device).requires_grad_() for name, x in inputs.items()}
    out = kernels.attention(**stored, **arguments)
    assert len(launched) == 1
    out.backward(cotangent.to(device))
    assert len(launched) == (4 if relative else 3)
