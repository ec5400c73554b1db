"""AdamW on boxes of max-size parameters, in place."""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterator, Sequence
from types import ModuleType

import torch
from torch import Tensor

from growtas.kernels import native_library
from growtas.kernels.adamw import native, reference
from growtas.kernels.adamw.row import Clip, Rates, Row, Slices, Tables
from growtas.kernels.adamw.static_table import StaticTable
from growtas.kernels.arguments import FLOATING
from growtas.kernels.dispatch import BackendUnavailable, requested_backend, select
from growtas.kernels.triton import support as triton_support


@torch.no_grad()
def adamw_(
    rows: Sequence[Row],
    *,
    lr: float | Tensor,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    clip: Clip | None = None,
    tables: Tables | None = None,
) -> None:
    """One AdamW update of the weights inside each row's boxes; nothing outside them is touched.

    Loshchilov and Hutter, "Decoupled Weight Decay Regularization", algorithm 2, in
    `torch.optim.AdamW`'s terms. With `Row.counts`, every weight has its own number of updates and
    so its own bias correction. Rows that the backend does not take (arrays that are not contiguous)
    go the plain way.

    Args:
        rows: parameters with state and boxes.
        lr: learning rate; a number, or a float32 tensor of one on the parameters' device. With
            that and such steps in the rows, Triton kernels take everything that changes from step
            to step from the device, and a CUDA graph of the call can be replayed; other backends
            read tensors on the host.
        betas: decay of the first and second moment.
        eps: added to the root of the second moment.
        weight_decay: decoupled, times lr.
        clip: ``(norm, largest)``: gradients count times ``min(1, largest / (norm + 1e-6))``, as
            after `torch.nn.utils.clip_grad_norm_`, but are not written. `norm` is one number on the
            device, for instance of :func:`gradient_norm`; nothing waits for it.
        tables: what the call keeps on the device for the next one, an empty dictionary at first.
            Whoever calls again with the same rows passes the same dictionary, so that only what
            has changed of them is copied; it must live as long as a CUDA graph of the call. None:
            nothing is kept.

    Raises:
        ValueError: an array without its parameter's shape or in the memory of another one, a box
            outside of it or with a step between its entries, boxes that overlap, a row with neither
            counts nor step, or a setting out of its range: betas in [0, 1), the others finite and
            0 or more, `largest` above 0. What is on the device is not looked at.
        TypeError: parameters, gradients or moments that are not floats, or a step that is neither
            number nor tensor.
    """
    rates = Rates(lr, betas, eps, weight_decay)
    _check_rates(rates)
    if clip is not None:
        _check_largest(clip[1])
    for backend, own in _by_backend(rows):
        kinds: dict[tuple[bool, bool], list[Row]] = {}
        for row in own:
            kinds.setdefault((row.counts is None, row.shadow is None), []).append(row)
        for kind in kinds.values():
            backend.step_(kind, rates, clip, {} if tables is None else tables)


@torch.no_grad()
def gradient_norm(rows: Sequence[Row], *, tables: Tables | None = None) -> Tensor:
    """The 2-norm of all gradients inside the rows' boxes, those of one weight counted once.

    Args:
        rows: as for :func:`adamw_`, on one device; those of all parameter groups, for the norm of
            the whole gradient.
        tables: as for :func:`adamw_`.

    Returns:
        One number of the gradients' dtype on their device, without waiting for it. Bit-equal on
        repetition.

    Raises:
        ValueError: as for :func:`adamw_`, or there are no rows.
    """
    norms = [
        backend.gradient_norm(own, {} if tables is None else tables)
        for backend, own in _by_backend(rows)
    ]
    if not norms:
        raise ValueError("gradient_norm needs at least one row")
    return norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms))


@torch.no_grad()
def adamw_static_(
    table: StaticTable,
    extents: Tensor,
    *,
    largest: float | None = None,
    scale: Tensor | None = None,
) -> None:
    """One AdamW update of what the subnets in `extents` sampled, by ``table.inactive``: a fixed
    sequence of launches, whatever that is, so a CUDA graph of it serves every subnet, every
    learning rate and everything that is frozen.

    As :class:`growtas.training.AdamW` does it on the host: "dense" moves all of a shell from the
    first step on that samples any of it, "skip" only in such steps, "masked" moves the sampled
    weights, each with a step count of its own; frozen boxes stay as they are. Averages become
    ``lerp(average, parameter, table.blend)`` everywhere, with the new parameter.

    Args:
        table: parameters, state and settings.
        extents: int32 ``[S, rows, columns]``, the sizes of S subnets, in which ``Sides`` of the
            table's rows look; the sampled boxes are united.
        largest: norm that the gradient is clipped to; None for no clipping.
        scale: float32 ``[]``, what the loss was multiplied by. Then a gradient that is not finite
            leaves the step out: nothing moves or counts but the averages.

    Raises:
        ValueError: extents without the rows or columns in which the table looks.
        BackendUnavailable: there is no implementation for the parameters' device here.
    """
    if largest is not None:
        _check_largest(largest)
    rows, columns = table.looks_in
    if extents.dim() != 3 or extents.shape[1] < rows or extents.shape[2] < columns:
        raise ValueError(
            f"extents {list(extents.shape)} for a table that looks in {rows} rows and {columns} "
            "columns"
        )
    _static_backend(table.rows[0].parameter).step_static_(table, extents, largest, scale)


