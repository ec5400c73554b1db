"""`python -m benchmarks.gpu_toolchain`: whether this machine can run Triton kernels at all.

Triton compiles a launcher in C for every signature, so a missing compiler or Python.h lets every
kernel fail: it is found out within a second, before PyTorch is imported. What else the steps need
is listed. The exit status is 1 if something is missing, 2 if there is no CUDA device.
"""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

NO_DEVICE = 2
NEEDED = ("torch", "triton")
# The installation uses the first three, the baselines timm, and the tests the others.
USED = ("setuptools", "pybind11", "ninja", "timm", "pytest", "pytest-xdist")


def compiler() -> str | None:
    """The C compiler that Triton would take."""
    return os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")


def cannot_compile() -> str | None:
    """Why no launcher can be compiled here; None if one can."""
    command = compiler()
    if command is None:
        return "there is no C compiler: neither $CC nor gcc nor clang"
    include = sysconfig.get_paths()["include"]
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "launcher.c"
        source.write_text("#include <Python.h>\nPyObject *nothing(void) { return NULL; }\n")
        done = subprocess.run(
            [command, "-shared", "-fPIC", f"-I{include}", str(source), "-o", f"{source}.so"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    if done.returncode != 0:
        return f"{command} cannot compile a program that includes Python.h:\n{done.stderr.strip()}"
    return None


def version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def main() -> int:
    missing = []
    if (why := cannot_compile()) is not None:
        missing.append(why)
    else:
        print(f"{compiler()} compiles with Python.h of {sys.version.split()[0]}")
    for package in (*NEEDED, *USED):
        found = version(package)
        print(f"{package} {found or 'is not installed'}")
        if found is None and package in NEEDED:
            missing.append(f"{package} is not installed")
    for tool in ("nvcc", "compute-sanitizer"):
        print(f"{tool}: {shutil.which(tool) or 'not found'}")
    print(f"{os.cpu_count()} cores", flush=True)
    for line in missing:
        print(f"missing: {line}", flush=True)
    if version("torch") is None:
        return 1
    import torch

    if not torch.cuda.is_available():
        print("there is no CUDA device; `make gpu-compile` checks the kernels without one")
        return NO_DEVICE
    device = torch.cuda.get_device_properties(0)
    print(
        f"{device.name}, sm_{device.major}{device.minor}, {device.multi_processor_count} "
        f"multiprocessors, {device.total_memory / 1e9:.0f} GB, CUDA {torch.version.cuda}"
    )
    return int(bool(missing))


if __name__ == "__main__":
    sys.exit(main())
