"""`python -m benchmarks.gpu_smoke`: the first training steps on a device, checked.

One eager step of the largest subnet against the naive supernet in float32, then six steps of the
captured graph (three warm it up, the fourth is captured, the last two only replay it), each on
another subnet and with AdamW, against the same steps of the reference backend in float32. Says
whether there is a graph and whether AdamW is part of it. The exit status is 1 if something is
wrong.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F

import growtas
from benchmarks import command, rows
from benchmarks.cases import Case, make_batch, naive_to_growtas
from benchmarks.processes import python, side_by_side
from benchmarks.runner import Rows, WrongResult, check, relative_error, survived
from benchmarks.variants import build, weights_for
from growtas.kernels import use_backend
from growtas.space import SearchSpace
from growtas.training.graph import GraphedStep
from growtas.training.optimizer import AdamW, update

STEPS = 6
RATE = 1e-4
CLIP = 1.0
# What logits in bfloat16 may differ from those in float32 by, after a few steps that differ by as
# much. A kernel that is wrong is off by far more.
ALLOWED = 0.05


def eager(case: Case, backend: str, book: rows.Book) -> None:
    """Errors of one step; `check` names what is wrong."""
    names = ("naive", f"growtas-{backend}-dense")
    variants = {name: build(name, case, book.device) for name in names}
    for variant in variants.values():
        variant.model.train()
    table = Rows.of_case(book, case, "smoke")
    for name, seconds in check(variants, case, make_batch(case, book.device), table).items():
        table.add(f"{name}, eager", "warmup_time", "s", [seconds])


def graphed(case: Case, backend: str, book: rows.Book) -> None:
    """Errors of the logits of `STEPS` graphed steps; the weights move."""
    images, labels = make_batch(case, book.device)
    weights = naive_to_growtas(weights_for(case), case.space)

    def supernet() -> growtas.Supernet:
        model = growtas.Supernet(case.space, **case.model_sizes).to(book.device)
        model.load_state_dict(weights)
        return model.train()

    rng = random.Random(0)
    subnets = [case.space.smallest(), case.space.largest()]
    subnets += [case.space.sample(rng) for _ in range(STEPS - len(subnets))]
    reference, ours = supernet(), supernet()
    optimizer = AdamW(reference.parameters(), lr=RATE)
    scaler = torch.amp.GradScaler(book.device, enabled=False)
    table = Rows.of_case(book, case, "smoke")
    with use_backend(backend):
        step = GraphedStep(
            ours, AdamW(ours.parameters(), lr=RATE), images, labels,
            clip_grad=CLIP, dtype=torch.bfloat16 if case.dtype == "bfloat16" else None,
        )  # fmt: skip
    wrong = None
    for number, subnet in enumerate(subnets, 1):
        with use_backend("reference"):
            reference.zero_grad()
            logits = reference(images, subnet)
            F.cross_entropy(logits, labels).backward()
            update(reference, optimizer, scaler, [subnet], clip_grad=CLIP)
        with use_backend(backend):
            output = step(images, labels, subnet)
        error = relative_error({"": output.logits}, {"": logits.detach()})
        name = f"growtas-{backend}-graph, step {number}"
        table.add(name, "logit_error", "1", [error])
        print(f"{name}: logits off by {error:.3g}, loss {float(output.loss):.4f}", flush=True)
        if wrong is None and not error <= ALLOWED:
            wrong = WrongResult(f"{name}: logit_error", error, ALLOWED)
    print(f"reason: {step.reason}\nupdate_reason: {step.update_reason}", flush=True)
    table.add(f"growtas-{backend}-graph", "graphed", "1", [float(step.reason is None)])
    part = float(step.update_reason is None)
    table.add(f"growtas-{backend}-graph", "update_graphed", "1", [part])
    if wrong is not None:
        raise wrong
    if book.device == "cuda" and step.reason is not None:
        raise RuntimeError(f"there is no CUDA graph: {step.reason}")


CHECKS = {"eager": eager, "graphed": graphed}


def command_line() -> argparse.ArgumentParser:
    """Everything that can be asked for."""
    parser = command.parser("gpu_smoke", __doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--backend", help="default: triton on cuda, reference on the CPU")
    parser.add_argument("--space", default="autoformer-tiny")
    # As at batch 128, 16 divides the number of all tokens, so the same kernels are compiled.
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--checks", nargs="+", choices=list(CHECKS), default=list(CHECKS))
    parser.add_argument(
        "--apart",
        action="store_true",
        help="each check in a process of its own, at the same time: most of it is compiling",
    )
    parser.add_argument("--out", type=Path, help="folder; default: only printed")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    args = command_line().parse_args(arguments)
    if args.apart:
        rest = [given for given in arguments if given != "--apart"]
        commands = (python("benchmarks.gpu_smoke", *rest, "--checks", c) for c in args.checks)
        return int(not side_by_side(commands, partial(print, flush=True), rows.ROOT, {}))
    backend = args.backend or ("triton" if args.device == "cuda" else "reference")
    book = rows.Book.in_folder(args.device, args.out)
    space = SearchSpace.preset(args.space)
    case = Case(space, "largest", args.batch, "bfloat16", "train", image_size=args.image_size)
    guard = partial(survived, Rows.of_case(book, case, "smoke"))
    for name in args.checks:
        with guard(f"growtas-{backend}, {name}"):
            CHECKS[name](case, backend, book)
    for row in book.rows:
        print(f"{row.variant} {row.metric} {row.median:.3g} {row.unit}")
    return book.exit_status()


if __name__ == "__main__":
    sys.exit(main())