def static_unavailable(parameter: Tensor) -> str | None:
    """Why :func:`adamw_static_` cannot move such parameters; None if it can."""
    try:
        _static_backend(parameter)
    except BackendUnavailable as error:
        return str(error)
    return None


def _static_backend(parameter: Tensor) -> ModuleType:
    """On CUDA devices the library in CUDA C++, else Triton; on the CPU the core, else the
    reference. "triton" by name on the CPU: interpreted.

    Raises:
        BackendUnavailable: neither.
    """
    request, cuda = requested_backend(), parameter.device.type == "cuda"
    if request == "reference":
        return reference
    reason = native_library.cuda_unavailable() if cuda else native_library.unavailable()
    if parameter.dtype != torch.float32:
        reason = f"it updates float32 parameters, not {parameter.dtype}"
    elif reason is None and (cuda or request != "triton"):
        return native
    elif cuda or request == "triton":
        reason = triton_support.unavailable() or triton_support.unsupported(parameter)
        if reason is None:
            return importlib.import_module("growtas.kernels.adamw.gpu")
    if cuda or request != "auto":
        raise BackendUnavailable(f"adamw with extents on {parameter.device.type}: {reason}")
    return reference


def _by_backend(rows: Sequence[Row]) -> Iterator[tuple[ModuleType, list[Row]]]:
    """The rows, all of them checked, by the backend that moves them."""
    groups: dict[tuple, list[tuple[Row, bool]]] = {}
    boxes: dict[int, list[Slices]] = {}  # of each parameter, which may have several rows
    for row in rows:
        contiguous = _check(row, boxes.setdefault(id(row.parameter), []))
        key = (row.parameter.device, row.parameter.dtype, row.gradient.dtype)
        groups.setdefault(key, []).append((row, contiguous))
    for group in groups.values():
        backend = select("adamw", group[0][0].parameter, group[0][0].gradient)
        taken = [row for row, contiguous in group if backend.takes(row, contiguous)]
        if taken:
            yield backend, taken
        if len(taken) < len(group):
            yield (
                reference,
                [row for row, contiguous in group if not backend.takes(row, contiguous)],
            )


def _check_largest(largest: float) -> None:
    if not largest > 0:
        raise ValueError(f"the largest norm must be above 0, got {largest}")


def _check_rates(rates: Rates) -> None:
    for name in ("lr", "eps", "weight_decay"):
        value = getattr(rates, name)
        if not isinstance(value, Tensor) and not 0.0 <= value < math.inf:
            raise ValueError(f"{name} must be 0 or more and finite, got {value}")
    if len(rates.betas) != 2 or not all(0.0 <= beta < 1.0 for beta in rates.betas):
        raise ValueError(f"betas must be two numbers in [0, 1), got {rates.betas}")


def _check(row: Row, taken: list[Slices]) -> bool:
    """Whether all arrays are contiguous. `taken`: boxes of the same parameter so far; the row's are
    added."""
    shape = row.parameter.shape
    contiguous, places = True, set()
    arrays = [array for array in row.arrays if array is not None]
    for array in arrays:
        if array.shape != shape:
            raise ValueError(
                f"state of shape {tuple(array.shape)} for a parameter of shape {tuple(shape)}"
            )
        if array.dtype not in FLOATING:
            raise TypeError(
                f"parameter, gradient and state must be floats, got {array.dtype} for a parameter "
                f"of shape {tuple(shape)}"
            )
        contiguous = contiguous and array.is_contiguous()
        places.add(array.data_ptr())
    if len(places) < len(arrays) and row.parameter.numel():
        raise ValueError(
            f"parameter, gradient and state of a parameter of shape {tuple(shape)} must each have "
            "memory of their own; two of them share it"
        )
    if row.counts is None and not isinstance(row.step, Tensor):
        if not isinstance(row.step, (int, float)):
            raise TypeError(f"step must be a number or a tensor, got {row.step!r}")
        if not row.step >= 1:
            raise ValueError(f"step must be 1 or more, got {row.step}")
    for box in row.boxes:
        inside = len(box) == len(shape) and all(
            side.step in (None, 1) and 0 <= side.start <= side.stop <= size
            for side, size in zip(box, shape, strict=True)
        )
        if not inside:
            raise ValueError(
                f"box {box} is not inside a parameter of shape {tuple(shape)}, or skips entries"
            )
        for other in taken:
            if _overlap(box, other):
                raise ValueError(
                    f"boxes {other} and {box} of a parameter of shape {tuple(shape)} overlap"
                )
        taken.append(box)
    return contiguous


def _overlap(one: Slices, other: Slices) -> bool:
    return all(max(a.start, b.start) < min(a.stop, b.stop) for a, b in zip(one, other, strict=True))
