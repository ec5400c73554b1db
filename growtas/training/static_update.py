"""The optimizer's step with everything that changes from step to step in tensors on the device, so
that it can be part of a captured graph."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from growtas.kernels.adamw.api import adamw_static_, static_unavailable
from growtas.kernels.adamw.row import Rates
from growtas.kernels.adamw.static_table import SHELLS, Sides, StaticRow, StaticTable
from growtas.training.optimizer import AdamW, Shells


class StaticUpdate:
    """Steps in an optimizer's place, on the same weights and state, for what a table of extents
    holds.

    The state is the optimizer's own, but for step counts: while this is its `stepper` they lie on
    the device. Before anything else happens to the optimizer (a step of its own, a loaded or
    forgotten state, frozen boxes) it takes them back; the next :meth:`prepare` reads what has
    become of it, into the same memory.

    Args:
        optimizer: whose parameters move.
        sides: what a subnet reads of each of them.
        gradients: of the parameters that train; the tensors stay where they are.
        averages: moving averages of the parameters, likewise; empty for none.
    """

    def __init__(
        self,
        optimizer: AdamW,
        sides: Mapping[Tensor, Sides],
        gradients: Mapping[Tensor, Tensor],
        averages: Mapping[Tensor, Tensor],
    ) -> None:
        self.optimizer = optimizer
        self._sides = sides
        self._gradients = gradients
        self._averages = averages
        self._group_of = {
            p: number
            for number, group in enumerate(optimizer.param_groups)
            for p in group["params"]
            if p in gradients
        }
        self._parameters = list(self._group_of)
        self._table = StaticTable(self._rows(), optimizer.inactive, len(optimizer.param_groups))
        self._numbers: tuple[list[Rates], float] | None = None

    def unavailable(self) -> str | None:
        """Why it cannot step; None if it can."""
        if self.optimizer.stepper is not self:
            shells = max(len(self._shells(p)) for p in self._parameters)
            if shells > SHELLS:
                return f"a parameter is divided into {shells} parts by resets; allowed: {SHELLS}"
        return static_unavailable(self._parameters[0])

    def prepare(self, lr_scale: float, blend: float) -> None:
        """Write what has changed since the last step.

        Args:
            lr_scale: factor on every group's learning rate.
            blend: share of the new weights in the averages.
        """
        if self.optimizer.stepper is not self:
            self.optimizer.hand_over(self)
            frozen = self.optimizer.frozen
            self._table.write_rows(self._rows())
            self._table.write_frozen([frozen.get(p) for p in self._parameters])
            self._table.write_shells([self._shells(p) for p in self._parameters])
        rates = [
            Rates(float(g["lr"]) * lr_scale, g["betas"], g["eps"], g["weight_decay"])
            for g in self.optimizer.param_groups
        ]
        if (rates, blend) != self._numbers:
            self._table.write_rates(rates, blend)
            self._numbers = (rates, blend)

    def __call__(self, extents: Tensor, clip_grad: float | None, scale: Tensor | None) -> Tensor:
        """The step; what is launched does not depend on what changes.

        Args:
            extents: int32 ``[S, rows, columns]``, the sizes of S subnets.
            clip_grad: largest norm of the gradient; None for no clipping.
            scale: float32 ``[]``, what the loss was multiplied by; None for 1.

        Returns:
            float32 ``[]``: 1 if a gradient was not finite, so that the step was left out; 0 without
            a scale.
        """
        adamw_static_(self._table, extents, largest=clip_grad, scale=scale)
        return self._table.found_inf

    def hand_back(self) -> dict[Tensor, list[int]]:
        """The step counts, see :class:`growtas.training.optimizer.Stepper`."""
        counted = zip(self._parameters, self._table.steps.tolist(), strict=True)
        return {p: [int(n) for n in counts[-len(self._shells(p)) :]] for p, counts in counted}

    def _shells(self, parameter: Tensor) -> Shells:
        return self.optimizer.begin(parameter).get("shells", [(tuple(parameter.shape), 0)])

    def _rows(self) -> list[StaticRow]:
        states = [(p, self.optimizer.begin(p)) for p in self._parameters]
        return [
            StaticRow(
                p.detach(),
                self._gradients[p],
                state["exp_avg"],
                state["exp_avg_sq"],
                self._sides[p],
                self._group_of[p],
                counts=state.get("count"),
                average=self._averages.get(p),
            )
            for p, state in states
        ]
