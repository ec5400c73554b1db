"""The study of a new subnet at every step: its rows, and that wrong results are not timed."""

from __future__ import annotations

from dataclasses import replace

import benchmark_cases
import pytest
import torch
from benchmark_cases import SPACE

from benchmarks import gpu, report, subnets_per_second
from benchmarks.cases import make_batch
from benchmarks.rows import Book
from benchmarks.runner import Rows, WrongResult, check
from benchmarks.subnets_per_second import (
    COMPILED,
    CPU_QUICK,
    CUDA,
    EXTRACTED,
    OURS,
    Extracted,
    Plan,
    Study,
    blocks_computed,
    bred,
    run_population,
    run_steps,
)
from benchmarks.switching import random_subnets
from benchmarks.variants import GrowtasGraph, build, missing, weights_for
from growtas.search import Evaluator, Score
from growtas.space import SearchSpace

CASE = replace(benchmark_cases.CASE, subnet_name="random4")
PLAN = replace(CPU_QUICK, images=3, population=6, effort=benchmark_cases.SHORT)

native = pytest.mark.skipif(
    missing(OURS["cpu"][0], "cpu") is not None, reason="the native library is not built"
)


@pytest.mark.parametrize("task", ["train", "train_adamw", "forward"])
def test_rates_of_a_task(task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda model, mode=None: model)
    case = replace(CASE, task=task)
    sized = replace(case, subnet_name="smallest")
    names = ("naive", "smart", "growtas-reference-accumulate")
    variants = {name: build(name, sized, "cpu") for name in names}
    variants["extracted"] = Extracted(sized, weights_for(sized), "cpu")
    variants["growtas-reference-graph"] = GrowtasGraph(
        sized, weights_for(sized), "cpu", "reference"
    )
    found = run_steps(variants, case, Book("cpu"), random_subnets(SPACE, 5), 2)
    rate = {r.variant: r for r in found if r.metric == "subnets_per_second"}
    assert rate.keys() == variants.keys()
    assert all(r.n == 3 and r.unit == "1/s" and r.median > 0 for r in rate.values())
    cold = {r.variant: r.median for r in found if r.metric == "subnets_per_second_from_cold"}
    assert all(cold[name] < rate[name].q80 for name in variants)
    ratios = {r.variant for r in found if r.metric == "wall_time_ratio"}
    assert len(ratios) == 2 * 3
    assert {r.task for r in found} == {f"subnets-{task}"}
    page = report.subnet_rates(found)
    assert page.count("\n") == 1 + len(variants)
    assert f"| {task} | {SPACE.name} | 2 | float32 | naive | {rate['naive'].median:.4g} (" in page
    assert report.subnet_rates([]) == ""


def test_the_graphed_variant_is_checked_like_the_others() -> None:
    for dtype in ("float32", "bfloat16"):
        for task in ("train", "forward"):
            case = replace(CASE, subnet_name="largest", dtype=dtype, task=task)
            variants = {
                "naive": build("naive", case, "cpu"),
                "ours": GrowtasGraph(case, weights_for(case), "cpu", "reference"),
            }
            table = Rows.of_case(Book("cpu"), case)
            assert "ours" in check(variants, case, make_batch(case, "cpu"), table)
            assert ("ours", "logit_error") in {(r.variant, r.metric) for r in table.rows}
    with torch.no_grad():
        variants["ours"].model.head.bias.add_(1.0)
    assert "ours" not in check(variants, case, make_batch(case, "cpu"), table)
    assert "ours: WrongResult: logit_error" in table.book.failures[0]


def test_a_population_is_bred_as_an_evolution_does() -> None:
    space = SearchSpace.preset("autoformer-tiny")
    subnets = bred(space, 50)
    assert len(set(subnets)) == 50
    assert all(subnet in space for subnet in subnets)
    assert subnets == bred(space, 50) != bred(space, 50, seed=1)


@pytest.mark.parametrize(
    ("name", "saved"), [("autoformer-tiny", 0.14), ("autoformer-small", 0.09), ("digits", 0.22)]
)
def test_what_a_population_shares_is_what_the_page_says(name: str, saved: float) -> None:
    """docs/search.md: a mean over populations, counted."""
    space = SearchSpace.preset(name)
    shares = [blocks_computed(bred(space, 50, seed)) for seed in range(20)]
    assert 1 - sum(shares) / len(shares) == pytest.approx(saved, abs=0.015)


def test_a_population_together_and_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    case = replace(CASE, task="evaluation")
    found = run_population(case, Book("cpu"), PLAN, "reference")
    assert {(r.variant, r.metric) for r in found} == {
        ("growtas-reference, one by one", "subnets_per_second"),
        ("growtas-reference, together", "subnets_per_second"),
        ("growtas-reference, together", "blocks_computed"),
        ("one by one / together, growtas-reference", "wall_time_ratio"),
    }
    wrong = [Score(0.0, 1.0, 3)] * PLAN.population
    monkeypatch.setattr(Evaluator, "score_many", lambda self, subnets: wrong)
    with pytest.raises(WrongResult, match="together"):
        run_population(case, Book("cpu"), PLAN, "reference")


@native
def test_a_whole_case() -> None:
    plan: Plan = replace(PLAN, variants=("naive", *OURS["cpu"], "growtas-triton-graph"))
    lines: list[str] = []
    study = Study(plan, Book("cpu"), lines.append)
    assert any("left out: growtas-triton-graph" in line for line in lines)
    for task in ("train", "forward", "evaluation"):
        before = len(study.book.rows)
        study.run(replace(CASE, task=task))
        assert len(study.book.rows) > before
    assert not study.book.failures


def test_cases_have_the_labels_that_patterns_match() -> None:
    labels = [case.label for case in CUDA.cases(["autoformer-small/*/128/*"])]
    assert labels == [
        f"autoformer-small/random1000/128/bfloat16/{task}"
        for task in ("train_adamw", "forward", "evaluation")
    ]
    assert len(list(CUDA.cases())) == 3 * 3 * 3


@pytest.mark.parametrize("quick", [False, True])
def test_the_machine_with_a_gpu_runs_it(tmp_path, quick: bool) -> None:
    module = "benchmarks.subnets_per_second"
    commands = [step.command for step in gpu.steps(tmp_path, quick=quick, sanitizer=None)]
    [command] = [command for command in commands if module in command]
    args = subnets_per_second.command_line().parse_args(command[command.index(module) + 1 :])
    assert (args.device, args.out) == ("cuda", tmp_path)
    plan = subnets_per_second.choose_plan("cuda", quick=args.quick)
    # Rates of training alone: compiling is for other steps.
    assert [case.task for case in plan.cases(args.cases)] == ["train_adamw"]
    assert not {*COMPILED, EXTRACTED} & {*args.variants}
