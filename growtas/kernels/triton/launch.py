"""The one way in which Triton kernels are launched, or only recorded, to be compiled ahead."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from growtas.kernels.triton import configs
from growtas.kernels.triton.configs import Config


class Launch(NamedTuple):
    """One kernel launch.

    Attributes:
        kernel: the ``triton.jit`` function.
        programs: how many there are.
        arguments: in the order of the kernel's, the first a tensor; its device is where the kernel
            runs.
        constants: values of all ``tl.constexpr`` arguments, by name.
        config: of which warps and stages count; the blocks are among the constants.
    """

    kernel: Any
    programs: int
    arguments: tuple[Any, ...]
    constants: dict[str, Any]
    config: Config

    def run(self) -> None:
        launch(*self)

    @property
    def key(self) -> tuple[Any, ...]:
        """What it is compiled by. No kernel is specialised for the value of a number."""
        types = tuple(map(_type, self.arguments))
        constants = tuple(sorted(self.constants.items()))
        return self.kernel.__name__, types, constants, self.config.warps, self.config.stages


def _type(argument: Any) -> Any:
    if isinstance(argument, Tensor):
        return argument.dtype, argument.data_ptr() % 16 == 0
    return type(argument)


_recorded: list[Launch] | None = None  # where launches go instead of to a device


def launch(
    kernel: Any,
    programs: int,
    arguments: tuple[Any, ...],
    constants: dict[str, Any],
    config: Config,
) -> None:
    """Launch a kernel on its first argument's device: see :class:`Launch`.

    Triton launches on the current device, which need not be the tensors'. Warps and stages are
    always given, since what is left out and what is given as the default are two compilations.
    """
    if _recorded is not None:
        _recorded.append(Launch(kernel, programs, arguments, constants, config))
        return
    device = arguments[0].get_device()  # -1: in the interpreter
    if device >= 0 and device != torch.cuda.current_device():
        with torch.cuda.device(device):
            kernel[(programs,)](
                *arguments, **constants, num_warps=config.warps, num_stages=config.stages
            )
    else:
        kernel[(programs,)](
            *arguments, **constants, num_warps=config.warps, num_stages=config.stages
        )


@contextmanager
def recorded(architecture: int) -> Iterator[list[Launch]]:
    """Inside the ``with`` block nothing is launched: operators called there, on tensors of the
    "meta" device, leave what they would launch on such an architecture in the list."""
    global _recorded
    before, _recorded = _recorded, []
    try:
        with configs.ahead(architecture):
            yield _recorded
    finally:
        _recorded = before
