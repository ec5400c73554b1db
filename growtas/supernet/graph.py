"""One CUDA graph for every subnet: the capture itself, and a forward pass without gradients.

See docs/one-graph.md. Where there is no graph the same functions run eagerly, and `reason` says
why.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from growtas.base.precision import autocast
from growtas.kernels.extents import check_groups
from growtas.space import Subnet
from growtas.supernet.vit.model import Supernet

WARM_UP = 3  # calls before the capture: kernels are compiled, tables and workspaces allocated


class Graph:
    """Calls a function of no arguments: some times as it is, then as a CUDA graph of it.

    The first calls are real ones, on the side stream that the capture uses later, so nothing has to
    be undone after them.

    Args:
        function: reads and writes tensors that stay where they are.
        device: of those tensors.
        generators: random generators that it uses besides the device's default one.

    Attributes:
        reason: why there is no graph and will be none; None if there is one, or will be after
            `WARM_UP` calls.
    """

    def __init__(
        self,
        function: Callable[[], None],
        device: torch.device,
        generators: tuple[torch.Generator, ...] = (),
    ) -> None:
        self.function = function
        self.device = device
        self.generators = generators
        self.reason: str | None = None
        self._calls = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        if device.type != "cuda":
            self.reason = f"the model is on {device.type}; a CUDA graph needs a CUDA device"
        else:
            self._stream = torch.cuda.Stream(device)

    def __call__(self) -> None:
        if self._graph is None and self.reason is None and self._calls == WARM_UP:
            self._capture()
        if self._graph is not None:
            self._graph.replay()
        elif self.reason is not None:
            self.function()
        else:
            self._calls += 1
            current = torch.cuda.current_stream(self.device)
            self._stream.wait_stream(current)
            with torch.cuda.stream(self._stream):
                self.function()
            current.wait_stream(self._stream)

    def _capture(self) -> None:
        graph = torch.cuda.CUDAGraph()
        for generator in self.generators:
            graph.register_generator_state(generator)
        try:
            # Threads of a data loader may allocate and wait meanwhile.
            with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
                self.function()
        except RuntimeError as error:
            self.reason = f"the capture failed: {error}"
            warnings.warn(f"growtas runs without a CUDA graph: {self.reason}", stacklevel=4)
        else:
            self._graph = graph


class GraphedForward:
    """Logits of any subnets on batches of one shape, from one CUDA graph; without gradients.

    Args:
        model: in evaluation mode while it runs; its weights are read where they are, so they may be
            changed in place.
        images: a batch like those to come, ``[B, channels, height, width]``; copied.
        dtype: of autocast; None for none.
        groups: S, subnets of one call; each gets its share of the batch, as in
            :meth:`growtas.Supernet.forward`.

    Attributes:
        reason: why there is no graph; None if there is or will be one.

    Raises:
        ValueError: S does not divide the batch.
    """

    def __init__(
        self,
        model: Supernet,
        images: Tensor,
        *,
        dtype: torch.dtype | None = None,
        groups: int = 1,
    ) -> None:
        check_groups(images, groups)
        self.model = model
        self.dtype = dtype
        self.device = model.head.weight.device
        self._images = images.to(self.device, copy=True)
        self._share = self._images[: len(images) // groups]
        self._logits = logits_buffer(model, self._images)
        self._extents = model.new_extents(groups)
        self._graph = Graph(self._forward, self.device)

    @property
    def reason(self) -> str | None:
        return self._graph.reason

    @property
    def groups(self) -> int:
        """Subnets of one call."""
        return self._extents.groups

    def __call__(self, images: Tensor | None, subnets: Subnet | Sequence[Subnet]) -> Tensor:
        """Class logits, float32 ``[B, classes]``: overwritten by the next call.

        Args:
            images: a batch; or ``[B / S, ...]``, which every subnet gets; or None for those of the
                call before.
            subnets: S of them; one will do where S is 1.

        Raises:
            ValueError: a batch of another shape, another number of subnets, or one that extents on
                the device cannot hold (see :meth:`growtas.Supernet.new_extents`).
        """
        if images is not None:
            same = len(images) == len(self._share)
            check_batch("images", images, self._share if same else self._images)
        self._extents.write(subnets)
        if images is not None:
            buffer = self._images.unflatten(0, (self.groups, -1)) if same else self._images
            buffer.copy_(images, non_blocking=True)
        self._graph()
        return self._logits

    @torch.no_grad()
    def _forward(self) -> None:
        training = self.model.training
        self.model.eval()
        try:
            with autocast(self.dtype, self.device):
                logits = self.model.forward_static(self._images, self._extents)
        finally:
            self.model.train(training)
        self._logits.copy_(logits)


def logits_buffer(model: Supernet, images: Tensor) -> Tensor:
    """Zeros, float32 ``[B, classes]``."""
    return torch.zeros(len(images), model.config["num_classes"], device=images.device)


def check_batch(name: str, batch: Tensor, buffer: Tensor) -> None:
    """ValueError unless the batch has the buffer's shape and dtype."""
    if batch.shape != buffer.shape or batch.dtype != buffer.dtype:
        raise ValueError(
            f"{name} are {batch.dtype} {tuple(batch.shape)}; this graph takes "
            f"{buffer.dtype} {tuple(buffer.shape)}"
        )
