"""AdamW for weight-sharing supernets: weights that a step did not sample, and frozen boxes.

AdamW: Loshchilov and Hutter, "Decoupled Weight Decay Regularization", algorithm 2.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from growtas.base.optional import require
from growtas.kernels import AdamWRow, adamw_, gradient_norm
from growtas.kernels.adamw.row import Tables
from growtas.kernels.adamw.static_table import INACTIVE
from growtas.space import Subnet
from growtas.supernet import Supernet
from growtas.training.boxes import Box, boxes_outside, check_box, within
from growtas.training.config import OptimConfig

_MASKED_STATE = ("exp_avg", "exp_avg_sq", "count")

# Nested leading boxes of a tensor, smallest first, the whole tensor last. What each adds to the one
# before counts its steps on its own; 0: it has not begun.
Shells = list[tuple[tuple[int, ...], int]]


class Stepper(Protocol):
    """Who steps in an optimizer's place, see :meth:`AdamW.hand_over`."""

    def hand_back(self) -> Mapping[Tensor, Sequence[int]]:
        """The step counts of the shells of each parameter. Nothing is known of the optimizer from
        now on: whoever steps in its place again reads all of it again."""


class AdamW(torch.optim.Optimizer):
    """AdamW over the boxes of a supernet's parameters that may move.

    Three meanings for weights that a step did not sample:

    - ``inactive="dense"``: `torch.optim.AdamW` after ``zero_grad(set_to_none=False)``, as torch
      before 2.0 did by itself, hence AutoFormer. A parameter is left alone until the first step
      that samples any part of it. From then on every step moves all of it, where it was not sampled
      with a gradient of zero: weight decay and old moments. One step count per parameter.
    - ``inactive="skip"``: `torch.optim.AdamW` after ``zero_grad()`` of torch 2.0 and later. As
      "dense", but a step leaves the parameters alone of which it samples nothing (blocks beyond the
      sampled depth).
    - ``inactive="masked"``: nothing about them changes. Every weight follows `torch.optim.AdamW`
      run only on the steps that sampled it, with its own step count in the bias correction.

    On top of each, `freeze` takes a leading box of each parameter out: no gradient, no decay, no
    motion from old moments; the bits inside do not change.

    Args:
        params: parameters or groups, as for any torch optimizer; real floating point.
        lr: learning rate.
        betas: decay of the first and second moment.
        eps: added to the root of the second moment.
        weight_decay: decoupled weight decay, times lr.
        inactive: "dense", "masked" or "skip".

    Attributes:
        stepper: who steps in this optimizer's place and holds the step counts, see
            :meth:`hand_over`; None while they are in `state`.

    Raises:
        ValueError: a setting is out of range.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.05,
        inactive: str = "dense",
    ) -> None:
        if inactive not in INACTIVE:
            allowed = ", ".join(map(repr, sorted(INACTIVE)))
            raise ValueError(f"inactive is {inactive!r}; allowed: {allowed}")
        if not (lr >= 0 and eps > 0 and weight_decay >= 0):
            raise ValueError(
                f"lr and weight_decay must be at least 0 and eps above 0, got lr {lr}, "
                f"weight_decay {weight_decay}, eps {eps}"
            )
        if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas must be two numbers in [0, 1), got {betas}")
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, defaults)
        self.inactive = inactive
        self.stepper: Stepper | None = None
        self._frozen: dict[Tensor, tuple[int, ...]] = {}
        # What the kernels keep on the device for the norm and for each group, by its number.
        self._tables: defaultdict[str | int, Tables] = defaultdict(dict)

    def freeze(self, extents: Mapping[Tensor, Box]) -> None:
        """Freeze the leading box ``extents[p]`` of each parameter ``p``, and nothing else.

        Replaces what was frozen before; an empty mapping freezes nothing. Not part of `state_dict`.

        Raises:
            ValueError: a box does not fit its parameter, or a parameter is not of this optimizer.
        """
        self._check(extents)
        self._take_back()
        self._frozen = {p: tuple(box) for p, box in extents.items() if all(box)}

    @property
    def frozen(self) -> Mapping[Tensor, tuple[int, ...]]:
        """The frozen boxes, none of them empty."""
        return self._frozen

    def hand_over(self, stepper: Stepper) -> None:
        """From now on `stepper` steps, on the weights and the arrays of this optimizer's state, and
        counts the steps. It hands back before this optimizer reads the counts, steps itself, or
        changes its state or what is frozen."""
        self._take_back()
        self.stepper = stepper

    def _take_back(self) -> None:
        stepper, self.stepper = self.stepper, None
        if stepper is not None:
            for parameter, counts in stepper.hand_back().items():
                state = self.state.get(parameter, {})
                if "shells" in state:
                    edges = [edge for edge, _ in state["shells"]]
                    state["shells"] = list(zip(edges, counts, strict=True))

    def restart(self) -> None:
        """Forget all moments and step counts."""
        self._take_back()
        self.state.clear()

    @torch.no_grad()
    def reset(self, old: Mapping[Tensor, Box], new: Mapping[Tensor, Box]) -> None:
        """Forget the moments and step counts of the weights in `new` that are not in `old`.

        For "dense" and "skip" what is reset goes on as a parameter of its own: left alone until the
        first step that samples any part of it, with its own step count.

        Args:
            old: leading boxes; a parameter that is missing has none.
            new: leading boxes; of a parameter that is missing nothing is reset.

        Raises:
            ValueError: a box does not fit its parameter, `old` is not within `new`, or boxes of
                an earlier call are not nested with these.
        """
        self._check(old)
        self._check(new)
        self._take_back()
        regions = []
        for parameter, outer in new.items():
            inner = tuple(old.get(parameter, (0,) * parameter.dim()))
            if not within(inner, outer):
                raise ValueError(f"box {inner} is not within box {tuple(outer)}")
            state = self.state.get(parameter)
            if state:
                shells = _cut(_cut(state.get("shells", []), inner), tuple(outer))
                regions.append((state, shells, inner, outer))
        for state, shells, inner, outer in regions:
            for key in state.keys() & set(_MASKED_STATE):
                for box in boxes_outside([outer], [inner]):
                    state[key][box] = 0
            if shells:
                state["shells"] = [
                    (edge, 0 if within(edge, outer) and not within(edge, inner) else steps)
                    for edge, steps in shells
                ]

    @torch.no_grad()
    def step(  # type: ignore[override]
        self,
        closure: Callable[[], float] | None = None,
        *,
        active: Sequence[Mapping[Tensor, Box]] | None = None,
        lr_scale: float = 1.0,
        clip_grad: float | None = None,
    ) -> float | None:
        """One update.

        Args:
            closure: reevaluates the loss, as in torch.
            active: what the step sampled: for each subnet, the leading box of each parameter that
                it reads. None: whole parameters, those that have a gradient (torch's own rule; not
                for "masked").
            lr_scale: factor on every group's learning rate, for this step.
            clip_grad: largest norm of the gradient of all that moves; gradients count as scaled
                down to it, but are not written. None for no clipping.

        Raises:
            ValueError: "masked" without `active`, a box that does not fit, or an active parameter
                without a gradient.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if self.inactive == "masked" and active is None:
            raise ValueError("inactive='masked' needs `active`, the boxes that the step sampled")
        self._take_back()
        rows_of = self._masked_rows if self.inactive == "masked" else self._dense_rows
        rows = [
            [r for p in group["params"] for r in rows_of(p, _sampled(p, active))]
            for group in self.param_groups
        ]
        everything = [row for own in rows for row in own]
        clip = None
        if clip_grad is not None and everything:
            clip = (gradient_norm(everything, tables=self._tables["norm"]), clip_grad)
        for number, (group, own) in enumerate(zip(self.param_groups, rows, strict=True)):
            adamw_(
                own,
                lr=float(group["lr"]) * lr_scale,
                betas=group["betas"],
                eps=group["eps"],
                weight_decay=group["weight_decay"],
                clip=clip,
                tables=self._tables[number],
            )
        return loss

    def _check(self, boxes: Mapping[Tensor, Box]) -> None:
        known = {p for group in self.param_groups for p in group["params"]}
        for parameter, box in boxes.items():
            if parameter not in known:
                raise ValueError(
                    f"a parameter of shape {tuple(parameter.shape)} is not in this optimizer"
                )
            check_box(parameter, box)

    def _dense_rows(self, parameter: Tensor, sampled: Sequence[tuple[int, ...]]) -> list[AdamWRow]:
        state = self.state.get(parameter)
        if not state:
            if not sampled:
                return []
            state = self.begin(parameter)
        gradient = parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
        arrays = (parameter, gradient, state["exp_avg"], state["exp_avg_sq"])
        frozen = self._frozen_boxes(parameter)
        rows: list[AdamWRow] = []
        shells: Shells = []
        inside: list[Box] = []
        for edge, steps in state["shells"]:
            read = boxes_outside([tuple(map(min, box, edge)) for box in sampled], inside)
            if read or (steps and self.inactive == "dense"):
                steps += 1
                rows.append(AdamWRow(*arrays, boxes_outside([edge], [*inside, *frozen]), steps))
            shells.append((edge, steps))
            inside = [edge]
        state["shells"] = shells
        return rows

    def _masked_rows(self, parameter: Tensor, sampled: Sequence[tuple[int, ...]]) -> list[AdamWRow]:
        if not sampled:
            return []
        state = self.begin(parameter)
        assert parameter.grad is not None  # _sampled has seen to it
        boxes = boxes_outside(sampled, self._frozen_boxes(parameter))
        arrays = (parameter, parameter.grad, state["exp_avg"], state["exp_avg_sq"])
        return [AdamWRow(*arrays, boxes, counts=state["count"])]

    def begin(self, parameter: Tensor) -> dict[str, Any]:
        """The state of a parameter, made now if there is none: moments zero, no step taken."""
        state = self.state[parameter]
        if not state:
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
            if self.inactive == "masked":
                # One count per weight: a weight first sampled late still gets its bias correction.
                state["count"] = torch.zeros_like(parameter, dtype=torch.float32)
            else:
                state["shells"] = [(tuple(parameter.shape), 0)]
        return state

    def _frozen_boxes(self, parameter: Tensor) -> list[tuple[int, ...]]:
        return [self._frozen[parameter]] if parameter in self._frozen else []

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As in torch; ValueError if the state is from another meaning of `inactive`."""
        saved = state_dict.get("inactive")
        if saved != self.inactive:
            raise ValueError(f"state of inactive={saved!r} cannot be loaded into {self.inactive!r}")
        self._take_back()
        super().load_state_dict({k: v for k, v in state_dict.items() if k != "inactive"})
        for state in self.state.values():  # torch casts to the parameter's dtype; counts stay exact
            if "count" in state:
                state["count"] = state["count"].float()

    def state_dict(self) -> dict[str, Any]:
        """As in torch, and which meaning of `inactive` the state belongs to."""
        self._take_back()
        return {**super().state_dict(), "inactive": self.inactive}


def _sampled(
    parameter: Tensor, active: Sequence[Mapping[Tensor, Box]] | None
) -> list[tuple[int, ...]]:
    """The different leading boxes of a parameter that a step sampled, none of them empty."""
    if active is None:
        return [] if parameter.grad is None else [tuple(parameter.shape)]
    found = dict.fromkeys(tuple(boxes[parameter]) for boxes in active if parameter in boxes)
    for box in found:
        check_box(parameter, box)
    if found and parameter.grad is None:
        raise ValueError(
            f"a parameter of shape {tuple(parameter.shape)} is active but has no gradient"
        )
    return [box for box in found if all(box)]


def _cut(shells: Shells, box: tuple[int, ...]) -> Shells:
    """The same shells with a boundary at `box`; ValueError if it does not nest with them."""
    if not shells or not all(box) or any(box == edge for edge, _ in shells):
        return shells
    before = [(edge, steps) for edge, steps in shells if within(edge, box)]
    after = shells[len(before) :]
    if not within(box, after[0][0]):
        raise ValueError(f"box {box} is not nested with box {after[0][0]}, reset before")
    return [*before, (box, after[0][1]), *after]


def build_optimizer(model: Supernet, optim: OptimConfig, batch_size: int) -> AdamW:
    """AdamW with timm's groups: no weight decay for biases, 1-D parameters and tokens."""
    groups = require("timm.optim", "train").param_groups_weight_decay(
        model, optim.weight_decay, no_weight_decay_list=model.no_weight_decay()
    )
    return AdamW(
        groups,
        lr=optim.peak_lr(batch_size),
        betas=optim.betas,
        eps=optim.eps,
        weight_decay=optim.weight_decay,
        inactive=optim.inactive,
    )


def trained_boxes(
    model: Supernet, subnets: Iterable[Subnet]
) -> list[dict[Tensor, tuple[int, ...]]]:
    """Of each subnet the box that it reads of each parameter that trains; others are absent."""
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    return [
        {parameters[name]: box for name, box in model.boxes(subnet).items() if name in parameters}
        for subnet in subnets
    ]


def update(
    model: Supernet,
    optimizer: AdamW,
    scaler: torch.amp.GradScaler,
    subnets: Iterable[Subnet],
    *,
    lr_scale: float = 1.0,
    clip_grad: float | None = None,
) -> None:
    """What follows the gradients of a step that sampled `subnets`: unscale, clip and move the
    weights (see :meth:`AdamW.step`), adapt the scale of the loss."""
    active = trained_boxes(model, dict.fromkeys(subnets))
    scaler.unscale_(optimizer)
    scaler.step(optimizer, active=active, lr_scale=lr_scale, clip_grad=clip_grad)
    scaler.update()
