"""AdamW in plain PyTorch, on any device: the specification, by torch's own AdamW where it has one.

Loshchilov and Hutter, "Decoupled Weight Decay Regularization", algorithm 2, without the schedule
multiplier.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from growtas.kernels.adamw.row import Clip, Rates, Row, Tables, clip_factor
from growtas.kernels.adamw.static_table import SIDES, StaticRow, StaticTable

_Views = tuple[Tensor, ...]


def unsupported(*tensors: Tensor) -> str | None:
    """Any floating-point tensor on any device will do."""
    return None


def takes(row: Row, contiguous: bool) -> bool:
    """Every row."""
    return True


def moved(
    weight: Tensor,
    gradient: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    steps: Tensor,
    rates: Sequence[float] | Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Weights and both moments after a step.

    Args:
        weight, gradient, exp_avg, exp_avg_sq: of one shape.
        steps: updates of each weight, this one included.
        rates: as `Rates.numbers`.
    """
    lr, decay, blend_1, beta_2, blend_2, log_beta_1, log_beta_2, eps = rates
    exp_avg = exp_avg.lerp(gradient, blend_1)  # type: ignore[arg-type]
    exp_avg_sq = torch.addcmul(exp_avg_sq * beta_2, gradient * blend_2, gradient)
    # 1 - beta**steps = -expm1(steps * log(beta))
    root = (exp_avg_sq / -torch.expm1(steps * log_beta_2)).sqrt() + eps
    root = root * -torch.expm1(steps * log_beta_1)
    weight = torch.addcdiv(weight * (1.0 - lr * decay), exp_avg * -lr, root)
    return weight, exp_avg, exp_avg_sq


def step_(rows: Sequence[Row], rates: Rates, clip: Clip | None, tables: Tables) -> None:
    """See :func:`growtas.kernels.adamw.api.adamw_`."""
    rates = rates._replace(lr=float(rates.lr))
    if clip is not None:
        factor = clip_factor(*clip)
        rows = [row._replace(gradient=row.gradient * factor) for row in rows]
    whole: list[Row] = []
    parts: list[tuple[_Views, float]] = []
    for row in rows:
        arrays = (row.parameter, row.gradient, row.exp_avg, row.exp_avg_sq)
        if row.counts is not None:
            for box in row.boxes:
                _step_counted(tuple(a[box] for a in (*arrays, row.counts)), rates)
        elif _fusible(row):
            whole.append(row)
        else:
            parts += [(tuple(a[box] for a in arrays), float(row.step)) for box in row.boxes]
    if whole:
        views: list[_Views] = [(r.parameter, r.gradient, r.exp_avg, r.exp_avg_sq) for r in whole]
        _torch(views, [float(r.step) for r in whole], rates, fused=True)
    if parts:
        _torch([views for views, _ in parts], [step for _, step in parts], rates, fused=False)
    for row in rows:
        if row.shadow is not None:
            for box in row.boxes:
                row.shadow[box] = row.parameter[box].to(row.shadow.dtype)


def gradient_norm(rows: Sequence[Row], tables: Tables) -> Tensor:
    """See :func:`growtas.kernels.adamw.api.gradient_norm`."""
    parts = [row.gradient[box] for row in rows for box in row.boxes]
    norms = torch._foreach_norm(parts) if parts else [rows[0].gradient.new_zeros(())]
    return torch.linalg.vector_norm(torch.stack(list(norms)))


def _step_counted(views: _Views, rates: Rates) -> None:
    weight, gradient, exp_avg, exp_avg_sq, counts = views
    counts += 1.0
    after = moved(weight, gradient, exp_avg, exp_avg_sq, counts, rates.numbers)
    for array, values in zip((weight, exp_avg, exp_avg_sq), after, strict=True):
        array.copy_(values)


def _fusible(row: Row) -> bool:
    """Whether torch's one-kernel AdamW takes the row (it ignores strides)."""
    shape = tuple(row.parameter.shape)
    covers = [tuple((side.start, side.stop) for side in box) for box in row.boxes]
    return (
        covers == [tuple((0, size) for size in shape)]
        and row.parameter.device.type in ("cpu", "cuda")
        and all(array is None or array.is_contiguous() for array in row.arrays)
    )


def _torch(views: list[_Views], steps: list[float], rates: Rates, fused: bool) -> None:
    parameters, gradients, exp_avgs, exp_avg_sqs = map(list, zip(*views, strict=True))
    # torch adds one to each count, so each row needs its own; only the fused kernel reads it on the
    # device. Filled there: a copy from the host would wait for the device.
    device = parameters[0].device if fused else torch.device("cpu")
    filled = {
        step: list(torch.full((steps.count(step),), step - 1.0, device=device).unbind())
        for step in set(steps)
    }
    adamw(
        parameters,
        gradients,
        exp_avgs,
        exp_avg_sqs,
        [],
        [filled[step].pop() for step in steps],
        foreach=not fused,
        fused=fused,
        amsgrad=False,
        beta1=rates.betas[0],
        beta2=rates.betas[1],
        lr=rates.lr,
        weight_decay=rates.weight_decay,
        eps=rates.eps,
        maximize=False,
    )


