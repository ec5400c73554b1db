"""Variants agree on shared weights, wrong ones are refused, rows survive storage."""

from __future__ import annotations

import fcntl
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Thread

import pytest
import torch
from benchmark_cases import CASE, SHORT, SPACE

from benchmarks import memory, plot, report, rows, run, switching
from benchmarks.cases import Case, make_batch
from benchmarks.operators import OPERATORS, run_operator
from benchmarks.rows import Book
from benchmarks.run import CPU, CPU_FULL, Session, choose_plan
from benchmarks.runner import (
    Effort,
    Rows,
    check,
    interleave,
    paired_ratios,
    run_case,
    step_of,
    survived,
)
from benchmarks.variants import VARIANTS, Smart, Variant, build, missing, weights_for
from growtas.space import SearchSpace

EAGER = [n for n in VARIANTS if not n.startswith("compile") and missing(n, "cpu") is None]
FAILED = ("wrong_result", "failed")


def variants(case: Case, names: list[str] = EAGER) -> dict[str, Variant]:
    return {name: build(name, case, "cpu") for name in names}


def rows_of(case: Case) -> Rows:
    return Rows.of_case(Book("cpu"), case)


@pytest.mark.parametrize("name", ["naive", "growtas-reference-accumulate"])
def test_a_step_with_the_optimizer_leaves_the_checked_weights(name: str) -> None:
    case = replace(CASE, task="train_adamw")
    variant = build(name, case, "cpu")
    before = {key: value.clone() for key, value in variant.model.state_dict().items()}
    step = step_of(variant, case, make_batch(case, "cpu"))
    step(case.subnet)
    step(case.subnet)
    after = variant.model.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize("subnet", ["smallest", "largest"])
