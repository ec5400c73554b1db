"""What the tests of every AdamW backend share: tensors, boxes, and torch's own step on them."""

from __future__ import annotations

import torch

SHAPES = [(40, 24), (3, 4, 8, 12), (77,), (1, 1, 5), (130, 200)]
SETTINGS = {"lr": 1e-2, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.05}


def box(shape, low=3, high=4):
    """The middle of a tensor: starts above 0 where there is room."""
    return tuple(slice(n // low, n - n // high) for n in shape)


def arrays(shape, dtype=torch.float32, seed=0):
    g = torch.Generator().manual_seed(seed)
    draws = [torch.randn(shape, generator=g, dtype=torch.float64) for _ in range(4)]
    draws[3] = draws[3].square() * 1e-2
    return [draw.to(dtype) for draw in draws]


def oracle(values, count, dtype, settings):
    """One step of torch's optimizer on the values given, after `count` steps before it."""
    weight, gradient, first, second = (v.to(dtype, copy=True) for v in values)
    weight = torch.nn.Parameter(weight)
    weight.grad = gradient
    optimizer = torch.optim.AdamW([weight], foreach=False, **settings)
    optimizer.state[weight] = {
        "step": torch.tensor(float(count)), "exp_avg": first.clone(), "exp_avg_sq": second.clone(),
    }  # fmt: skip
    optimizer.step()
    state = optimizer.state[weight]
    return weight.detach(), state["exp_avg"], state["exp_avg_sq"]


def assert_close(got, values, count, settings):
    golden = oracle(values, count, torch.float64, settings)
    plain = oracle(values, count, values[0].dtype, settings)
    for actual, want, other in zip(got, golden, plain, strict=True):
        error = (actual.double() - want).abs().max()
        # torch's own bias correction cancels: its float64 is right to some 1e-13
        eps = max(torch.finfo(actual.dtype).eps, 1e-12)
        assert error <= 2 * (other.double() - want).abs().max() + 2 * eps * want.abs().max()
