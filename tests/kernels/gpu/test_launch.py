"""Where kernels are launched, and that what is launched has been compiled ahead."""

from __future__ import annotations

import re
from contextlib import contextmanager

import pytest
import stand_in_driver
import torch

from growtas.kernels import precompile
from growtas.kernels.triton import configs
from growtas.kernels.triton import support as triton_support
from growtas.kernels.triton.configs import Config
from growtas.kernels.triton.launch import launch, recorded


class Elsewhere:
    """As much of a tensor on cuda:1 as a launch looks at."""

    def get_device(self):
        return 1


class Kernel:
    """Notes the device that is current when it is launched."""

    def __init__(self, cuda):
        self.cuda, self.launches = cuda, []

    def __getitem__(self, grid):
        def run(*arguments, **options):
            self.launches.append((grid, self.cuda.current, options))

        return run


class Cuda:
    """The current device, and how often it was switched."""

    current = switches = 0

    @contextmanager
    def device(self, index):
        before, self.current = self.current, index
        self.switches += 1
        yield
        self.current = before


@pytest.fixture
def cuda(monkeypatch):
    cuda = Cuda()
    monkeypatch.setattr(torch.cuda, "current_device", lambda: cuda.current)
    monkeypatch.setattr(torch.cuda, "device", cuda.device)
    return cuda


def test_a_kernel_runs_on_the_device_of_its_tensors(cuda):
    """Whichever is current; nothing is switched where it is the right one, or the interpreter's."""
    kernel = Kernel(cuda)

    def run(first):
        launch(kernel, 3, (first, 7), {"BLOCK": 16}, Config((16,), 4, 2))

    run(Elsewhere())
    assert (cuda.switches, cuda.current) == (1, 0)
    cuda.current = 1
    run(Elsewhere())
    assert (cuda.switches, cuda.current) == (1, 1)
    run(torch.zeros(1))
    assert cuda.switches == 1
    options = {"BLOCK": 16, "num_warps": 4, "num_stages": 2}
    assert kernel.launches == [((3,), 1, options)] * 3


@pytest.mark.parametrize("operator", ["linear", "layer_norm", "attention", "adamw"])
def test_every_kernel_is_launched_there(operator):
    """A kernel's first argument is a tensor, whose device is taken; no argument is left out."""
    launches = [build.launch for build in precompile.builds(90, [operator])]
    assert launches
    for kernel, _, arguments, constants, _ in launches:
        assert isinstance(arguments[0], torch.Tensor)
        assert set(kernel.arg_names) == {*kernel.arg_names[: len(arguments)], *constants}


def test_recording_ends_with_its_block(cuda):
    kernel = Kernel(cuda)
    with recorded(120) as launches:
        launch(kernel, 1, (torch.empty(1, device="meta"),), {}, Config((), 4, 1))
        assert configs.architecture(torch.device("meta")) == 120
    assert (len(launches), kernel.launches) == (1, [])
    launch(kernel, 1, (torch.zeros(1),), {}, Config((), 4, 1))
    assert (len(launches), len(kernel.launches)) == (1, 1)


@pytest.mark.parametrize(
    ("capability", "table"),
    [((8, 0), 80), ((8, 6), 80), ((8, 7), 80), ((8, 9), 80), ((9, 0), 90), ((10, 0), 90),
     ((10, 3), 90), ((12, 0), 120), ((12, 1), 120)],
)  # fmt: skip
def test_the_table_of_a_device(monkeypatch, capability, table):
    """That of the nearest architecture below; a 120 has no room for the 90's."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    configs._of_device.cache_clear()
    assert configs.architecture(torch.device("cuda", 0)) == table
    configs._of_device.cache_clear()


def test_a_device_that_is_too_old(monkeypatch):
    class Tensor:
        device, dtype = torch.device("cuda", 0), torch.float32

    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    reason = triton_support.unsupported(Tensor())
    assert reason == "it needs compute capability 8.0, the device has 7.5"


# Compiling is left out: what is compared is what Triton keeps a compilation by.
KEYS = """
import torch
import triton.compiler

asked = set()

