"""AdamW for weight-sharing supernets: weights that a step did not sample, and frozen boxes.

AdamW: Loshchilov and Hutter, "Decoupled Weight Decay Regularization", algorithm 2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

Extents = Sequence[int]
Box = tuple[slice, ...]

_MASKED_STATE = ("exp_avg", "exp_avg_sq", "count")


def leading_box(extents: Extents) -> Box:
    """The slices ``[:e0, :e1, ...]``."""
    return tuple(slice(0, extent) for extent in extents)


def subtract(box: Box, extents: Extents) -> list[Box]:
    """`box` without the leading box `extents`, as disjoint boxes: at most one per dimension."""
    if any(side.start >= extent for side, extent in zip(box, extents, strict=True)):
        return [box]
    inner = [
        slice(side.start, min(side.stop, extent)) for side, extent in zip(box, extents, strict=True)
    ]
    # Before the axis: inside the removed box. On it: beyond. After it: all of `box`.
    parts = [
        (*inner[:axis], slice(inner[axis].stop, side.stop), *box[axis + 1 :])
        for axis, side in enumerate(box)
    ]
    return [part for part in parts if all(side.start < side.stop for side in part)]


def boxes_outside(active: Iterable[Extents], frozen: Extents | None = None) -> list[Box]:
    """The union of leading boxes without the leading box `frozen`, as disjoint boxes.

    Args:
        active: leading boxes; they may overlap.
        frozen: leading box to leave out; None for nothing. It may reach beyond the active ones.
    """
    found: list[Box] = []
    seen = [frozen] if frozen is not None else []
    for extents in active:
        parts = [leading_box(extents)] if all(extents) else []
        for other in seen:
            parts = [piece for part in parts for piece in subtract(part, other)]
        found += parts
        seen.append(extents)
    return found


class AdamW(torch.optim.Optimizer):
    """AdamW over the boxes of a supernet's parameters that may move.

    Two meanings for weights that a step did not sample:

    - ``inactive="dense"``: their gradient counts as zero, so weight decay and old moments still
      move them (AutoFormer). The same numbers as `torch.optim.AdamW` with gradients filled with
      zeros, also for parameters without any gradient, such as blocks beyond the sampled depth. From
      the first step on: torch alone leaves a tensor as it is until its first gradient, which is
      another number only for blocks that no earlier stage sampled.
    - ``inactive="masked"``: nothing about them changes. Every weight follows `torch.optim.AdamW`
      run only on the steps that sampled it, with its own step count in the bias correction.

    On top of either, `freeze` takes a leading box of each parameter out: no gradient, no decay, no
    motion from old moments; the bits inside do not change.

    Args:
        params: parameters or groups, as for any torch optimizer; real floating point.
        lr: learning rate.
        betas: decay of the first and second moment.
        eps: added to the root of the second moment.
        weight_decay: decoupled weight decay, times lr.
        inactive: "dense" or "masked".

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
        if inactive not in ("dense", "masked"):
            raise ValueError(f"inactive is {inactive!r}; allowed: 'dense', 'masked'")
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
        self._frozen: dict[Tensor, tuple[int, ...]] = {}

    def freeze(self, extents: Mapping[Tensor, Extents]) -> None:
        """Freeze the leading box ``extents[p]`` of each parameter ``p``, and nothing else.

        Replaces what was frozen before; an empty mapping freezes nothing. Not part of `state_dict`.

        Raises:
            ValueError: a box does not fit its parameter, or a parameter is not of this optimizer.
        """
        known = {p for group in self.param_groups for p in group["params"]}
        for parameter, extent in extents.items():
            if parameter not in known:
                raise ValueError(
                    f"a parameter of shape {tuple(parameter.shape)} is not in this optimizer"
                )
            _check_extents(parameter, extent)
        self._frozen = {p: tuple(extent) for p, extent in extents.items() if all(extent)}

    @torch.no_grad()
    def zero_frozen_grad(self) -> None:
        """Zero the gradient inside frozen boxes, so that norms and logs see only what moves."""
        for parameter, extent in self._frozen.items():
            if parameter.grad is not None:
                parameter.grad[leading_box(extent)].zero_()

    def restart(self) -> None:
        """Forget all moments and step counts."""
        self.state.clear()
        for group in self.param_groups:
            group.pop("step", None)

    @torch.no_grad()
    def step(  # type: ignore[override]
        self,
        closure: Callable[[], float] | None = None,
        *,
        active: Sequence[Mapping[Tensor, Extents]] | None = None,
        lr_scale: float = 1.0,
    ) -> float | None:
        """One update.

        Args:
            closure: reevaluates the loss, as in torch.
            active: for "masked", what the step sampled: for each subnet, the leading box of each
                parameter that it reads. Everything else stays as it is. Not used by "dense".
            lr_scale: factor on every group's learning rate, for this step.

        Raises:
            ValueError: "masked" without `active`, or an active parameter without a gradient.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if self.inactive == "masked" and active is None:
            raise ValueError("inactive='masked' needs `active`, the boxes that the step sampled")
        for group in self.param_groups:
            lr = float(group["lr"]) * lr_scale
            if self.inactive == "dense":
                self._dense(group, lr)
            else:
                assert active is not None
                self._masked(group, lr, active)
        return loss

    def _dense(self, group: dict[str, Any], lr: float) -> None:
        whole: list[tuple[Tensor, ...]] = []
        parts: list[tuple[Tensor, ...]] = []
        for parameter in group["params"]:
            state = self.state[parameter]
            if not state:
                state["exp_avg"] = torch.zeros_like(parameter)
                state["exp_avg_sq"] = torch.zeros_like(parameter)
            gradient = parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
            tensors = (parameter, gradient, state["exp_avg"], state["exp_avg_sq"])
            if parameter in self._frozen:
                boxes = boxes_outside([parameter.shape], self._frozen[parameter])
                parts.extend(tuple(tensor[box] for tensor in tensors) for box in boxes)
            elif _fusible(parameter):
                whole.append((parameter, gradient.contiguous(), *tensors[2:]))
            else:
                parts.append(tensors)
        self._adamw(group, lr, whole, fused=True)
        self._adamw(group, lr, parts, fused=False)
        # Every parameter has seen every step, so one count serves them all.
        group["step"] = group.get("step", 0) + 1

    @staticmethod
    def _adamw(
        group: dict[str, Any], lr: float, rows: list[tuple[Tensor, ...]], fused: bool
    ) -> None:
        if not rows:
            return
        parameters, gradients, exp_avgs, exp_avg_sqs = map(list, zip(*rows, strict=True))
        # torch adds one to each count, so each row needs its own; only the fused kernel reads it
        # on the device.
        device = parameters[0].device if fused else torch.device("cpu")
        steps = list(torch.full((len(rows),), float(group.get("step", 0)), device=device).unbind())
        beta1, beta2 = group["betas"]
        adamw(
            parameters,
            gradients,
            exp_avgs,
            exp_avg_sqs,
            [],
            steps,
            foreach=not fused,
            fused=fused,
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=lr,
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )

    def _masked(
        self, group: dict[str, Any], lr: float, active: Sequence[Mapping[Tensor, Extents]]
    ) -> None:
        rows: list[tuple[Tensor, ...]] = []
        for parameter in group["params"]:
            extents = dict.fromkeys(tuple(e[parameter]) for e in active if parameter in e)
            if not extents:
                continue
            for extent in extents:
                _check_extents(parameter, extent)
            if parameter.grad is None:
                raise ValueError(
                    f"a parameter of shape {tuple(parameter.shape)} is active but has no gradient"
                )
            state = self.state[parameter]
            if not state:
                # One count per weight: a weight first sampled late still gets its bias correction.
                state["count"] = torch.zeros_like(parameter, dtype=torch.float32)
                state["exp_avg"] = torch.zeros_like(parameter)
                state["exp_avg_sq"] = torch.zeros_like(parameter)
            tensors = (parameter, parameter.grad, *(state[key] for key in _MASKED_STATE))
            rows += [
                tuple(tensor[box] for tensor in tensors)
                for box in boxes_outside(extents, self._frozen.get(parameter))
            ]
        if not rows:
            return
        parameters, gradients, exp_avgs, exp_avg_sqs, steps = map(list, zip(*rows, strict=True))
        beta1, beta2 = group["betas"]
        torch._foreach_add_(steps, 1.0)
        if group["weight_decay"]:
            torch._foreach_mul_(parameters, 1.0 - lr * group["weight_decay"])
        torch._foreach_lerp_(exp_avgs, gradients, 1.0 - beta1)
        torch._foreach_mul_(exp_avg_sqs, beta2)
        torch._foreach_addcmul_(exp_avg_sqs, gradients, gradients, value=1.0 - beta2)
        # 1 - beta**step = -expm1(step * log(beta)), so the signs below come in pairs.
        root = torch._foreach_div(exp_avg_sqs, _minus_bias(steps, beta2))
        torch._foreach_neg_(root)
        torch._foreach_sqrt_(root)
        torch._foreach_add_(root, group["eps"])
        torch._foreach_mul_(root, _minus_bias(steps, beta1))
        torch._foreach_addcdiv_(parameters, exp_avgs, root, value=lr)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As in torch; ValueError if the state is from the other meaning of `inactive`."""
        saved = state_dict.get("inactive")
        if saved != self.inactive:
            raise ValueError(f"state of inactive={saved!r} cannot be loaded into {self.inactive!r}")
        super().load_state_dict({k: v for k, v in state_dict.items() if k != "inactive"})
        for state in self.state.values():  # torch casts to the parameter's dtype; counts stay exact
            if "count" in state:
                state["count"] = state["count"].float()

    def state_dict(self) -> dict[str, Any]:
        """As in torch, and which meaning of `inactive` the state belongs to."""
        return {**super().state_dict(), "inactive": self.inactive}


def _fusible(parameter: Tensor) -> bool:
    """Whether torch's one-kernel AdamW takes the whole tensor (it ignores strides)."""
    return parameter.device.type in ("cpu", "cuda") and parameter.is_contiguous()


def _minus_bias(steps: list[Tensor], beta: float) -> list[Tensor]:
    """beta**step - 1 of each count."""
    powers = torch._foreach_mul(steps, float(torch.tensor(beta, dtype=torch.float64).log()))
    torch._foreach_expm1_(powers)
    return list(powers)


def _check_extents(parameter: Tensor, extents: Extents) -> None:
    shape = tuple(parameter.shape)
    fits = len(extents) == len(shape) and all(
        0 <= e <= s for e, s in zip(extents, shape, strict=True)
    )
    if not fits:
        raise ValueError(f"box {tuple(extents)} does not fit a parameter of shape {shape}")
