"""The one command for a machine with a GPU, rehearsed on a machine without: every step's command
line, and what is left of a run whose steps fail, hang or are cut."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import time
from fnmatch import fnmatch
from pathlib import Path

import pytest
import torch

from benchmarks import (
    gpu,
    gpu_tests,
    processes,
    report,
    roofline,
    rows,
    run,
    subnets_per_second,
)
from benchmarks.gpu import BUDGET, QUICK_BUDGET, RESERVE, Outcome
from benchmarks.gpu_toolchain import NO_DEVICE
from benchmarks.processes import Step
from benchmarks.rows import Book
from benchmarks.runner import Rows
from benchmarks.variants import VARIANTS
from growtas.kernels.dispatch import OPERATORS

NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="it would run")
PLAN = gpu.steps(Path("out"), quick=False, sanitizer="compute-sanitizer")
HEADER = list(rows.Row.__dataclass_fields__)


@pytest.fixture(autouse=True)
def impatient(monkeypatch) -> None:
    monkeypatch.setattr(processes, "POLL", 0.01)
    monkeypatch.setattr(processes, "GRACE", 0.2)


# The plan


@pytest.mark.parametrize("quick", [False, True])
def test_what_is_worth_most_comes_first_and_fits_into_the_budget(tmp_path, quick):
    found = gpu.steps(tmp_path, quick=quick, sanitizer="compute-sanitizer")
    names = [step.name for step in found]
    assert len(set(names)) == len(names)
    last = names.index("subnets per second")
    order = [name.split(",")[0] for name in names[: last + 1]]
    assert list(dict.fromkeys(order)) == [
        "toolchain", "install", "smoke", "kernels", "train", "roofline", "tests",
        "subnets per second",
    ]  # fmt: skip
    budget = QUICK_BUDGET if quick else BUDGET
    assert sum(step.limit for step in found[: last + 1]) <= budget - RESERVE
    if not quick:
        assert names[last + 1 :] == [
            "memory", "compile-dynamic, tiny", "compile-static, tiny", "extracted-graph, tiny",
            "memory check",
        ]  # fmt: skip
        without = gpu.steps(tmp_path, quick=False, sanitizer=None)
        assert [step.name for step in without] == names[:-1]


@pytest.mark.parametrize("quick", [False, True])
def test_every_step_is_a_command_that_is_understood(tmp_path, quick):
    variants = set()
    for step in gpu.steps(tmp_path, quick=quick, sanitizer=None):
        assert step.command[:4] == (sys.executable, "-W", "ignore", "-m")
        module, given = step.command[4], step.command[5:]
        if not module.startswith("benchmarks."):
            assert step.name == "install"
            continue
        program = importlib.import_module(module)
        if module == "benchmarks.gpu_toolchain":
            assert not given
            continue
        args, rest = program.command_line().parse_known_args(given)
        assert getattr(args, "device", "cuda") == "cuda"
        assert args.out == tmp_path
        assert rest == (list(gpu.TESTS) if module == "benchmarks.gpu_tests" else [])
        if module == "benchmarks.run" and "train" in args.parts:
            plan = run.choose_plan("cuda", quick=args.quick, full=False)
            labels = [
                f"{space}/{subnet}/{batch}/{dtype}/{plan.train_task}"
                for space, subnet in plan.workloads
                for batch in plan.batches
                for dtype in plan.dtypes
            ]
            found = [la for la in labels if any(fnmatch(la, p) for p in args.cases)]
            assert 1 <= len(found) <= 2
            variants.update(args.variants)
            compiles = [name.startswith(("compile", "extracted")) for name in args.variants]
            assert compiles == sorted(compiles)  # see below
    baselines = {name for name in VARIANTS if not name.startswith("growtas")}
    assert {"smart", *gpu.OURS} <= variants
    assert quick or variants >= baselines - {"naive", "timm"}


def test_ours_are_compiled_before_inductor_moves_tritons_cache():
    """A process in which inductor has compiled looks for our kernels in a cache that is empty."""
    for plan in (run.CUDA, run.CUDA_QUICK, subnets_per_second.CUDA, subnets_per_second.CUDA_QUICK):
        for names in (plan.variants, getattr(plan, "switching_variants", ())):
            compiles = [name.startswith(("compile", "extracted")) for name in names]
            assert compiles == sorted(compiles)


@pytest.mark.parametrize("quick", [False, True])
def test_rates_of_subnets_are_not_cut_for_what_comes_with_them(tmp_path, quick):
    """Rates become rows when every chunk is done."""
    found = {step.name: step for step in gpu.steps(tmp_path, quick=quick, sanitizer=None)}
    step = found["subnets per second"]
    args = subnets_per_second.command_line().parse_args(step.command[5:])
    # Naive ones take about a tenth of a second each; as much again to import and to build.
    assert args.count * 0.2 + 12 <= step.limit


def test_the_memory_check_has_tests_of_every_operator():
    found = gpu_tests.collect([*gpu.TESTS, "-k", gpu.MEMORY_CHECKED])
    for operator in OPERATORS:
        assert any(f"gpu/test_{operator}.py" in test for test in found)
    assert len(found) < 40  # it is slow


def test_the_folder_for_rows_can_be_named_by_the_environment(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("OUT", str(tmp_path))
    monkeypatch.setenv("QUICK", "1")
    assert gpu.main(["--list"]) == 0
    printed = capsys.readouterr().out
    assert f"--out {tmp_path}" in printed
    assert "\nmemory" not in printed
    assert not list(tmp_path.iterdir())


# The rehearsal: every step is a shell script under the plan's name and limit.


class Rehearsal:
    """Scripts find $ROW, a row's line, and $CSV, $PID and $STUCK, files; the stub clock stands
    still, but a script that has made $STUCK has spent its step's limit."""

    def __init__(self, folder: Path) -> None:
        self.out = folder / "out"
        self.out.mkdir()
        self.csv = self.out / "cuda-some-gpu-torch2.csv"
        self.pid, self.stuck = folder / "pid", folder / "stuck"
        book = Book("cpu", folder / "one.csv")
        Rows(book, dtype="bfloat16", batch=1, space="s", subnet="", task="train_adamw").add(
            "naive", "wall_time", "s", [1.0]
        )
        header, self.row = (folder / "one.csv").read_text().splitlines()
        self.csv.write_text(header + "\n")
        self.now = 0.0

    def clock(self) -> float:
        if self.stuck.exists():
            self.stuck.unlink()
            self.now += 1000.0
        return self.now

    def step(self, name: str, script: str, **more) -> Step:
        files = (("ROW", self.row), ("CSV", str(self.csv)), ("PID", str(self.pid)))
        environment = (*files, ("STUCK", str(self.stuck)))
        return Step(name, ("/bin/sh", "-c", script), 30.0, environment, **more)

    def run(self, *todo: Step) -> gpu.Run:
        found = gpu.Run(self.out, 1e6, 0.0, self.clock)
        found.run(todo)
        return found

    def main(self, monkeypatch, *todo: Step) -> int:
        monkeypatch.setattr(gpu, "steps", lambda *arguments, **more: list(todo))
        return gpu.main(["--out", str(self.out)], self.clock)

    def rows(self) -> int:
        return len(rows.read(self.csv))


