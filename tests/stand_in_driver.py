"""The launch path of a GPU on a machine without one.

`install(capability)` puts a stand-in driver under Triton: kernels are specialised, keyed and
compiled for that architecture exactly as a launch would do it, but a launch is only recorded.
Tensors stay on the CPU and hold nothing meaningful afterwards.

Triton must not be in interpreter mode, and the process keeps the stand-in: use it in a process of
its own, as `run` does.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent


class Build(NamedTuple):
    """One compilation that a launch asked for.

    Attributes:
        name: the kernel's.
        constants: by parameter, the values that are compiled in.
        types: by parameter, Triton's type ("*bf16", "i32", "constexpr"); ":16" is added where the
            address or value is known to be a multiple of 16.
        warps, stages: the options of the compilation.
        compiled: Triton's kernel: `compiled.asm["cubin"]`, `compiled.metadata.shared`.
    """

    name: str
    constants: dict[str, Any]
    types: dict[str, str]
    warps: int
    stages: int
    compiled: Any


class Launch(NamedTuple):
    """One launch: the kernel's name, its grid and its arguments, tensors included."""

    name: str
    grid: tuple[int, int, int]
    arguments: tuple[Any, ...]


@dataclass
class Record:
    """What has happened since `install`, in order."""

    builds: list[Build] = field(default_factory=list)
    launches: list[Launch] = field(default_factory=list)


class _Utils:
    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": 10**9, "multiprocessor_count": 132, "warpSize": 32}

    def load_binary(self, name: str, *rest: object) -> tuple[int, int, int, int, int]:
        return 0, hash(name), 0, 0, 1024  # module, function, registers, spills, threads

    def unload_module(self, module: int) -> None:
        pass


class _Driver:
    """What Triton 3.6 to 3.8 ask of a driver."""

    utils = _Utils()

    def __init__(self, capability: int, record: Record) -> None:
        from triton.backends.compiler import GPUTarget

        self.target = GPUTarget("cuda", capability, 32)

        class Launcher:
            def __init__(self, source: Any, metadata: Any) -> None:
                self.name = source.fn.__name__

            def __call__(
                self, x: int, y: int, z: int, stream: int, function: int, packed: Any,
                metadata: Any, enter: Any, leave: Any, *arguments: Any,
            ) -> None:  # fmt: skip
                record.launches.append(Launch(self.name, (x, y, z), arguments))

        self.launcher_cls = Launcher

    def get_current_target(self) -> Any:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def set_current_device(self, device: int) -> None:
        pass

    def get_current_stream(self, device: int = 0) -> int:
        return 0

    def get_active_torch_device(self) -> Any:
        import torch

        return torch.device("cpu")


def install(capability: int) -> Record:
    """Launch on the stand-in from now on, and let growtas choose Triton kernels for CPU tensors.

    Args:
        capability: of the card that is stood in for: 80, 86, 89, 90, 100 or 120.

    Raises:
        RuntimeError: Triton's interpreter is on, where nothing is compiled.
    """
    import torch
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    from growtas.kernels import dispatch
    from growtas.kernels.triton import support as triton_support

    if triton_support.interpreted():
        raise RuntimeError("TRITON_INTERPRET is set: kernels are interpreted, not compiled")
    record = Record()
    driver.set_active(_Driver(capability, record))
    torch.cuda.get_device_capability = lambda device=None: divmod(capability, 10)
    compile_for_launch = JITFunction._do_compile

    def recorded(
        self: Any, key: Any, signature: Any, device: Any, constexprs: Any, options: Any,
        attrs: Any, warmup: Any,
    ) -> Any:  # fmt: skip
        compiled = compile_for_launch(
            self, key, signature, device, constexprs, options, attrs, warmup
        )
        names = [parameter.name for parameter in self.params]
        aligned = {names[path[0]] for path, found in attrs.items() if found}
        record.builds.append(
            Build(
                self.__name__,
                {names[path[0]]: value for path, value in constexprs.items()},
                {
                    name: f"{kind}:16" if name in aligned else str(kind)
                    for name, kind in signature.items()
                },
                options.num_warps,
                options.num_stages,
                compiled,
            )
        )
        return compiled

    JITFunction._do_compile = recorded

    class TritonAlways(dict):
        def get(self, key: tuple, default: object = None) -> Any:
            return ((importlib.import_module(f"growtas.kernels.{key[0]}.gpu"), None),)

    dispatch._cache = TritonAlways()
    return record


def run(code: str, capability: int = 90, **environment: str) -> str:
    """What a program prints that has installed the stand-in; it finds `record` ready.

    Raises:
        AssertionError: it failed; what it wrote is in the message.
    """
    start = f"import stand_in_driver\nrecord = stand_in_driver.install({capability})\n"
    command = [sys.executable, "-W", "ignore", "-c", start + code]
    inherited = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    inherited["PYTHONPATH"] = os.pathsep.join(map(str, (ROOT, ROOT / "tests")))
    done = subprocess.run(
        command, cwd=ROOT, env=inherited | environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
