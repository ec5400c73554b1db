"""Builds the compiled core, or installs growtas without it and says why.

``GROWTAS_BUILD`` chooses: ``auto`` (default) falls back to pure Python when there is no torch, no
compiler, or a compilation fails; ``1`` makes that an error; ``0`` does not try. What happened is
printed and recorded in ``growtas/_build.json``. Everything static is in pyproject.toml.
``GROWTAS_SANITIZE=1`` builds for the address and undefined-behaviour sanitizers; `make sanitize`
keeps that build apart and runs the operator tests on it.

Two extensions: ``growtas._ops`` (operators, torch's stable ABI, loaded by torch.ops.load_library)
and ``growtas._C`` (pybind11, no torch: build facts and CPU features). Where there are nvcc and a
torch for CUDA, also ``growtas/_cuda.so`` (operators for CUDA devices): ``GROWTAS_CUDA`` chooses
``auto``, ``1`` or ``0`` for it as ``GROWTAS_BUILD`` does for the rest, TORCH_CUDA_ARCH_LIST (such
as "8.0 9.0") for which devices.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext as _setuptools_build_ext
from setuptools.command.build_py import build_py as _build_py

ROOT = Path(__file__).resolve().parent
PACKAGE = "growtas"
OPERATORS = "growtas._ops"
# The oldest torch whose stable ABI the operators use, and that the build therefore needs.
TORCH_TARGET = (2, 11)
CUDA_LIBRARY = "_cuda.so"
CUDA_ARCHITECTURES = "8.0 9.0"

# No -march=native and no -ffast-math: a binary runs anywhere, and NaN must propagate.
CXX_FLAGS = [
    "-O3",
    "-g0",
    "-fvisibility=hidden",
    "-ffp-contract=fast",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-Wno-psabi",
]
LINK_FLAGS: list[str] = []

# Every finding ends the process. The virtual-table check is left out: it needs the type
# information of torch's classes, which the stable ABI does not give. Python's own flags hold
# -fwrapv, with which an overflow would not be an error. -O1 checks the same and compiles sooner.
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize=vptr"]
SANITIZE_FLAGS = [
    *SANITIZERS,
    "-fno-sanitize-recover=all",
    "-fno-wrapv",
    "-fno-omit-frame-pointer",
    "-O1",
    "-g",
]
if os.environ.get("GROWTAS_SANITIZE", "0") == "1":
    CXX_FLAGS += SANITIZE_FLAGS
    LINK_FLAGS += SANITIZERS


class CannotBuild(Exception):
    """Why the compiled core cannot be built here."""


def requested_mode(variable: str = "GROWTAS_BUILD") -> str:
    mode = os.environ.get(variable, "auto")
    if mode not in ("auto", "0", "1"):
        sys.exit(f"{variable}={mode!r}: choose auto, 0 or 1")
    return mode


def find_torch():
    """torch and its build helper, checked for version."""
    try:
        import torch
        from torch.utils import cpp_extension
    except ImportError as error:
        raise CannotBuild(f"torch cannot be imported at build time ({error})") from error
    version = tuple(int(part) for part in torch.__version__.split(".")[:2])
    if version < TORCH_TARGET:
        needed = ".".join(map(str, TORCH_TARGET))
        raise CannotBuild(f"torch {torch.__version__} was found; the build needs {needed} or newer")
    return torch, cpp_extension


def torch_target() -> str:
    """The value of TORCH_TARGET_VERSION."""
    major, minor = TORCH_TARGET
    return f"0x{(major << 56) | (minor << 48):016x}"


def extensions(cpp_extension) -> list[Extension]:
    try:
        import pybind11
    except ImportError as error:
        raise CannotBuild("pybind11 is not installed") from error
    macros = [("TORCH_TARGET_VERSION", torch_target())]
    kernels = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("csrc/cpu/*.cpp"))
    headers = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("csrc/**/*.[hi]*"))
    return [
        Extension(
            OPERATORS,
            ["csrc/bindings.cpp", *kernels],
            depends=headers,
            include_dirs=cpp_extension.include_paths(),
            library_dirs=cpp_extension.library_paths(),
            libraries=["torch_cpu"],
            define_macros=macros,
            extra_compile_args=CXX_FLAGS,
            extra_link_args=LINK_FLAGS,
            language="c++",
        ),
        Extension(
            "growtas._C",
            ["csrc/module.cpp", "csrc/cpu/dispatch.cpp"],
            depends=headers,
            include_dirs=[pybind11.get_include()],
            define_macros=macros,
            extra_compile_args=CXX_FLAGS,
            extra_link_args=LINK_FLAGS,
            language="c++",
        ),
    ]


def cuda_command(output: Path) -> list[str]:
    """How the library for CUDA devices is compiled; CannotBuild where it cannot be."""
    if requested_mode("GROWTAS_CUDA") == "0":
        raise CannotBuild("GROWTAS_CUDA=0 was set when it was installed")
    torch, cpp_extension = find_torch()
    if torch.version.cuda is None:
        raise CannotBuild(f"torch {torch.__version__} is not for CUDA")
    home = cpp_extension.CUDA_HOME
    nvcc = shutil.which("nvcc", path=os.path.join(home, "bin") if home else None)
    if nvcc is None:
        raise CannotBuild("there is no nvcc")
    said = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"release (\d+)", said)
    needed = torch.version.cuda.split(".")[0]
    if found is None or found[1] != needed:
        raise CannotBuild(f"nvcc is of CUDA {found and found[1]}, torch of CUDA {needed}")
    sources = [*sorted(ROOT.glob("csrc/cuda/*.cu")), ROOT / "csrc/cuda/bindings.cpp"]
    # Code for every architecture, and the newest one's also as PTX for what comes after it.
    numbers = os.environ.get("TORCH_CUDA_ARCH_LIST", CUDA_ARCHITECTURES).split()
    names = [re.sub(r"\D", "", number) for number in numbers]
    codes = [f"-gencode=arch=compute_{name},code=sm_{name}" for name in names]
    codes.append(f"-gencode=arch=compute_{names[-1]},code=compute_{names[-1]}")
    return [
        nvcc, "-shared", "-cudart", "shared", "-std=c++20", "-O3", *codes,
        "-Xcompiler", "-fPIC,-fvisibility=hidden", "-DUSE_CUDA",
        f"-DTORCH_TARGET_VERSION={torch_target()}",
        *(f"-I{path}" for path in cpp_extension.include_paths()),
        *(f"-L{path}" for path in cpp_extension.library_paths()),
        *map(str, sources), "-ltorch_cpu", "-ltorch_cuda", "-o", str(output),
    ]  # fmt: skip


def build_cuda(folder: Path) -> str:
    """Compile the library for CUDA devices into the package; why not, empty if it was."""
    library = folder / CUDA_LIBRARY
    library.unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        done = subprocess.run(cuda_command(library), capture_output=True, text=True, check=False)
        if done.returncode:
            raise CannotBuild(f"compiling failed: {done.stderr[-2000:]}")
    except CannotBuild as error:
        if requested_mode("GROWTAS_CUDA") == "1":
            sys.exit(f"growtas: the library for CUDA devices cannot be built: {error}")
        print(f"growtas: the library for CUDA devices is NOT built: {error}", file=sys.stderr)
        return str(error)
    return ""


def record(folder: Path, **facts: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "_build.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def record_not_built(folder: Path, reason: str) -> None:
    record(folder, built=False, reason=reason)
    print(f"\ngrowtas: the compiled core is NOT built: {reason}", file=sys.stderr)
    print("growtas: operators will run as plain PyTorch on the CPU\n", file=sys.stderr)


def plan() -> tuple[list[Extension], type, str, str]:
    """(extensions, build_ext class, torch version, reason why there are no extensions)."""
    mode = requested_mode()
    if mode == "0":
        return [], _setuptools_build_ext, "", "GROWTAS_BUILD=0 was set when it was installed"
    try:
        if os.name == "nt":
            raise CannotBuild("Windows is not supported")
        torch, cpp_extension = find_torch()
        return extensions(cpp_extension), cpp_extension.BuildExtension, torch.__version__, ""
    except CannotBuild as error:
        if mode == "1":
            sys.exit(f"growtas: the compiled core cannot be built: {error}")
        return [], _setuptools_build_ext, "", str(error)


EXTENSIONS, BASE_BUILD_EXT, TORCH_VERSION, REASON = plan()


class build_ext(BASE_BUILD_EXT):  # type: ignore[misc, valid-type]
    """Compiles both extensions or neither, and records which."""

    def get_ext_filename(self, fullname: str) -> str:
        # Not a Python module, so no Python ABI in the name of the operator library.
        if fullname.split(".")[-1] == OPERATORS.split(".")[-1]:
            return os.path.join(*fullname.split(".")) + ".so"
        return super().get_ext_filename(fullname)

    def run(self) -> None:
        in_source = bool(self.inplace or getattr(self, "editable_mode", False))
        folder = (ROOT if in_source else Path(self.build_lib)) / PACKAGE
        compiler = shlex.split(os.environ.get("CXX", "c++"))
        try:
            if shutil.which(compiler[0]) is None:
                raise CannotBuild(f"there is no C++ compiler ({compiler[0]} is not on the PATH)")
            super().run()
        # Whatever went wrong (compiler, ninja, linker), a pure Python install still works.
        except Exception as error:
            if requested_mode() == "1":
                raise
            reason = str(error) if isinstance(error, CannotBuild) else f"compiling failed: {error}"
            for stale in folder.glob("_*.so"):
                stale.unlink()
            self.extensions = []
            record_not_built(folder, reason)
            return
        record(
            folder,
            built=True,
            reason="",
            torch=TORCH_VERSION,
            cxx_flags=CXX_FLAGS,
            cuda=build_cuda(folder) or "built",
        )


class build_py(_build_py):
    """Records why nothing is compiled; with extensions, build_ext writes the record."""

    def run(self) -> None:
        super().run()
        if not EXTENSIONS:
            in_source = bool(getattr(self, "editable_mode", False))
            record_not_built((ROOT if in_source else Path(self.build_lib)) / PACKAGE, REASON)


setup(
    license="Apache-2.0",
    ext_modules=EXTENSIONS,
    cmdclass={"build_ext": build_ext, "build_py": build_py},
)