@pytest.fixture
def rehearsal(tmp_path) -> Rehearsal:
    return Rehearsal(tmp_path)


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


STORE = 'echo "$ROW" >> "$CSV"'
# A grandchild that ignores the request to end, behind a step that has stored a row and hangs.
HANG = f"""{STORE}
(trap '' TERM; sleep 30) & echo $! > "$PID"
touch "$STUCK"; sleep 30"""


@pytest.mark.parametrize("name", [step.name for step in PLAN])
def test_a_cut_at_any_step_keeps_rows_and_leaves_no_process(rehearsal, name):
    found = rehearsal.run(rehearsal.step(name, HANG), rehearsal.step("next", STORE))
    assert found.outcomes[name].result == "cut after 30 s"
    assert found.outcomes["next"].result == "done"
    assert rehearsal.rows() == 2
    assert not alive(int(rehearsal.pid.read_text()))
    page = (rehearsal.out / "gpu.md").read_text()
    assert f"| {name} | cut after 30 s | 1000 |" in page
    assert page.count("| naive | 1000.00 (") == 2
    assert found.end() == 1


def test_a_failed_installation_is_said_and_survived(rehearsal, monkeypatch, capsys):
    install = PLAN[1]
    assert install.name == "install"
    failing = rehearsal.step("install", "echo no compiler; exit 1", consequence=install.consequence)
    assert rehearsal.main(monkeypatch, failing, rehearsal.step("smoke", STORE)) == 1
    printed = capsys.readouterr().out
    assert "| install | failed with status 1: the rest runs uninstalled, with Triton's" in printed
    assert "| smoke | done |" in printed
    assert "no compiler" in (rehearsal.out / "gpu.log").read_text()


