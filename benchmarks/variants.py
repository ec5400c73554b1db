"""Every way of running the same supernet, behind one interface."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import growtas
from benchmarks.baselines.compiled import CompiledDynamic, CompiledStatic
from benchmarks.baselines.naive import NaiveSupernet
from benchmarks.baselines.smart import SmartSupernet
from benchmarks.baselines.timm_vit import timm_vit
from benchmarks.cases import Case, naive_to_growtas, random_weights, supernet_sizes
from growtas.space import Subnet
from growtas.supernet.graph import WARM_UP, GraphedForward
from growtas.training.graph import GraphedStep
from growtas.training.optimizer import AdamW


class Variant(ABC):
    """A supernet with the case's weights on the case's device."""

    name: str
    model: nn.Module
    same_function = True  # its logits and gradients must equal the naive supernet's
    settling = 1  # calls until it does what it will do from then on

    @abstractmethod
    def logits(self, images: Tensor, subnet: Subnet) -> Tensor:
        """[B, num_classes], including whatever a change of subnet costs."""

    def prepare(self, subnet: Subnet) -> None:  # noqa: B027 (most need nothing)
        """Untimed set-up for a subnet that is about to be measured."""

    def zero_grad(self) -> None:
        self.model.zero_grad()

    def context(self) -> contextlib.AbstractContextManager[None]:
        """Active around forward and backward."""
        return contextlib.nullcontext()

    def optimizer(self) -> torch.optim.Optimizer:
        """AdamW at a rate of zero: the state is updated in full, the weights that were checked
        stay."""
        parameters = list(self.model.parameters())
        return torch.optim.AdamW(parameters, lr=0.0, fused=parameters[0].is_cuda)

    def gradients(self) -> dict[str, Tensor]:
        """Gradient of every parameter under growtas's names and shapes; zeros where None."""
        return {
            name: torch.zeros_like(p) if p.grad is None else p.grad
            for name, p in self.model.named_parameters()
        }

    def forward_step(self, case: Case, images: Tensor, subnet: Subnet) -> Tensor:
        """One inference pass."""
        with torch.no_grad(), self.context(), autocast(case, images.device.type):
            return self.logits(images, subnet)

    def train_step(self, case: Case, images: Tensor, labels: Tensor, subnet: Subnet) -> Tensor:
        """Zero gradients, forward, loss, backward. Returns the logits, detached."""
        self.zero_grad()
        with self.context():
            with autocast(case, images.device.type):
                logits = self.logits(images, subnet)
            F.cross_entropy(logits.float(), labels).backward()
        return logits.detach()


def autocast(case: Case, device: str) -> torch.autocast:
    return torch.autocast(device, torch.bfloat16, enabled=case.dtype == "bfloat16")


class Naive(Variant):
    name = "naive"

    def __init__(self, case: Case, weights: dict[str, Tensor], device: str) -> None:
        self.space = case.space
        self.model: NaiveSupernet = NaiveSupernet(
            **supernet_sizes(case.space), **case.model_sizes, qkv_bias="blocks"
        ).to(device)
        self.model.load_state_dict(weights)

    def logits(self, images: Tensor, subnet: Subnet) -> Tensor:
        # As in AutoFormer's loop, the weights are sliced before autocast begins.
        with torch.autocast(images.device.type, enabled=False):
            self.model.set_sample_config(subnet)
        return self.model(images)

    def gradients(self) -> dict[str, Tensor]:
        return naive_to_growtas(super().gradients(), self.space)


class Smart(Variant):
    name = "smart"
    supernet: type[SmartSupernet] = SmartSupernet

    def __init__(self, case: Case, weights: dict[str, Tensor], device: str) -> None:
        self.model = self.supernet(**supernet_sizes(case.space), **case.model_sizes).to(device)
        self.model.load_state_dict(naive_to_growtas(weights, case.space))

    def logits(self, images: Tensor, subnet: Subnet) -> Tensor:
        return self.model(images, subnet)

    def zero_grad(self) -> None:
        self.model.zero_grad(set_to_none=False)


class StaticCompile(Smart):
    name = "compile-static"
    supernet = CompiledStatic


class DynamicCompile(Smart):
    name = "compile-dynamic"
    supernet = CompiledDynamic


class Timm(Variant):
    name = "timm"
    same_function = False

    def __init__(self, case: Case, weights: dict[str, Tensor], device: str) -> None:
        self.head_dim, self.sizes, self.device = case.space.head_dim, case.model_sizes, device
        self.prepare(case.subnet)

    def prepare(self, subnet: Subnet) -> None:
        self.subnet = subnet
        self.model = timm_vit(subnet, head_dim=self.head_dim, **self.sizes).to(self.device)

    def logits(self, images: Tensor, subnet: Subnet) -> Tensor:
        if subnet != self.subnet:
            raise ValueError(f"built for {self.subnet}, asked to run {subnet}")
        return self.model(images)


class ExtractedGraph(Variant):
    """The subnet on its own, compiled and, on CUDA, replayed from graphs: it cannot be retrained as
    another subnet without building it anew. Its weights have other shapes, so only its logits are
    compared, before it is compiled."""

    name = "extracted-graph"
    same_function = False
    settling = 3  # run, record, replay

    def __init__(self, case: Case, weights: dict[str, Tensor], device: str) -> None:
        self.image_size = case.image_size
        self.supernet = growtas.Supernet(case.space, **case.model_sizes).to(device)
        self.supernet.load_state_dict(naive_to_growtas(weights, case.space))
        self.prepare(case.subnet)

    def prepare(self, subnet: Subnet) -> None:
        self.subnet = subnet
        self.model = self.supernet.extract(subnet)
        device = next(self.model.parameters()).device
        images = torch.randn(2, 3, self.image_size, self.image_size, device=device)
        with torch.no_grad(), growtas.kernels.use_backend("reference"):
            torch.testing.assert_close(
                self.model.eval()(images), self.supernet.eval()(images, subnet),
                rtol=1e-3, atol=1e-3,
            )  # fmt: skip
        mode = "reduce-overhead" if device.type == "cuda" else None
        self.compiled = torch.compile(self.model, mode=mode)

    def logits(self, images: Tensor, subnet: Subnet) -> Tensor:
        if subnet != self.subnet:
            raise ValueError(f"built for {self.subnet}, asked to run {subnet}")
        if images.is_cuda:
            torch.compiler.cudagraph_mark_step_begin()
        return self.compiled(images)