def step_static_(
    table: StaticTable, extents: Tensor, largest: float | None, scale: Tensor | None
) -> None:
    """See :func:`growtas.kernels.adamw.api.adamw_static_`. Nothing waits for the device."""
    free = [
        ~_inside(row.parameter, box)
        for row, box in zip(table.rows, table.frozen.unbind(), strict=True)
    ]
    inverse = torch.ones_like(table.factor) if scale is None else (1.0 / scale).to(table.dtype)
    table.factor.copy_(inverse)
    table.found_inf.zero_()
    if largest is not None or scale is not None:
        squares = [
            torch.where(mask, row.gradient, 0.0).double().square().sum()
            for row, mask in zip(table.rows, free, strict=True)
        ]
        total = torch.stack(squares).sum()
        table.norm.copy_(total.sqrt() * inverse)
        if scale is not None:
            table.found_inf.copy_(~total.isfinite())
        if largest is not None:
            table.factor.mul_(clip_factor(table.norm, largest))
    sampled = torch.stack([_sampled(row, extents) for row in table.rows])
    _decide(table, sampled)
    for p, (row, mask) in enumerate(zip(table.rows, free, strict=True)):
        _move(table, p, row, mask, sampled[p])
        if row.average is not None:
            row.average.lerp_(row.parameter, table.blend)


def _inside(parameter: Tensor, box: Tensor) -> Tensor:
    """bool, of the parameter's shape: which weights lie in a leading box, int ``[SIDES]``."""
    inside = torch.ones(parameter.shape, dtype=torch.bool, device=parameter.device)
    sides = box[len(box) - parameter.dim() :]
    for dim, (size, side) in enumerate(zip(parameter.shape, sides, strict=True)):
        shape = [1] * parameter.dim()
        shape[dim] = size
        inside = inside & (torch.arange(size, device=box.device) < side).view(shape)
    outer = box[: len(box) - parameter.dim()]
    return inside & (outer > 0).all()


def _sampled(row: StaticRow, extents: Tensor) -> Tensor:
    """int32 ``[S, SIDES]``: the leading box of a parameter that each subnet samples."""
    columns, number, active = row.sides
    read = extents[:, number]  # [S, columns]
    sides = read.new_ones(len(read), SIDES)
    for dim, (size, column) in enumerate(
        zip(row.parameter.shape, columns, strict=True), SIDES - len(columns)
    ):
        if column is None:
            sides[:, dim] = size
        else:
            sides[:, dim] = (read[:, column[0]] * column[1]).clamp(max=size)
    return sides if active is None else torch.where(read[:, active, None] > 0, sides, 0)


def _decide(table: StaticTable, sampled: Tensor) -> None:
    """Which shells move, if each subnet sampled its box of ``[rows, S, SIDES]``; they count the
    step."""
    edges = table.edges
    inner = torch.cat((torch.zeros_like(edges[:, :1]), edges[:, :-1]), 1)
    common = torch.minimum(sampled.unsqueeze(2), edges.unsqueeze(1))
    read = (common > 0).all(-1) & (common > inner.unsqueeze(1)).any(-1)
    moves = read.any(1)
    if table.inactive == "dense":
        moves |= table.steps > 0
    moves &= table.found_inf == 0
    table.active.copy_(moves)
    table.steps.add_(moves)


def _move(table: StaticTable, p: int, row: StaticRow, free: Tensor, sampled: Tensor) -> None:
    weight = row.parameter
    steps = torch.zeros_like(weight)  # 0: the weight stays
    if row.counts is None:
        for edge, active, count in zip(
            table.edges[p].flip(0), table.active[p].flip(0), table.steps[p].flip(0), strict=True
        ):
            steps = torch.where(_inside(weight, edge), active * count, steps)
    else:
        for box in sampled:
            steps = torch.where(_inside(weight, box), row.counts.to(weight.dtype) + 1.0, steps)
        steps = steps * table.active[p, -1]
    moves = free & (steps > 0)
    after = moved(
        weight, row.gradient * table.factor, row.exp_avg, row.exp_avg_sq,
        torch.where(moves, steps, 1.0), table.rates[row.rates],
    )  # fmt: skip
    arrays = [(weight, after[0]), (row.exp_avg, after[1]), (row.exp_avg_sq, after[2])]
    if row.counts is not None:
        arrays.append((row.counts, steps.to(row.counts.dtype)))
    if row.shadow is not None:
        arrays.append((row.shadow, after[0].to(row.shadow.dtype)))
    for array, values in arrays:
        array.copy_(torch.where(moves, values, array))
