"""`python -m growtas.kernels.precompile`: compile every Triton kernel ahead, without a GPU.

Prints registers, spills and shared memory of every build, and the most of each operator on each
architecture. The exit status is 1 if one does not compile, spills registers or needs more shared
memory than its architecture has; 2 if nothing could be compiled at all.

An operator's ``gpu_builds.calls()`` yields ``(label, call)``, the most used first: calls of its
launchers on tensors without storage. What they would launch is recorded and compiled by Triton's
own path from a launch to a build, so these are the builds of run time, and fill its cache.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import itertools
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from growtas.kernels.dispatch import OPERATORS
from growtas.kernels.triton.configs import ARCHITECTURES, SHARED_MEMORY
from growtas.kernels.triton.launch import Launch, recorded
from growtas.kernels.triton.support import interpreted


class Resources(NamedTuple):
    """What one build takes: registers per thread, bytes of local memory per thread, bytes of
    shared memory per block."""

    registers: int
    spills: int
    shared: int


class Outcome(NamedTuple):
    """What is printed of a build, whether it must not be shipped, and what it takes; None if it
    does not compile."""

    line: str
    bad: bool
    resources: Resources | None


class Build(NamedTuple):
    """One compilation: what distinguishes it from others of the kernel, for people, and a launch
    that asks for it."""

    label: str
    launch: Launch


class Target:
    """What Triton asks a driver for when it compiles and does not launch. Kernels are kept by
    device, so every architecture is a device of its own."""

    def __init__(self, architecture: int) -> None:
        from triton.backends.compiler import GPUTarget

        self.architecture = architecture
        self.target = GPUTarget("cuda", architecture, 32)

    def get_current_target(self) -> Any:
        return self.target

    def get_current_device(self) -> int:
        return self.architecture

    def get_current_stream(self, device: int) -> int:
        return 0


@contextmanager
def triton_compiles_for(architecture: int) -> Iterator[None]:
    """Inside the ``with`` block Triton compiles for an architecture that need not be present, on
    all threads, and launches nothing."""
    from triton.runtime import driver

    driver.set_active(Target(architecture))
    try:
        yield
    finally:
        if torch.cuda.is_available():  # else there is no driver to go back to
            driver.reset_active()


def builds(architecture: int, operators: Sequence[str] = OPERATORS) -> Iterator[Build]:
    """Every build of these operators once, in their order."""
    seen = set()
    for operator in operators:
        name = f"growtas.kernels.{operator}.gpu_builds"
        if importlib.util.find_spec(name) is None:
            continue
        for label, call in importlib.import_module(name).calls():
            with recorded(architecture) as launches:
                call()
            for launch in launches:
                if launch.key not in seen:
                    seen.add(launch.key)
                    yield Build(label, launch)


def first_of_each_kernel(builds: Iterator[Build]) -> Iterator[Build]:
    """The first build of every kernel."""
    seen = set()
    for build in builds:
        if build.launch.kernel.__name__ not in seen:
            seen.add(build.launch.kernel.__name__)
            yield build


def compile_build(build: Build) -> Resources:
    """Compile inside a block of `triton_compiles_for`.

    Raises:
        Exception: whatever Triton raises when it cannot.
    """
    kernel, programs, arguments, constants, (_, warps, stages) = build.launch
    compiled = kernel.warmup(
        *arguments, grid=(programs,), **constants, num_warps=warps, num_stages=stages
    )
    registers, spills = _usage(compiled.asm["cubin"])
    return Resources(registers, spills, compiled.metadata.shared)


def _usage(cubin: bytes) -> tuple[int, int]:
    """Registers and bytes of stack and local memory per thread, by NVIDIA's cuobjdump."""
    spec: Any = importlib.util.find_spec("triton")
    tool = Path(spec.origin).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(tool), "--dump-resource-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+) .*?LOCAL:(\d+)", text)
    if found is None:
        raise RuntimeError(f"cuobjdump printed no resource usage: {text.strip()!r}")
    registers, stack, local = map(int, found.groups())
    return registers, stack + local


def complaint(resources: Resources, architecture: int) -> str | None:
    """Why a build must not be shipped; None if it may."""
    if resources.spills:
        return f"spills {resources.spills} bytes per thread"
    limit = SHARED_MEMORY[architecture]
    if resources.shared > limit:
        return f"needs {resources.shared} bytes of shared memory, there are {limit}"
    return None


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m growtas.kernels.precompile",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--arch", type=int, nargs="+", choices=ARCHITECTURES, default=list(ARCHITECTURES)
    )
    parser.add_argument("--operators", nargs="+", choices=OPERATORS, default=list(OPERATORS))
    parser.add_argument(
        "--jobs", type=int, default=1, help="builds compiled at the same time (default: 1)"
    )
    parser.add_argument("--quick", action="store_true", help="only the first build of each kernel")
    args = parser.parse_args(arguments)
    if importlib.util.find_spec("triton") is None or interpreted():
        print("nothing compiled: Triton is not installed, or TRITON_INTERPRET is set")
        return 2

    start = time.perf_counter()
    outcomes: dict[tuple[int, str], list[Outcome]] = {}
    with ThreadPoolExecutor(args.jobs) as pool:  # the compilers run outside Python's lock
        for architecture, operator in itertools.product(args.arch, args.operators):
            listed = builds(architecture, [operator])
            chosen = list(first_of_each_kernel(listed) if args.quick else listed)
            of_operator = outcomes[architecture, operator] = []
            with triton_compiles_for(architecture):
                for outcome in pool.map(partial(_outcome, architecture), chosen):
                    print(outcome.line, flush=True)
                    of_operator.append(outcome)
    for (architecture, operator), of_operator in outcomes.items():
        print(f"sm_{architecture} {operator}: {_summary(of_operator)}")
    every = list(itertools.chain.from_iterable(outcomes.values()))
    print(f"{_summary(every)}; {time.perf_counter() - start:.0f} s")
    return int(any(outcome.bad for outcome in every))


def _outcome(architecture: int, build: Build) -> Outcome:
    _, warps, stages = build.launch.config
    name = build.launch.kernel.__name__
    line = f"sm_{architecture} {name:32s} {build.label:52s} w{warps} s{stages} "
    try:
        resources = compile_build(build)
    except Exception as error:  # reported, and the other builds are tried
        return Outcome(f"{line}-  << does not compile: {type(error).__name__}: {error}", True, None)
    line += "{:4d} registers {:5d} B spilled {:7d} B shared".format(*resources)
    problem = complaint(resources, architecture)
    return Outcome(line + (f"  << {problem}" if problem else ""), problem is not None, resources)


def _summary(outcomes: Sequence[Outcome]) -> str:
    """How many builds, how many bad ones, and the most that one of them takes."""
    taken = [outcome.resources for outcome in outcomes if outcome.resources]
    registers = max((resources.registers for resources in taken), default=0)
    shared = max((resources.shared for resources in taken), default=0)
    bad = sum(outcome.bad for outcome in outcomes)
    return f"{len(outcomes)} builds, {bad} bad, at most {registers} registers, {shared} B shared"


if __name__ == "__main__":
    sys.exit(main())