def test_what_a_finished_step_leaves_behind_is_ended(rehearsal):
    rehearsal.run(rehearsal.step("quick", 'sleep 30 > /dev/null 2>&1 & echo $! > "$PID"'))
    assert not alive(int(rehearsal.pid.read_text()))


def test_the_budget_ends_the_run_and_what_was_left_out_is_named(rehearsal):
    todo = [rehearsal.step("first", HANG), rehearsal.step("second", STORE)]
    found = gpu.Run(rehearsal.out, 40.0, 0.0, rehearsal.clock)
    found.run(todo)
    assert found.outcomes["second"] == Outcome("left out: no time", 0.0)
    assert rehearsal.rows() == 1
    assert found.end() == 1
    assert "| second | left out: no time | 0 |" in (rehearsal.out / "gpu.md").read_text()
    # A step may take what is left of the budget, less than its limit.
    rehearsal.now = 0.0
    found = gpu.Run(rehearsal.out, RESERVE + 12.0, 0.0, rehearsal.clock)
    found.run(todo[:1])
    assert found.outcomes["first"].result == "cut after 12 s"


def test_being_asked_to_end_leaves_the_page_and_no_process(rehearsal, monkeypatch, capsys):
    script = f"""{STORE}
sleep 30 & echo $! > "$PID"
kill -TERM $PPID; sleep 30"""
    before = signal.getsignal(signal.SIGTERM)
    todo = rehearsal.step("smoke", STORE), rehearsal.step("kernels", script)
    assert rehearsal.main(monkeypatch, *todo, rehearsal.step("train", STORE)) == 1
    assert signal.getsignal(signal.SIGTERM) is before
    assert rehearsal.rows() == 2
    assert not alive(int(rehearsal.pid.read_text()))
    printed = capsys.readouterr().out
    page = (rehearsal.out / "gpu.md").read_text()
    for line in ("| smoke | done |", "| kernels | interrupted |", "| train | not reached |"):
        assert line in page
        assert line in printed.split("# A run on a GPU")[-1]


def test_all_done(rehearsal, monkeypatch, capsys):
    todo = [rehearsal.step(step.name, STORE) for step in PLAN]
    assert rehearsal.main(monkeypatch, *todo) == 0
    assert rehearsal.rows() == len(PLAN)
    assert "| memory check | done |" in capsys.readouterr().out


def test_without_a_device_nothing_is_written(rehearsal, monkeypatch):
    toolchain = rehearsal.step(gpu.TOOLCHAIN, f"exit {NO_DEVICE}")
    assert rehearsal.main(monkeypatch, toolchain, rehearsal.step("smoke", STORE)) == NO_DEVICE
    assert [path.name for path in rehearsal.out.iterdir()] == [rehearsal.csv.name]
    assert rehearsal.rows() == 0


