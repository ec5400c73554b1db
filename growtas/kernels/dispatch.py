"""Which implementation of an operator runs, and why another one does not.

An operator's folder holds one module per backend, with its functions and, where it needs them,

- ``available() -> str | None``: the reason it cannot run in this process at all;
- ``unsupported(*tensors) -> str | None``: the reason it cannot take such tensors, which may depend
  on their devices and dtypes only (the answer is cached by them);
- ``prefers(call) -> bool``: whether this very call is one for it, asked under ``auto`` only.

A request is either ``auto`` (the first backend that can and wants to) or a backend's name, and a
named one that cannot run raises. ``gpu`` modules import Triton, so what `triton_support` can refuse
is refused without them.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from growtas.kernels.triton import support as triton_support

OPERATORS = ("linear", "layer_norm", "attention", "adamw")
# In the order "auto" tries them. Triton code lives in gpu.py: a triton.py would shadow the package.
BACKENDS = {"triton": "gpu", "native": "native", "reference": "reference"}
ENVIRONMENT_VARIABLE = "GROWTAS_BACKEND"


class BackendUnavailable(RuntimeError):
    """A backend was asked for by name and cannot run; the message says why."""


class Choice(NamedTuple):
    """One row of :func:`explain`."""

    operator: str
    device: str
    dtype: str
    backend: str
    rejected: dict[str, str]  # backend -> why it does not run


class _Candidate(NamedTuple):
    """A backend that can run, and what it is asked whether it also wants to."""

    module: ModuleType
    prefers: Callable[[Any], bool] | None


_requests: list[list[str]] = []  # of the use_backend blocks in force, the newest last
_cache: dict[tuple, tuple[_Candidate, ...]] = {}


def _check_name(name: str, source: str) -> str:
    if name != "auto" and name not in BACKENDS:
        allowed = ", ".join(["auto", *BACKENDS])
        raise ValueError(f"{source}: unknown backend {name!r}; choose one of {allowed}")
    return name


def requested_backend() -> str:
    """The backend asked for: by :func:`use_backend`, else by ``GROWTAS_BACKEND``, else ``auto``."""
    if _requests:
        return _requests[-1][0]
    return _check_name(os.environ.get(ENVIRONMENT_VARIABLE, "auto"), ENVIRONMENT_VARIABLE)


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Run every operator inside the ``with`` block on one backend.

    The setting is process-wide, because the backward pass may run on another thread; where blocks
    of several threads overlap, the newest counts. It is read when an operator runs, so it also
    governs code compiled with ``torch.compile``.

    Args:
        name: ``"auto"``, ``"reference"``, ``"native"`` or ``"triton"``.

    Raises:
        ValueError: unknown name.
        BackendUnavailable: from the operator, if the named backend cannot take its tensors; and
            at once if it cannot run any operator here.
    """
    _check_name(name, "use_backend")
    if name != "auto":
        reasons = [_missing(operator, name) for operator in OPERATORS]
        if all(reasons):
            raise BackendUnavailable(f"backend {name!r} cannot run here: {reasons[0]}")
    request = [name]
    _requests.append(request)
    try:
        yield
    finally:  # by identity: blocks of several threads may end in any order
        _requests[:] = [other for other in _requests if other is not request]


def _missing(operator: str, backend: str) -> str | None:
    """Why a backend has no implementation of an operator here, whatever the tensors."""
    module_name = f"growtas.kernels.{operator}.{BACKENDS[backend]}"
    if importlib.util.find_spec(module_name) is None:
        return f"there is no {backend} implementation of {operator} in this version"
    if backend == "triton":
        return triton_support.unavailable()
    available = getattr(_module(operator, backend), "available", None)
    return available() if available is not None else None


