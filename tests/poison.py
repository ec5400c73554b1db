"""Memory that nobody wrote holds NaN."""

from __future__ import annotations

import functools

import torch


@functools.cache
def _compile_once() -> None:
    """PyTorch's compiler lists the functions it knows when it first runs: the true ones."""
    torch.compile(lambda x: torch.neg(x), backend="eager")(torch.ones(1))


def poison_uninitialised_memory(monkeypatch) -> None:
    """torch.empty and its kin return NaN, so an output that is not fully written is seen."""
    _compile_once()

    def poisoned(function):
        def wrapper(*args, **kwargs):
            tensor = function(*args, **kwargs)
            if tensor.is_floating_point() and type(tensor) is torch.Tensor:
                # without autograd, which refuses to fill a leaf made with requires_grad=True
                tensor.detach().fill_(float("nan"))
            return tensor

        return wrapper

    monkeypatch.setattr(torch, "empty", poisoned(torch.empty))
    monkeypatch.setattr(torch, "empty_like", poisoned(torch.empty_like))
    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned(torch.Tensor.new_empty))
