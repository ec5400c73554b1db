"""Extra memory of a training step: what it needs at its peak beyond weights and images.

On the CPU each variant runs alone in a fresh process and the kernel's own high-water mark of
resident memory is read (Linux: VmHWM, reset through /proc/self/clear_refs). A profiler that counts
PyTorch's allocations would miss the scratch space of BLAS, oneDNN and our own native code. One
full step comes first, so that loaded code, thread stacks and library caches are not charged; freed
blocks go back to the system at once (M_MMAP_THRESHOLD); gradients are charged to every variant,
also where they persist between steps. On CUDA: torch.cuda.max_memory_allocated.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.cases import Case, make_batch
from benchmarks.rows import ROOT
from benchmarks.variants import build
from growtas.space import SearchSpace

_M_MMAP_THRESHOLD = -3  # malloc.h


def supported(device: str) -> bool:
    """Whether this platform can measure it."""
    return device == "cuda" or Path("/proc/self/clear_refs").exists()


def extra_memory(name: str, case: Case, device: str) -> int:
    """Bytes, measured in a fresh process.

    Raises:
        RuntimeError: the process failed; its last lines are in the message.
    """
    command = [sys.executable, "-m", "benchmarks.memory", name, case.space.name, case.subnet_name]
    command += [str(case.batch), case.dtype, str(case.image_size), str(case.num_classes)]
    command += [device, str(torch.get_num_threads())]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        tail = "\n".join(done.stderr.strip().splitlines()[-5:])
        raise RuntimeError(f"measuring the memory of {name} failed:\n{tail}")
    return int(done.stdout.split()[-1])


def _status(field: str) -> int:
    text = Path("/proc/self/status").read_text()
    match = re.search(rf"^{field}:\s+(\d+) kB", text, re.MULTILINE)
    assert match is not None
    return 1024 * int(match.group(1))


def _measure_here(name: str, case: Case, device: str) -> int:
    variant = build(name, case, device)
    variant.model.train()
    images, labels = make_batch(case, device)

    def step() -> None:
        variant.train_step(case, images, labels, case.subnet)

    step()
    gc.collect()
    gradients = [p.grad for p in variant.model.parameters() if p.grad is not None]
    gradient_bytes = sum(g.numel() * g.element_size() for g in gradients)
    del gradients
    if device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        for _ in range(variant.settling):  # a graph allocates while it is captured
            step()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before + gradient_bytes
    ctypes.CDLL(None).malloc_trim(0)
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    step()
    return _status("VmHWM") - before + gradient_bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for argument in ("variant", "space", "subnet"):
        parser.add_argument(argument)
    parser.add_argument("batch", type=int)
    parser.add_argument("dtype")
    parser.add_argument("image_size", type=int)
    parser.add_argument("num_classes", type=int)
    parser.add_argument("device")
    parser.add_argument("threads", type=int)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if os.name == "posix" and args.device == "cpu":
        # With a threshold that is fixed and small, freed blocks are returned to the system, so the
        # resident set is the live set.
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, 65536)
    space = SearchSpace.preset(args.space)
    case = Case(space, args.subnet, args.batch, args.dtype, "train")
    case = replace(case, image_size=args.image_size, num_classes=args.num_classes)
    print(_measure_here(args.variant, case, args.device))


if __name__ == "__main__":
    main()