class Growtas(Variant):
    def __init__(
        self,
        case: Case,
        weights: dict[str, Tensor],
        device: str,
        backend: str,
        accumulate: bool,
    ) -> None:
        self.name = f"growtas-{backend}-{'accumulate' if accumulate else 'dense'}"
        self.backend = backend
        self.model: growtas.Supernet = growtas.Supernet(case.space, **case.model_sizes).to(device)
        self.model.load_state_dict(naive_to_growtas(weights, case.space))
        self.accumulator = (
            growtas.kernels.GradientAccumulator(self.model.parameters()) if accumulate else None
        )

    def logits(self, images: Tensor, subnet: Subnet) -> Tensor:
        return self.model(images, subnet, gradients=self.accumulator)

    def zero_grad(self) -> None:
        if self.accumulator is None:
            self.model.zero_grad()
        else:
            self.accumulator.zero_()

    def optimizer(self) -> torch.optim.Optimizer:
        return AdamW(self.model.parameters(), lr=0.0)

    def context(self) -> contextlib.AbstractContextManager[None]:
        return growtas.kernels.use_backend(self.backend)


class GrowtasGraph(Growtas):
    """One CUDA graph for every subnet, whatever the shapes of the batch; a training step includes
    AdamW at a rate of zero. Without a CUDA device the same steps run eagerly."""

    settling = WARM_UP + 1

    def __init__(self, case: Case, weights: dict[str, Tensor], device: str, backend: str) -> None:
        super().__init__(case, weights, device, backend, accumulate=False)
        self.name = f"growtas-{backend}-graph"
        self._steps: dict[tuple[str, torch.Size], GraphedStep] = {}
        self._forwards: dict[tuple[str, torch.Size], GraphedForward] = {}

    def zero_grad(self) -> None:
        """The step does it."""

    def optimizer(self) -> torch.optim.Optimizer:
        """Nothing: the step does it."""
        return torch.optim.SGD([torch.zeros(1)], lr=0.0)

    def forward_step(self, case: Case, images: Tensor, subnet: Subnet) -> Tensor:
        key, dtype = (case.dtype, images.shape), _autocast_dtype(case)
        with self.context():
            if key not in self._forwards:
                self._forwards[key] = GraphedForward(self.model, images, dtype=dtype)
            return self._forwards[key](images, subnet)

    def train_step(self, case: Case, images: Tensor, labels: Tensor, subnet: Subnet) -> Tensor:
        key, dtype = (case.dtype, images.shape), _autocast_dtype(case)
        with self.context():
            if key not in self._steps:
                optimizer = AdamW(self.model.parameters(), lr=0.0)
                self._steps[key] = GraphedStep(self.model, optimizer, images, labels, dtype=dtype)
            return self._steps[key](images, labels, subnet).logits


def _autocast_dtype(case: Case) -> torch.dtype | None:
    return torch.bfloat16 if case.dtype == "bfloat16" else None


Builder = Callable[[Case, dict[str, Tensor], str], Variant]


def _growtas(backend: str, accumulate: bool) -> Builder:
    return lambda case, weights, device: Growtas(case, weights, device, backend, accumulate)


VARIANTS: dict[str, Builder] = {
    "naive": Naive,
    "smart": Smart,
    "timm": Timm,
    "compile-static": StaticCompile,
    "compile-dynamic": DynamicCompile,
    "extracted-graph": ExtractedGraph,
    **{
        f"growtas-{backend}-{mode}": _growtas(backend, mode == "accumulate")
        for backend in ("reference", "native", "triton")
        for mode in ("dense", "accumulate")
    },
    "growtas-triton-graph": lambda case, weights, device: GrowtasGraph(
        case, weights, device, "triton"
    ),
}


def weights_for(case: Case) -> dict[str, Tensor]:
    """The weights every variant of a case gets, under the naive supernet's names."""
    with torch.device("meta"):
        shapes = NaiveSupernet(**supernet_sizes(case.space), **case.model_sizes).state_dict()
    return random_weights(shapes)


def build(name: str, case: Case, device: str) -> Variant:
    """A variant by name, with the case's weights.

    Raises:
        ValueError: unknown name.
    """
    if name not in VARIANTS:
        raise ValueError(f"unknown variant {name!r}; choose from {', '.join(VARIANTS)}")
    return VARIANTS[name](case, weights_for(case), device)


def missing(name: str, device: str) -> str | None:
    """Why a variant cannot run here, or None."""
    if name == "extracted-graph" and device != "cuda":
        return "it needs CUDA graphs"
    if not name.startswith("growtas-"):
        return None
    backend = name.split("-")[1]
    probe = torch.zeros(1, device=device)
    try:
        with growtas.kernels.use_backend(backend):
            for operator in growtas.kernels.dispatch.OPERATORS:
                growtas.kernels.dispatch.select(operator, probe, probe)
    except growtas.kernels.BackendUnavailable as error:
        return str(error)
    return None
