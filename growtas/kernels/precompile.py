"""`python -m growtas.kernels.precompile`: compile every Triton kernel ahead, without a GPU.

Prints registers, spills and shared memory of every build that the operators list, and the most of
each operator on each architecture. The exit status
is 1 if one does not compile, spills registers or needs more shared memory than its architecture
has; 2 if nothing could be compiled at all.
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
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from growtas.kernels.configs import TABLES, Build
from growtas.kernels.dispatch import OPERATORS
from growtas.kernels.triton_support import interpreted

# Bytes of shared memory that one block can have (CUDA C++ programming guide, compute capabilities).
SHARED_MEMORY = {80: 163 * 1024, 90: 227 * 1024}


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


def builds(architecture: int, operators: Sequence[str] = OPERATORS) -> Iterator[Build]:
    """Every build of these operators, in their order."""
    for operator in operators:
        yield from importlib.import_module(f"growtas.kernels.{operator}.gpu").builds(architecture)


def first_of_each_kernel(builds: Iterator[Build]) -> Iterator[Build]:
    """The first build of every kernel."""
    seen = set()
    for build in builds:
        if build.kernel.__name__ not in seen:
            seen.add(build.kernel.__name__)
            yield build


def compile_build(build: Build, architecture: int) -> Resources:
    """Compile for an architecture that need not be present.

    Raises:
        Exception: whatever Triton raises when it cannot.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = build.kernel.arg_names
    signature = {
        name: "constexpr" if name in build.constants else build.types[name].removesuffix(":16")
        for name in names
    }
    aligned = [i for i, n in enumerate(names) if build.types.get(n, "").endswith(":16")]
    compiled = triton.compile(
        ASTSource(
            build.kernel,
            signature,
            constexprs=dict(build.constants),
            attrs={(index,): [["tt.divisibility", 16]] for index in aligned},
        ),
        target=GPUTarget("cuda", architecture, 32),
        options={"num_warps": build.config.warps, "num_stages": build.config.stages},
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
        "--arch", type=int, nargs="+", choices=sorted(TABLES), default=sorted(TABLES)
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
            for outcome in pool.map(partial(_outcome, architecture), chosen):
                print(outcome.line, flush=True)
                of_operator.append(outcome)
    for (architecture, operator), of_operator in outcomes.items():
        print(f"sm_{architecture} {operator}: {_summary(of_operator)}")
    every = list(itertools.chain.from_iterable(outcomes.values()))
    print(f"{_summary(every)}; {time.perf_counter() - start:.0f} s")
    return int(any(outcome.bad for outcome in every))


def _outcome(architecture: int, build: Build) -> Outcome:
    _, warps, stages = build.config
    line = f"sm_{architecture} {build.kernel.__name__:40s} {build.label:44s} w{warps} s{stages} "
    try:
        resources = compile_build(build, architecture)
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
