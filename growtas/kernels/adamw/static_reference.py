"""adamw_static_ in plain PyTorch: the specification. Nothing waits for the device.

Loshchilov and Hutter, "Decoupled Weight Decay Regularization", algorithm 2, without the schedule
multiplier.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from growtas.kernels.adamw.row import clip_factor
from growtas.kernels.extents import COLUMNS

if TYPE_CHECKING:
    from growtas.kernels.adamw.static import StaticRow, StaticTable


def step_(table: StaticTable, extents: Tensor, largest: float | None, scale: Tensor | None) -> None:
    """See :func:`growtas.kernels.adamw.static.adamw_static_`."""
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
    sampled = _sampled(table, extents)
    _decide(table, sampled)
    for p, (row, mask) in enumerate(zip(table.rows, free, strict=True)):
        _move(table, p, row, mask, sampled[p])
        if row.average is not None:
            row.average.lerp_(row.parameter, table.blend)


def _inside(parameter: Tensor, box: Tensor) -> Tensor:
    """bool, of the parameter's shape: which weights lie in a leading box, int ``[4]``."""
    inside = torch.ones(parameter.shape, dtype=torch.bool, device=parameter.device)
    sides = box[len(box) - parameter.dim() :]
    for dim, (size, side) in enumerate(zip(parameter.shape, sides, strict=True)):
        shape = [1] * parameter.dim()
        shape[dim] = size
        inside = inside & (torch.arange(size, device=box.device) < side).view(shape)
    outer = box[: len(box) - parameter.dim()]
    return inside & (outer > 0).all()


def _sampled(table: StaticTable, extents: Tensor) -> Tensor:
    """int ``[rows, groups, 4]``: the leading box of each parameter that each group samples."""
    fields = table.targets[:, -14:]
    sizes, columns, factors = fields[:, :4], fields[:, 4:8], fields[:, 8:12]
    rows = extents[:, fields[:, 12]].transpose(0, 1).long()  # [rows, groups, columns]
    index = columns.clamp(min=0).unsqueeze(1).expand(-1, rows.shape[1], -1)
    sides = rows.gather(2, index) * factors.unsqueeze(1)
    sides = torch.where((columns < 0).unsqueeze(1), sizes.unsqueeze(1), sides)
    sides = torch.minimum(sides, sizes.unsqueeze(1))
    return torch.where(rows[..., COLUMNS.index("active"), None] > 0, sides, 0)


def _decide(table: StaticTable, sampled: Tensor) -> None:
    """Which shells move; they count the step."""
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
    w, m, v = row.parameter, row.exp_avg, row.exp_avg_sq
    steps = torch.zeros_like(w)  # 0: the weight stays
    if row.counts is None:
        for edge, active, count in zip(
            table.edges[p].flip(0), table.active[p].flip(0), table.steps[p].flip(0), strict=True
        ):
            steps = torch.where(_inside(w, edge), active * count, steps)
    else:
        for box in sampled:
            steps = torch.where(_inside(w, box), row.counts.to(w.dtype) + 1.0, steps)
        steps = steps * table.active[p, -1]
    moves = free & (steps > 0)
    lr, decay, blend_1, beta_2, blend_2, log_beta_1, log_beta_2, eps = table.rates[row.rates]
    g = row.gradient * table.factor
    new_m = m + (g - m) * blend_1
    new_v = v * beta_2 + g * g * blend_2
    corrected = torch.where(moves, steps, 1.0)
    root = (new_v / -torch.expm1(corrected * log_beta_2)).sqrt() + eps
    step_size = lr / -torch.expm1(corrected * log_beta_1)
    new_w = w * (1.0 - lr * decay) - new_m / root * step_size
    for old, new in ((m, new_m), (v, new_v), (w, new_w)):
        old.copy_(torch.where(moves, new, old))
    if row.counts is not None:
        row.counts.copy_(torch.where(moves, steps.to(row.counts.dtype), row.counts))
    if row.shadow is not None:
        row.shadow.copy_(torch.where(moves, w.to(row.shadow.dtype), row.shadow))
