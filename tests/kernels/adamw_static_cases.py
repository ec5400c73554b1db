"""Parameters, tables of extents and the ordinary optimizer beside them, for adamw_static_."""

from __future__ import annotations

import random

import torch

from growtas.kernels.adamw.row import Rates
from growtas.kernels.adamw.static_table import Sides, StaticRow, StaticTable
from growtas.training.optimizer import AdamW

EMBED, HEADS, HEAD_DIM, HIDDEN, DEPTH = 24, 4, 8, 60, 3
# The columns of the table, and how far they bound a dimension.
WIDTH, HEAD, INNER, HEAD_WIDTH = ((column, 1) for column in (0, 1, 2, 4))
ACTIVE, COLUMNS = 3, 6
SIDES = [
    ((EMBED,), Sides((WIDTH,))),
    ((1, 5, EMBED), Sides((None, None, WIDTH))),
    ((3, HEADS, HEAD_DIM, EMBED), Sides((None, HEAD, None, WIDTH), 1, ACTIVE)),
    ((3 * HEADS * HEAD_DIM,), Sides(((4, 3),), 1, ACTIVE)),
    ((HIDDEN, EMBED), Sides((INNER, WIDTH), 2, ACTIVE)),
    ((EMBED, HIDDEN), Sides((WIDTH, INNER), 2, ACTIVE)),
    ((EMBED,), Sides((WIDTH,), 2, ACTIVE)),
    ((130, 37), Sides((None, None), 1, ACTIVE)),
]
GROUPS = (
    {"lr": 3e-2, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.1},
    {"lr": 1e-2, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0},
)


def random_extents(rng: random.Random, groups: int) -> torch.Tensor:
    """A table of random subnets, blocks beyond their depth inactive."""
    table = []
    for _ in range(groups):
        embed, depth = rng.randint(1, EMBED), rng.randint(1, DEPTH)
        rows = []
        for block in range(DEPTH):
            heads, hidden = rng.randint(1, HEADS), rng.randint(1, HIDDEN)
            active = [embed, heads, hidden, 1, heads * HEAD_DIM, -1]
            rows.append(active if block < depth else [embed, 0, 0, 0, 0, -1])
        table.append(rows)
    return torch.tensor(table, dtype=torch.int32)


def boxes_of(extents: torch.Tensor) -> list[list[tuple[int, ...]]]:
    """For each group the box of each parameter, empty where inactive; on the host."""
    found = []
    for table in extents.tolist():
        boxes = []
        for shape, sides in SIDES:
            row = table[sides.row]
            box = tuple(
                size if side is None else side[1] * row[side[0]]
                for size, side in zip(shape, sides.columns, strict=True)
            )
            reads = sides.active is None or row[sides.active]
            boxes.append(box if reads else (0,) * len(shape))
        found.append(boxes)
    return found


def leading(box):
    return tuple(slice(0, side) for side in box)


class Ordinary:
    """The optimizer with boxes on the host, in any dtype."""

    def __init__(self, inactive, dtype=torch.float32):
        g = torch.Generator().manual_seed(0)
        self.parameters = [
            torch.nn.Parameter(torch.randn(shape, generator=g).to(dtype)) for shape, _ in SIDES
        ]
        groups = [
            {"params": self.parameters[i::2], **settings} for i, settings in enumerate(GROUPS)
        ]
        self.optimizer = AdamW(groups, inactive=inactive)
        self.averages = [p.detach().clone() for p in self.parameters]

    @torch.no_grad()
    def step(self, gradients, extents, largest=None, blend=0.0, lr_scale=1.0):
        for p, gradient in zip(self.parameters, gradients, strict=True):
            p.grad = gradient.to(p.dtype, copy=True)
        active = [dict(zip(self.parameters, boxes, strict=True)) for boxes in boxes_of(extents)]
        self.optimizer.step(active=active, lr_scale=lr_scale, clip_grad=largest)
        for average, p in zip(self.averages, self.parameters, strict=True):
            average.lerp_(p.detach(), blend)

    def arrays(self):
        """Parameters, both moments (0 before the first step) and averages."""
        states = [self.optimizer.state.get(p, {}) for p in self.parameters]
        moments = [
            [s.get(key, torch.zeros_like(p)) for s, p in zip(states, self.parameters, strict=True)]
            for key in ("exp_avg", "exp_avg_sq")
        ]
        return [[p.detach() for p in self.parameters], *moments, self.averages]


class Static:
    """The same with everything in tensors."""

    def __init__(self, inactive, dtype=torch.float32, shadows=False, averages=True, device="cpu"):
        start = Ordinary(inactive, dtype)
        rows = []
        for i, (p, (shape, sides)) in enumerate(zip(start.parameters, SIDES, strict=True)):
            p = p.detach().to(device)
            rows.append(StaticRow(
                p, *(torch.zeros_like(p) for _ in range(3)), sides, i % 2,
                counts=torch.zeros(shape, device=device) if inactive == "masked" else None,
                shadow=p.bfloat16() if shadows else None,
                average=p.clone() if averages else None,
            ))  # fmt: skip
        self.rows = rows
        self.table = StaticTable(rows, inactive, len(GROUPS))
        self.table.write_shells([[(shape, 0)] for shape, _ in SIDES])

    def write(self, gradients, blend=0.0, lr_scale=1.0):
        for row, gradient in zip(self.rows, gradients, strict=True):
            row.gradient.copy_(gradient)
        rates = [Rates(g["lr"] * lr_scale, g["betas"], g["eps"], g["weight_decay"]) for g in GROUPS]
        self.table.write_rates(rates, blend)

    def arrays(self):
        return [
            [getattr(row, name) for row in self.rows]
            for name in ("parameter", "exp_avg", "exp_avg_sq", "average")
        ]


def random_gradients(extents, generator, outside=0.0):
    """Random inside what is sampled, `outside` elsewhere."""
    gradients = []
    for i, (shape, _) in enumerate(SIDES):
        sampled = torch.zeros(shape, dtype=torch.bool)
        for boxes in boxes_of(extents):
            sampled[leading(boxes[i])] = True
        values = torch.randn(shape, generator=generator)
        gradients.append(torch.where(sampled, values, outside))
    return gradients