def test_output_is_passed_on_while_a_step_runs(rehearsal):
    said: list[tuple[str, bool]] = []
    step = rehearsal.step("talking", 'echo first; until [ -f "$PID" ]; do sleep 0.01; done')

    def say(line: str) -> None:
        said.append((line, rehearsal.pid.exists()))
        rehearsal.pid.touch()

    assert processes.run(step, 30.0, say, Path.cwd(), time.monotonic) == "done"
    assert said == [("first", False)]


# The tests of the device


def test_tests_are_told_live_counted_and_stored(tmp_path, monkeypatch, capfd):
    file = tmp_path / "test_some.py"
    file.write_text(
        "import pytest\n"
        "def test_a(): pass\n"
        "@pytest.mark.skip\n"
        "def test_b(): pass\n"
        "def test_c(): assert not FLAG\n"
    )
    # The tests that it starts are no workers of those that run here.
    for name in [name for name in os.environ if name.startswith("PYTEST_XDIST")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(gpu_tests, "ROOT", tmp_path)
    monkeypatch.setattr(gpu_tests, "PROCESSES", 2)
    monkeypatch.setattr(gpu_tests.os, "cpu_count", lambda: 4)
    monkeypatch.setattr(gpu_tests.importlib.util, "find_spec", lambda name: None)
    found = gpu_tests.collect([str(file)])
    assert [Path(line).name.split("::")[1] for line in found] == ["test_a", "test_b", "test_c"]
    before = signal.getsignal(signal.SIGTERM)
    try:
        status = gpu_tests.main(["--device", "cpu", "--out", str(tmp_path), str(file)])
    finally:
        signal.signal(signal.SIGTERM, before)
    assert status == 1
    printed = capfd.readouterr().out
    assert "[passed] test_some.py::test_a" in printed
    assert "name 'FLAG' is not defined" in printed
    (stored,) = tmp_path.glob("*.csv")
    counts = {row.metric: row.median for row in rows.read(stored)}
    assert counts == {"tests_passed": 1, "tests_failed": 1, "tests_skipped": 1}
    assert "| tests |  | tests | tests_failed | 1 |" in report.checks(rows.read(stored))
    with pytest.raises(RuntimeError, match="collects nothing"):
        gpu_tests.collect([str(tmp_path / "absent.py")])


def test_tests_that_are_cut_have_stored_their_counts(tmp_path, monkeypatch):
    script = "echo '[passed] a::b (0.1 s)'; sleep 0.1; kill -TERM $PPID; sleep 0.2"
    monkeypatch.setattr(gpu_tests, "commands", lambda *arguments: [("/bin/sh", "-c", script)])
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as stopped:
            gpu_tests.main(["--device", "cpu", "--out", str(tmp_path)])
    finally:
        signal.signal(signal.SIGTERM, before)
    assert stopped.value.code == 128 + signal.SIGTERM
    (stored,) = tmp_path.glob("*.csv")
    assert {row.metric: row.median for row in rows.read(stored)}["tests_passed"] == 1


def test_xdist_feeds_the_processes_where_it_is(monkeypatch):
    monkeypatch.setattr(gpu_tests.importlib.util, "find_spec", lambda name: name == "xdist")
    (command,) = gpu_tests.commands(["tests/kernels/gpu"], 8)
    assert command[-3:] == ("-n", "8", "tests/kernels/gpu")


# The roofline


@NO_GPU
def test_a_roofline_is_not_pretended_without_a_gpu(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["command"])
    with pytest.raises(SystemExit) as stopped:
        roofline.main()
    assert stopped.value.code == 2
    assert "there is no CUDA device" in capsys.readouterr().err


def test_attention_work_by_hand():
    """One head of one image, three tokens of two features."""
    flops, moved = roofline.attention_work(1, 1, 3, 2)
    assert flops == 7 * 2 * 3 * 3 * 2  # seven products of 3 x 3 x 2 multiply-adds
    tensors = 4 + 8  # q, k, v, out; again with dout, and dq, dk, dv
    assert moved == tensors * 3 * 2 * 2
