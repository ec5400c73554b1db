"""Runs the operator tests on a sanitized build of the compiled core: `make sanitize`.

    GROWTAS_SANITIZE=1 python setup.py build --build-base build/sanitize --build-lib LIB
    python tests/sanitize/run.py LIB

LIB holds a copy of the package with its compiled core, apart from the one in use. For every SIMD
level of this CPU, first two planted errors must be found (a write behind a tensor's memory, and a
misaligned one), then the operator tests must pass. Any finding ends the process that makes it.
Last, the instructions of the level `amx` are executed one by one (`tile_instructions.cpp`): no test
reaches them on a CPU without AMX.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
TESTS = HERE.parent / "kernels"
CORE = HERE.parents[1] / "csrc" / "cpu"
FILES = (
    "native/test_library.py",
    "native/test_linear.py",
    "native/test_attention.py",
    "native/test_layer_norm.py",
    "test_adamw.py",
    "test_attention.py",
    "test_gradients.py",
    "test_layer_norm.py",
    "test_linear.py",
    "test_properties.py",
)
# numpy lets a tensor lie about its memory: one is a row longer than it, one starts a byte late.
PLANTED = """
import numpy, torch
from growtas.kernels import native_library
x, vector = torch.ones(64, 96), torch.ones(96)
y, mean, rstd = torch.empty(64, 96), torch.empty(64), torch.empty(64)
{lie}
print("before", flush=True)
native_library.operators().layer_norm_forward(x, vector, vector, 1e-5, y, mean, rstd)
print("after", flush=True)
"""
LIES = {  # what is planted: how, and what must be said about it
    "write beyond the memory": (
        "memory = numpy.zeros(63 * 96, numpy.float32)\n"
        "y = torch.from_numpy(numpy.lib.stride_tricks.as_strided(memory, (64, 96), (384, 4)))",
        "heap-buffer-overflow",
    ),
    "misaligned write": (
        "mean = torch.from_numpy(numpy.zeros(260, numpy.uint8)[1:257].view(numpy.float32))",
        "misaligned address",
    ),
}


def sanitized(level: str) -> dict[str, str]:
    """The environment of a process that runs the build on one SIMD level."""
    compiler = shlex.split(os.environ.get("CXX", "c++"))
    # Python itself is not built with the sanitizer, whose run time must come before all else;
    # libstdc++ beside it, as the sanitizer looks for the C++ exceptions when it starts.
    libraries = []
    for name in ("libasan.so", "libstdc++.so"):
        command = [*compiler, f"-print-file-name={name}"]
        found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
        if not Path(found).is_absolute():
            sys.exit(f"{compiler[0]} has no {name}: `make sanitize` needs GCC and its sanitizers")
        libraries.append(found)
    return {
        **os.environ,
        "LD_PRELOAD": " ".join(libraries),
        # No search for leaks: Python and torch keep memory until the process ends on purpose.
        "ASAN_OPTIONS": "detect_leaks=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "GROWTAS_SIMD": level,
    }


def python(library: Path, level: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Python with the library's folder as working folder, hence first in its path; also in the
    processes that tests start."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=library,
        env=sanitized(level),
        capture_output=True,
        text=True,
        check=False,
    )


def prove(library: Path, level: str) -> None:
    """Exits unless both planted errors are found in the operators of this build."""
    for what, (lie, message) in LIES.items():
        done = python(library, level, "-c", PLANTED.format(lie=lie))
        if (
            done.stdout.split() != ["before"]
            or done.returncode == 0
            or message not in done.stderr
            or "csrc/cpu/" not in done.stderr
        ):
            sys.exit(f"{level}: a {what} was not found\n{done.stdout}{done.stderr}")


def run_tests(library: Path, level: str, file: str) -> bool:
    """Whether a file's tests of the native backend pass; the reference is plain PyTorch."""
    start = time.perf_counter()
    code = (
        "import sys, pytest, growtas; "
        f"assert growtas.__file__.startswith({str(library)!r}), growtas.__file__; "
        "sys.exit(pytest.main(sys.argv[1:]))"
    )
    # The sanitizers write to the process's own stderr, which pytest would swallow.
    options = ("--capture=sys", "-x", "-k", "not reference")
    done = python(library, level, "-c", code, *options, str(TESTS / file))
    lines = done.stdout.strip().splitlines() or ["nothing was printed"]
    passed = done.returncode == 0
    text = lines[-1] if passed else done.stdout + done.stderr
    print(f"{level}, {file}: {text} [{time.perf_counter() - start:.0f} s]", flush=True)
    return passed


def execute_tile_instructions() -> bool:
    """Whether the level `amx` has the same bits as its emulation."""
    levels = [CORE / f"level_{name}.cpp" for name in ("amx", "amx_emulated", "avx512_bf16")]
    flags = ["-std=c++20", "-O1", "-ffp-contract=fast", "-Wno-psabi", f"-I{CORE}"]
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "tile_instructions"
        compiler = shlex.split(os.environ.get("CXX", "c++"))
        sources = [HERE / "tile_instructions.cpp", *levels]
        subprocess.run([*compiler, *flags, *sources, "-o", program], check=True)
        done = subprocess.run([program], capture_output=True, text=True, check=False)
    print(f"amx, its instructions: {done.stdout.strip() or done.stderr.strip()}", flush=True)
    return done.returncode == 0


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    library = Path(sys.argv[1]).resolve()
    code = "from growtas import _C; print(*_C.simd_levels())"
    done = python(library, "", "-c", code)
    if done.returncode != 0:
        sys.exit(f"{library}: there is no build that loads\n{done.stderr}")
    levels = done.stdout.split()
    for level in levels:
        prove(library, level)
        print(f"{level}: both planted errors were found", flush=True)
    clean = True
    for level in levels:
        # Only linear differs from the level below where tile registers are in use.
        files = ("native/test_linear.py", "test_linear.py") if level.startswith("amx") else FILES
        for file in files:
            clean &= run_tests(library, level, file)
    if "amx_emulated" in levels:
        clean &= execute_tile_instructions()
    if not clean:
        sys.exit("the sanitizers or the tests found errors")
    print(f"clean on {', '.join(levels)}")


if __name__ == "__main__":
    main()