@pytest.mark.parametrize("task", ["train", "forward"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_all_variants_compute_the_same(subnet: str, task: str, dtype: str) -> None:
    case = replace(CASE, subnet_name=subnet, task=task, dtype=dtype)
    table = rows_of(case)
    some = variants(case)
    passed = check(some, case, make_batch(case, "cpu"), table)
    assert passed.keys() == some.keys()
    found: dict[str, set[str]] = {}
    for row in table.rows:
        found.setdefault(row.variant, set()).add(row.metric)
    expected = {"logit_error"} | ({"gradient_error"} if task == "train" else set())
    assert found == dict.fromkeys(some.keys() - {"timm"}, expected)


@pytest.mark.parametrize(
    "name",
    [
        "pos_embed",
        "blocks.1.attn.rel_pos",
        "blocks.0.attn.qkv.weight",
        "blocks.0.attn.qkv.bias",
        "blocks.1.mlp.fc2.bias",
    ],
)
def test_a_variant_with_other_weights_is_refused(name: str) -> None:
    case = replace(CASE, subnet_name="largest")
    some = variants(case, ["naive", "smart"])
    with torch.no_grad():
        some["smart"].model.get_parameter(name)[..., 0].add_(0.5)
    table = rows_of(case)
    assert check(some, case, make_batch(case, "cpu"), table).keys() == {"naive"}
    (wrong,) = (row for row in table.rows if row.metric == "wrong_result")
    assert wrong.variant == "smart"
    assert wrong.median > 1
    assert "smart: WrongResult" in table.book.failures[0]


def test_a_variant_with_a_missing_gradient_is_refused() -> None:
    some = variants(CASE, ["naive", "smart"])
    some["smart"].model.get_parameter("blocks.0.norm1.weight").requires_grad_(False)
    table = rows_of(CASE)
    assert check(some, CASE, make_batch(CASE, "cpu"), table).keys() == {"naive"}
    assert "smart: WrongResult: gradient_error" in table.book.failures[0]
    assert table.book.exit_status() == 1


def test_accumulated_gradients_do_not_leak_between_subnets() -> None:
    """The check of a small subnet after a step of a large one: zeroing must reach everything."""
    some = variants(CASE)
    images, labels = make_batch(CASE, "cpu")
    for name, variant in some.items():
        if name != "timm":
            variant.train_step(CASE, images, labels, SPACE.largest())
    assert check(some, CASE, (images, labels), rows_of(CASE)).keys() == some.keys()


def test_timing_is_interleaved() -> None:
    order: list[str] = []
    steps = {name: lambda name=name: order.append(name) for name in "abc"}
    samples = interleave(steps, Effort(min_rounds=3, max_rounds=3, seconds=0))
    assert "".join(order) == "abcabcabc"
    assert [len(samples[name]["wall_time"]) for name in "abc"] == [3, 3, 3]


def test_ratios_are_paired_by_round() -> None:
    assert paired_ratios([2.0, 9.0], [1.0, 3.0]) == [2.0, 3.0]


def test_rows_of_a_case(tmp_path: Path) -> None:
    names = ["naive", "timm", "growtas-reference-dense"]
    found = run_case(variants(CASE, names), CASE, Book("cpu"), SHORT)
    ratio = next(r for r in found if r.variant == "naive / growtas-reference-dense")
    assert (ratio.metric, ratio.n) == ("wall_time_ratio", 2)
    assert ratio.q20 <= ratio.median <= ratio.q80
    wall = {r.variant: r for r in found if r.metric == "wall_time"}
    assert wall.keys() == set(names)
    assert wall["naive"].commit
    assert wall["naive"].threads == 1
    assert {r.variant for r in found if r.metric == "warmup_time"} == set(names)

    path = tmp_path / "rows.csv"
    older = [replace(row, timestamp="2000-01-01T00:00:00Z") for row in found]
    rows.append(path, older)
    rows.append(path, found)
    stored = rows.read(path)
    assert len(stored) == 2 * len(found)
    newest = rows.newest(stored)
    assert [(r.variant, r.metric, r.dirty) for r in newest] == [
        (r.variant, r.metric, r.dirty) for r in found
    ]
    assert newest[0].median == pytest.approx(found[0].median, rel=1e-5)

    plot.chart(newest, tmp_path / "chart.png")
    assert (tmp_path / "chart.png").read_bytes().startswith(b"\x89PNG")


def test_a_file_with_other_columns_is_not_mixed_up(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="other columns"):
        rows.append(path, [])


def test_two_processes_write_one_header(tmp_path: Path) -> None:
    """The second waits until the first, which found the file empty too, has written."""
    path = tmp_path / "rows.csv"
    row = replace(rows_of(CASE)._template, variant="naive")
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        second = Thread(target=rows.append, args=(path, [row]))
        second.start()
        second.join(0.05)
        assert second.is_alive()
        file.write(",".join(rows.Row.__dataclass_fields__) + "\n")
    second.join()
    assert [found.variant for found in rows.read(path)] == ["naive"]


class Raising(Smart):
    def train_step(self, *arguments: object) -> torch.Tensor:
        raise torch.OutOfMemoryError("no room")


def test_a_wrong_and_a_raising_variant_cost_only_their_own_numbers(tmp_path: Path) -> None:
    some = variants(CASE, ["naive", "smart", "growtas-reference-dense"])
    with torch.no_grad():
        some["smart"].model.head.bias.add_(1.0)
    some["raising"] = Raising(CASE, weights_for(CASE), "cpu")
    book = Book("cpu", tmp_path / "rows.csv")
    run_case(some, CASE, book, SHORT)
    stored = rows.read(tmp_path / "rows.csv")
    timed = {row.variant for row in stored if row.metric == "wall_time"}
    assert timed == {"naive", "growtas-reference-dense"}
    failed = {row.variant: (row.metric, row.unit) for row in stored if row.metric in FAILED}
    assert failed == {"smart": ("wrong_result", "1"), "raising": ("failed", "OutOfMemoryError")}
    assert book.exit_status() == 1
    text = report.failures(stored)
    assert "| smart | " in text
    assert "| raising | OutOfMemoryError |" in text


def test_a_variant_that_fails_while_it_is_timed_is_dropped() -> None:
    calls: list[str] = []

    def breaking() -> None:
        calls.append("breaking")
        if len(calls) == 2:
            raise RuntimeError("broken")

    table = rows_of(CASE)
    samples = interleave(
        {"steady": lambda: None, "breaking": breaking},
        Effort(min_rounds=4, max_rounds=4, seconds=0),
        guard=partial(survived, table),
    )
    assert len(samples["steady"]["wall_time"]) == 4
    assert samples.keys() == {"steady"}
    assert len(calls) == 2
    assert [(row.variant, row.metric) for row in table.rows] == [("breaking", "failed")]


def test_a_case_that_fails_does_not_stop_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing_at_batch_4(variants, case, book, effort):
        if case.batch == 4:
            raise torch.OutOfMemoryError("no room for the naive supernet")
        Rows.of_case(book, case).add("naive", "wall_time", "s", [1.0])
        return []

    monkeypatch.setattr(run, "run_case", failing_at_batch_4)
    monkeypatch.setattr(run, "build", lambda name, case, device: None)
    plan = replace(CPU, batches=(4, 8), dtypes=("float32",), variants=("naive",))
    session = Session(plan, Book("cpu"), lambda text: None, patterns=["*/smallest/*"])
    session.run(["train"])
    assert [(r.batch, r.metric) for r in session.book.rows] == [(4, "failed"), (8, "wall_time")]


def test_a_row_is_in_the_file_as_soon_as_it_is_known(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "rows.csv"
    table = Rows.of_case(Book("cpu", path), CASE)
    for count in (1, 2):
        table.add("naive", "wall_time", "s", [1.0])
        assert len(rows.read(path)) == count


@pytest.mark.parametrize(("value", "expected"), [(3.0, "goal"), (2.5, "must"), (2.0, "no")])
def test_report_judges_rows(value: float, expected: str) -> None:
    made = Rows(
        Book("cpu"),
        dtype="float32",
        batch=16,
        space="autoformer-tiny",
        subnet="smallest",
        task="train",
    )
    made.add("naive / growtas-native-accumulate", "wall_time_ratio", "1", [value])
    (line,) = report.table(made.rows).splitlines()[2:]
    assert line.endswith(f"| {expected} |")
    # Stored as timm / ours, stated as ours / timm.
    made.rows.clear()
    made.add("timm / growtas-native-accumulate", "wall_time_ratio", "1", [1.25])
    (line,) = report.table(made.rows).splitlines()[2:]
    assert "0.80" in line
    assert line.endswith("| must |")


def test_a_case_measured_again_replaces_its_rows_only(tmp_path: Path) -> None:
    def measured(timestamp: str, batch: int, *variants: str) -> list[rows.Row]:
        book = Book("cpu")
        book.where = replace(book.where, timestamp=timestamp)
        made = Rows.of_case(book, replace(CASE, batch=batch))
        for name in variants:
            made.add(name, "wall_time", "s", [1.0])
        return made.rows

    first, second = "2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"
    old = measured(first, 1, "naive", "timm") + measured(first, 2, "naive", "timm")
    found = rows.newest(old + measured(second, 2, "naive"))
    assert [(r.timestamp, r.batch, r.variant) for r in found] == [
        (first, 1, "naive"),
        (first, 1, "timm"),
        (second, 2, "naive"),
    ]
    assert [line[:20] for line in rows.runs(found)] == [second, first]


def test_the_chart_shows_one_ratio_for_each_baseline() -> None:
    made = rows_of(CASE)
    for ours in ("growtas-native-dense", "growtas-native-accumulate"):
        for baseline in ("naive", "timm"):
            made.add(f"{baseline} / {ours}", "wall_time_ratio", "1", [2.0])
    ((group, bars),) = plot.ratios(made.rows, "train", "float32").items()
    assert group == (SPACE.name, "smallest", 2)
    assert {name: row.variant for name, row in bars.items()} == {
        "naive": "naive / growtas-native-accumulate",
        "timm": "timm / growtas-native-accumulate",
    }


def test_the_chart_takes_what_is_there() -> None:
    """The captured step stands for ours; a case in which all of ours failed has no bars."""
    made = rows_of(CASE)
    made.add("naive / timm", "wall_time_ratio", "1", [2.0])
    assert plot.ratios(made.rows, "train", "float32") == {}
    made.add("naive / growtas-triton-dense", "wall_time_ratio", "1", [3.0])
    made.add("naive / growtas-triton-graph", "wall_time_ratio", "1", [4.0])
    (bars,) = plot.ratios(made.rows, "train", "float32").values()
    assert bars["naive"].median == 4.0


def test_compile_times_are_reported() -> None:
    assert report.compile_times([]) == ""
    made = rows_of(CASE)
    for seconds in (30.0, 12.0):
        made.add("compile-static", "warmup_time", "s", [seconds])
    assert "| compile-static | 2 | 42 | 30 |" in report.compile_times(made.rows)


def test_no_row_no_claim() -> None:
    assert "No row" in report.table([])


def test_quantiles() -> None:
    assert rows.quantile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert rows.quantile([0.0, 10.0], 0.2) == pytest.approx(2.0)
    with pytest.raises(ValueError, match="no samples"):
        rows.quantile([], 0.5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", OPERATORS)
def test_operators_are_checked_and_timed(name: str, dtype: str) -> None:
    case = replace(CASE, dtype=dtype)
    found = run_operator(name, case, ["reference"], Book("cpu"), SHORT)
    tasks = {row.task for row in found if row.metric == "wall_time"}
    assert tasks == {f"{name}-forward", f"{name}-train"}
    assert any(row.variant == "naive / growtas-reference" for row in found)


def test_switching_uses_a_subnet_of_the_mean_size() -> None:
    subnets = switching.random_subnets(SPACE, 5)
    fixed = switching.mean_size_subnet(CASE, subnets)
    assert fixed in SPACE
    found = switching.run_switching(
        variants(CASE, ["growtas-reference-accumulate"]), CASE, Book("cpu"), 5
    )
    by_metric = {row.metric: row for row in found}
    ratio = by_metric["random_over_fixed"]
    total = by_metric["random_subnet_time"], by_metric["fixed_subnet_time"]
    assert ratio.n == total[0].n == total[1].n == 5
    assert ratio.q20 <= ratio.q80


def test_switching_ratio_is_of_the_sums() -> None:
    value, *resampled = switching.ratio_of_sums([(1.0, 1.0), (3.0, 1.0)])
    assert value == 2.0
    assert set(resampled) == {1.0, 2.0, 3.0}


@pytest.mark.skipif(not memory.supported("cpu"), reason="needs Linux's /proc")
def test_memory_counts_the_relative_tables() -> None:
    """At batch 1 the naive step's largest part is known: [N, N, 64] for keys and for values in
    each of 12 blocks, kept for the backward pass."""
    space = SearchSpace.preset("autoformer-tiny")
    case = Case(space, "smallest", 1, "float32", "train", num_classes=10)
    tables = 12 * 2 * 197 * 197 * 64 * 4
    assert tables < memory.extra_memory("naive", case, "cpu") < 2 * tables


def test_cases_are_chosen_by_pattern() -> None:
    patterns = ["*tiny/largest/16/float32/*", "*/random200/*"]
    session = Session(CPU_FULL, Book("cpu"), lambda text: None, patterns=patterns)
    cases = session.cases("train", CPU_FULL.workloads, CPU_FULL.batches)
    assert [case.label for case in cases] == ["autoformer-tiny/largest/16/float32/train"]
    workloads = [("autoformer-tiny", "random200")]
    assert len(session.cases("switching", workloads, [4], ["float32"])) == 1
    everything = Session(CPU_FULL, Book("cpu"), lambda text: None)
    found = everything.cases("train", CPU_FULL.workloads, CPU_FULL.batches)
    assert len({case.label for case in found}) == 12


def test_plans() -> None:
    assert choose_plan("cpu", quick=False, full=False) is CPU
    assert choose_plan("cuda", quick=False, full=False).train_task == "train_adamw"
    with pytest.raises(ValueError, match="exclude"):
        choose_plan("cpu", quick=True, full=True)
    assert all(name in VARIANTS for name in CPU.variants)


def test_unknown_variant_is_named() -> None:
    with pytest.raises(ValueError, match="unknown variant 'fast'"):
        build("fast", CASE, "cpu")