class Compiled:
    function = packed_metadata = None
    asm = {"cubin": b""}
    metadata = type("Metadata", (), {"shared": 0})

    def launch_metadata(self, *arguments):
        return None

    def run(self, *arguments):
        pass

def compile(source, target=None, options=None, **rest):
    asked.add((source.name, source.hash(), str(target), str(sorted(options.items()))))
    return Compiled()

triton.compiler.compile = compile

from growtas.kernels import precompile

precompile._usage = lambda cubin: (0, 0)
compiled_in = set()
with precompile.triton_compiles_for(90):
    for build in precompile.builds(90):
        precompile.compile_build(build)
        compiled_in |= {
            (build.launch.kernel.__name__, parameter.name)
            for argument, parameter in zip(build.launch.arguments, build.launch.kernel.params)
            if isinstance(argument, int) and not parameter.do_not_specialize
        }
print("numbers compiled in:", sorted(compiled_in))
ahead = set(asked)
asked.clear()
record = stand_in_driver.install(90)

import growtas
from growtas.kernels import GradientAccumulator
from growtas.kernels.adamw import gpu, native
from growtas.training.graph import GraphedStep
from growtas.training.optimizer import AdamW

native.step_static_ = gpu.step_static_  # as where there is no library for CUDA devices
space = growtas.SearchSpace(
    embed_dim=(192, 216), depth=(1, 2), num_heads=(3, 4), mlp_ratio=(3.5, 4.0), head_dim=64
)
model = growtas.Supernet(space, image_size=224, patch_size=16, num_classes=1000, drop_path=0.1)
images, labels = torch.randn(4, 3, 224, 224), torch.randint(1000, (4,))

def run(subnet, gradients=None):
    with torch.autocast("cpu", torch.bfloat16):
        return model(images, subnet, gradients=gradients).float()

for mode in (model.train(), model.eval()):
    for subnet in (space.smallest(), space.largest()):
        torch.nn.functional.cross_entropy(run(subnet), labels).backward()
        with torch.no_grad():
            run(subnet)
gradients = GradientAccumulator(model.parameters())
torch.nn.functional.cross_entropy(run(space.smallest(), gradients), labels).backward()
AdamW(model.parameters(), lr=1e-3).step()
optimizer = AdamW(model.train().parameters(), lr=1e-3)
step = GraphedStep(model, optimizer, images, labels, dtype=torch.bfloat16, clip_grad=1.0)
step(images, labels, space.smallest())
print(len({name for name, *_ in asked}), "kernels", len(asked), "builds")
print("not compiled ahead:", sorted(name for name, *_ in asked - ahead))
"""


def test_what_a_model_launches_has_been_compiled_ahead():
    """Eagerly with dense gradients and an accumulator, in evaluation, and in the step that is
    captured: by the same keys of Triton's cache. No number that changes from call to call is
    compiled in."""
    printed = stand_in_driver.run(KEYS)
    assert "numbers compiled in: []" in printed
    kernels, builds = map(int, re.findall(r"(\d+) kernels (\d+) builds", printed)[0])
    assert kernels >= 12
    assert builds >= 30
    assert "not compiled ahead: []" in printed


NORM = """
import torch
from growtas import kernels

x = torch.zeros(2, 384, requires_grad=True)
weight, bias = (torch.ones(384, requires_grad=True) for _ in range(2))
with torch.autocast("cpu", torch.bfloat16):
    y, stream = kernels.pre_norm(x, weight, bias)
(y.float() + stream).sum().backward()
print(len(record.builds), "asked for")
"""


def test_the_cache_on_disk_is_filled_ahead(tmp_path, monkeypatch):
    """Nothing new is compiled where `precompile` was run."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    ahead = "from growtas.kernels import precompile\nprecompile.main(ARGUMENTS)"
    arguments = ["--arch", "90", "--operators", "layer_norm", "--quick"]
    stand_in_driver.run(ahead.replace("ARGUMENTS", repr(arguments)))
    filled = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*.cubin"))
    assert len(filled) == 2
    assert "2 asked for" in stand_in_driver.run(NORM)
    assert sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*.cubin")) == filled