def _rejection(operator: str, backend: str, tensors: tuple[Tensor, ...], named: bool) -> str | None:
    reason = _missing(operator, backend)
    if reason is None and backend == "triton":
        reason = triton_support.unsupported(*tensors)
        if reason is None and triton_support.interpreted() and not named:
            reason = "Triton's interpreter is for tests: it runs only when asked for by name"
    if reason is None:
        unsupported = getattr(_module(operator, backend), "unsupported", None)
        reason = None if unsupported is None else unsupported(*tensors)
    return reason


def _module(operator: str, backend: str) -> ModuleType:
    return importlib.import_module(f"growtas.kernels.{operator}.{BACKENDS[backend]}")


transforms = torch._C._functorch.peek_interpreter_stack


def transformed() -> bool:
    """Whether a transform of ``torch.func`` is in force."""
    return transforms() is not None


def plain(operator: str, purpose: str) -> ModuleType:
    """The reference, for what only operations that PyTorch itself can differentiate allow.

    Raises:
        BackendUnavailable: another backend was asked for by name.
    """
    request = requested_backend()
    if request not in ("auto", "reference"):
        raise BackendUnavailable(
            f"backend {request!r} has no {operator} for {purpose}; use_backend('reference') has"
        )
    return _module(operator, "reference")


def select(
    operator: str, first: Tensor, second: Tensor | None = None, *, call: Any = None
) -> ModuleType:
    """The backend module that runs ``operator`` on tensors of these devices and dtypes; under a
    transform of ``torch.func`` the reference. With `call`, the one that runs that call.

    Raises:
        BackendUnavailable: the backend asked for by name cannot; the message says why.
    """
    if transforms() is not None:
        return plain(operator, "torch.func")
    request = requested_backend()
    key = (
        (operator, request, first.device, first.dtype) if second is None
        else (operator, request, first.device, first.dtype, second.device, second.dtype)
    )  # fmt: skip
    candidates = _cache.get(key)
    if candidates is None:
        tensors = (first,) if second is None else (first, second)
        candidates = _cache[key] = _candidates(operator, request, tensors)
    for module, prefers in candidates:
        if prefers is None or call is None or prefers(call):
            return module
    raise AssertionError("the last candidate takes every call")


def _candidates(operator: str, request: str, tensors: tuple[Tensor, ...]) -> tuple[_Candidate, ...]:
    """The backends among which a call decides, up to the first that does not choose its calls."""
    rejected: dict[str, str] = {}
    found: list[_Candidate] = []
    for backend in BACKENDS if request == "auto" else (request,):
        reason = _rejection(operator, backend, tensors, request == backend)
        if reason is not None:
            rejected[backend] = reason
            continue
        module = _module(operator, backend)
        prefers = getattr(module, "prefers", None) if request == "auto" else None
        found.append(_Candidate(module, prefers))
        if prefers is None:
            return tuple(found)
    reasons = "; ".join(f"{name}: {why}" for name, why in rejected.items())
    raise BackendUnavailable(f"no backend runs {operator} ({reasons})")


def explain(devices: tuple[str, ...] | None = None) -> list[Choice]:
    """For every operator, device and dtype: the backend that would run, and why others would not.

    Args:
        devices: device types, default the CPU and, if there is one, the CUDA device.
    """
    if devices is None:
        devices = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
    request = requested_backend()
    rows = []
    for device in devices:
        for operator in OPERATORS:
            for dtype in (torch.float32, torch.bfloat16):
                sample = (torch.empty(0, dtype=dtype, device=device),)
                rejected: dict[str, str] = {}
                chosen = ""
                for backend in BACKENDS:
                    if request not in ("auto", backend):
                        rejected[backend] = f"{request} was asked for"
                    elif chosen:
                        rejected[backend] = f"{chosen} comes first"
                    elif reason := _rejection(operator, backend, sample, request == backend):
                        rejected[backend] = reason
                    else:
                        chosen = backend
                name = str(dtype).removeprefix("torch.")
                rows.append(Choice(operator, device, name, chosen or "none", rejected))
    return rows
