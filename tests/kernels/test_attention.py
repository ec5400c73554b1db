"""attention: equal to AutoFormer's formula with its N x N x d tables, without building them."""

from __future__ import annotations

import attention_cases
import oracles
import pytest
import torch
from oracles import DTYPES, assert_within_budget, bits_equal

from growtas import kernels


def case(grid, *, class_token=True, num_heads=2, head_dim=16, reach=14, batch=2, relative=True,
         seed=0):  # fmt: skip
    g = torch.Generator().manual_seed(seed)
    tokens = grid[0] * grid[1] + int(class_token)
    features = num_heads * head_dim
    inputs = {
        "qkv": torch.randn(batch, tokens, 3 * features, generator=g),
        "tables": torch.randn(4, 2 * reach + 2, head_dim, generator=g) * 0.5 if relative else None,
    }
    return (
        inputs,
        torch.randn(batch, tokens, features, generator=g),
        {
            "num_heads": num_heads,
            "grid": grid,
        },
    )


def run_all(inputs, cotangent, arguments, dtype):
    stored = {k: None if v is None else v.to(dtype) for k, v in inputs.items()}
    golden = oracles.outputs_and_gradients(
        oracles.attention, stored, cotangent.to(dtype), torch.float64, **arguments
    )
    plain = oracles.outputs_and_gradients(oracles.attention, stored, cotangent, dtype, **arguments)
    actual = oracles.outputs_and_gradients(kernels.attention, stored, cotangent, dtype, **arguments)
    return actual, golden, plain


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("class_token", [True, False], ids=["cls", "nocls"])
@pytest.mark.parametrize("grid", [(1, 1), (1, 7), (3, 5), (4, 4), (5, 7), (8, 8)], ids=str)
def test_matches_float64(backend, dtype, class_token, grid):
    actual, golden, plain = run_all(*case(grid, class_token=class_token), dtype)
    assert_within_budget(actual, golden, plain, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("num_heads", [3, 4, 5, 7, 10])
def test_autoformer_shapes(backend, dtype, num_heads):
    """14 x 14 patches and a class token, head dim 64, the head counts of T, S and B."""
    actual, golden, plain = run_all(
        *case((14, 14), num_heads=num_heads, head_dim=64, batch=1), dtype
    )
    assert_within_budget(actual, golden, plain, dtype)


@pytest.mark.parametrize("head_dim", [8, 24, 32, 40, 80, 96, 128])
def test_head_dims(backend, head_dim):
    actual, golden, plain = run_all(*case((3, 6), head_dim=head_dim), torch.float32)
    assert_within_budget(actual, golden, plain, torch.float32)


@pytest.mark.parametrize("reach", [0, 1, 2, 20])
def test_distances_are_clamped(backend, reach):
    """A table shorter than the grid: far keys share its last rows."""
    actual, golden, plain = run_all(*case((5, 4), reach=reach), torch.float32)
    assert_within_budget(actual, golden, plain, torch.float32)


@pytest.mark.parametrize("class_token", [True, False], ids=["cls", "nocls"])
def test_without_relative_position(backend, class_token):
    inputs, cotangent, arguments = case((3, 5), class_token=class_token, relative=False)
    del inputs["tables"]
    golden = oracles.outputs_and_gradients(
        oracles.attention, inputs, cotangent, torch.float64, tables=None, **arguments
    )
    plain = oracles.outputs_and_gradients(
        oracles.attention, inputs, cotangent, tables=None, **arguments
    )
    actual = oracles.outputs_and_gradients(kernels.attention, inputs, cotangent, **arguments)
    assert_within_budget(actual, golden, plain, torch.float32)


def test_class_token_query_is_free_of_the_key_table(backend):
    """Its relative term is one constant over all keys, which softmax ignores."""
    inputs, _, arguments = case((3, 4))
    other = inputs["tables"].clone()
    other[:2, 0] += 3.0
    first = kernels.attention(**inputs, **arguments)
    second = kernels.attention(inputs["qkv"], other, **arguments)
    torch.testing.assert_close(first[:, 0], second[:, 0])
    assert (first[:, 1:] - second[:, 1:]).abs().max() > 0.01


def test_large_logits_stay_finite(backend):
    inputs, cotangent, arguments = case((4, 4))
    inputs["qkv"] = inputs["qkv"] * 60
    actual, golden, plain = run_all(inputs, cotangent, arguments, torch.float32)
    assert all(value.isfinite().all() for value in actual.values())
    assert_within_budget(actual, golden, plain, torch.float32)


def test_many_tokens(backend):
    """More keys than any tile: 24 x 24 and a class token."""
    actual, golden, plain = run_all(
        *case((24, 24), num_heads=1, head_dim=32, batch=1), torch.float32
    )
    assert_within_budget(actual, golden, plain, torch.float32)


def test_float32_tables_with_bfloat16_activations(backend):
    inputs, cotangent, arguments = case((4, 4))
    qkv = inputs["qkv"].bfloat16().requires_grad_()
    tables = inputs["tables"].requires_grad_()
    out = kernels.attention(qkv, tables, **arguments)
    out.backward(cotangent.bfloat16())
    assert out.dtype == qkv.grad.dtype == torch.bfloat16
    assert tables.grad.dtype == torch.float32
    want = oracles.attention(qkv.detach().double(), tables.detach().double(), **arguments)
    assert (out.double() - want).abs().max() < 2 * 2**-8 * want.abs().max()


def test_accumulate_adds_to_the_tables_gradient(backend):
    inputs, cotangent, arguments = case((3, 5))
    tables = torch.nn.Parameter(inputs["tables"])
    accumulator = kernels.GradientAccumulator([tables])
    start = torch.randn(tables.shape)
    tables.grad.copy_(start)
    qkv = inputs["qkv"].requires_grad_()
    kernels.attention(qkv, tables, gradients=accumulator, **arguments).backward(cotangent)
    dense = oracles.outputs_and_gradients(kernels.attention, inputs, cotangent, **arguments)
    torch.testing.assert_close(tables.grad, start + dense["tables"])
    assert bits_equal(qkv.grad, dense["qkv"])
    unread = dense["tables"] == 0
    assert unread.any()  # reach 14 on a 3 x 5 grid: most rows are never read
    assert bits_equal(tables.grad[unread], start[unread])


def test_unread_table_rows_may_hold_anything(backend):
    """Rows for distances the grid does not have are not read."""
    inputs, _, arguments = case((3, 5))
    used = torch.zeros(4, 30, dtype=torch.bool)
    used[[0, 2], 15 - 2 : 15 + 3] = used[[1, 3], 15 - 4 : 15 + 5] = True
    used[:, 0] = True
    zeroed = torch.where(used.unsqueeze(-1), inputs["tables"], 0.0)
    first = kernels.attention(**inputs, **arguments)
    assert bits_equal(first, kernels.attention(inputs["qkv"], zeroed, **arguments))


def test_bit_equal_repetition_and_thread_count(backend):
    inputs, cotangent, arguments = case((7, 7), batch=5, num_heads=3)
    results, threads = [], torch.get_num_threads()
    try:
        for count in (1, 2, 2):
            torch.set_num_threads(count)
            results.append(
                oracles.outputs_and_gradients(kernels.attention, inputs, cotangent, **arguments)
            )
    finally:
        torch.set_num_threads(threads)
    assert all(bits_equal(results[1][name], results[2][name]) for name in results[0])
    if backend == "native":
        assert all(bits_equal(results[0][name], results[1][name]) for name in results[0])


def test_nan_propagates(backend):
    inputs, _, arguments = case((3, 3))
    inputs["qkv"][0, 4, 0] = float("nan")  # q of token 4, head 0
    out = kernels.attention(**inputs, **arguments)
    assert out[0, 4, :16].isnan().all()
    assert not out[0, 3].isnan().any()
    assert not out[1].isnan().any()


def test_gradcheck(backend):
    inputs, _, arguments = case((2, 3), batch=1, head_dim=4, reach=2)
    qkv, tables = (inputs[name].double().requires_grad_() for name in ("qkv", "tables"))
    assert torch.autograd.gradcheck(
        lambda q, t: kernels.attention(q, t, **arguments), (qkv, tables)
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_heads": 5}, r"qkv must be \[B, N, 3 \* 5 heads \* head_dim\]"),
        ({"grid": (4, 4)}, r"qkv has 10 tokens; a grid of 4 x 4 needs 16, or 17"),
        ({"tables": torch.zeros(4, 7, 16)}, r"tables must be \[4, 2r \+ 2, head_dim\]"),
        ({"tables": torch.zeros(4, 6, 8)}, r"tables have head_dim 8, qkv has 16"),
    ],
)
def test_bad_input_is_named(backend, change, message):
    inputs, _, arguments = case((3, 3))
    with pytest.raises(ValueError, match=message):
        kernels.attention(**{**inputs, **arguments, **change})


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_rounds_the_input_and_nothing_inside(backend, dtype):
    """Softmax and sums stay float32: the same bits as with an input that was rounded before."""
    inputs, _, arguments = case((5, 4))
    qkv = inputs["qkv"] * 30
    with torch.autocast("cpu", dtype=dtype):
        out = kernels.attention(qkv, inputs["tables"], **arguments)
    assert out.isfinite().all()
    assert bits_equal(out, kernels.attention(qkv.to(dtype), inputs["tables"], **arguments))


@pytest.mark.parametrize("heads", attention_cases.HEADS.values(), ids=attention_cases.HEADS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_several_subnets(backend, heads, dtype):
    """One call, or one for each subnet: the same bits."""
    attention_cases.check_several(heads, dtype=dtype, exact=True)
