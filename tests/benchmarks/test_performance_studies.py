"""The studies behind docs/performance.md: what they measure, and that the page can be redrawn."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from benchmark_cases import CASE, SHORT

from benchmarks import rows
from benchmarks.cases import Case
from benchmarks.runner import Rows
from benchmarks.studies import growth, operator_profile
from benchmarks.studies.page import fill, table
from benchmarks.variants import missing
from growtas.cost import macs

DOCS = Path(__file__).resolve().parents[2] / "docs"

native = pytest.mark.skipif(
    missing(growth.OURS, "cpu") is not None, reason="the native library is not built"
)


def test_fill_replaces_one_part_and_nothing_else(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- one -->\nold\n<!-- /one -->\nb\n<!-- two -->\n<!-- /two -->\n")
    for _ in range(2):
        fill(page, "one", table(("x", "y"), [("1", "2")]))
        assert page.read_text() == (
            "a\n<!-- one -->\n\n| x | y |\n| --- | ---: |\n| 1 | 2 |\n\n<!-- /one -->\nb\n"
            "<!-- two -->\n<!-- /two -->\n"
        )
    with pytest.raises(ValueError, match="must stand in it once"):
        fill(page, "three", "")


@pytest.mark.parametrize("axis", ["batch", "depth", "width", "tokens"])
def test_points_vary_one_thing(axis: str) -> None:
    def sizes(case: Case) -> dict[str, int]:
        tokens = (case.image_size // case.patch_size) ** 2 + 1
        subnet = case.subnet
        return {
            "batch": case.batch,
            "depth": subnet.depth,
            "width": subnet.embed_dim,
            "tokens": tokens,
        }

    found = list(growth.points(axis))
    assert [position for position, _ in found] == [sizes(case)[axis] for _, case in found]
    assert [position for position, _ in found] == sorted({position for position, _ in found})
    others = [{k: v for k, v in sizes(case).items() if k != axis} for _, case in found]
    assert all(other == others[0] for other in others)
    for _, case in found:
        case.space.supernet.validate(case.subnet)


def test_points_reach_far_enough() -> None:
    last = {axis: max(p for p, _ in growth.points(axis)) for axis in growth.AXES[:4]}
    assert last["batch"] == 64
    assert last["tokens"] >= 1024
    assert last["depth"] > 14
    assert max(growth.SUBNETS) >= 50


@native
def test_growth_measures_and_draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        growth, "points", lambda axis: [(n, replace(CASE, batch=n)) for n in (1, 2)]
    )
    found = growth.measure("batch", rows.Book("cpu"), SHORT, lambda text: None)
    train = growth.curves(found, "batch", "train", f"{growth.NAIVE} / {growth.OURS}")
    assert list(train) == [1, 2]
    assert train[1].n == 2
    assert list(growth.curves(found, "batch", "forward", growth.OURS)) == [1, 2]
    growth.draw(found, tmp_path / "growth.png")
    assert (tmp_path / "growth.png").read_bytes().startswith(b"\x89PNG")
    assert len(growth.summary(found).splitlines()) == 2 + 2


@native
def test_profile_accounts_for_the_whole_step() -> None:
    found = operator_profile.measure(CASE, rows.Book("cpu"), 1)
    times = {row.variant: row.median for row in found if row.metric == "self_time"}
    assert {"growtas_native::layer_norm_forward", operator_profile.BETWEEN} <= times.keys()
    assert all(seconds >= 0 for seconds in times.values())
    assert "whole step" in operator_profile.summary(found)


def test_floor_counts_the_products_of_the_model() -> None:
    """Against growtas.space.cost without relative position, for the forward pass and the classifier
    aside."""
    case = replace(CASE, batch=1)
    work = operator_profile.flops(case)
    linear, attention = (
        work[f"growtas_native::{name}_forward"] for name in ("linear", "attention")
    )
    plain = macs(
        case.space,
        case.subnet,
        num_classes=5,
        image_size=24,
        patch_size=8,
        relative_position=False,
    )
    tables = 2 * 9 * 32 * (3 + 3 + 1)  # patches, head dim, table rows that a query can meet
    assert linear + attention == 2 * (plain - 5 * case.subnet.embed_dim + tables)
    assert work["growtas_native::attention_backward"] == 2.5 * attention


@pytest.mark.parametrize(
    ("name", "summary"), [("growth", growth.summary), ("profile", operator_profile.summary)]
)
def test_the_page_shows_the_stored_rows(name: str, summary, tmp_path: Path) -> None:
    stored = DOCS / "performance" / f"{name}.csv"
    if not stored.exists():
        pytest.skip("no rows are stored yet")
    copy = tmp_path / "performance.md"
    copy.write_text((DOCS / "performance.md").read_text(encoding="utf-8"), encoding="utf-8")
    fill(copy, name, summary(rows.newest(rows.read(stored))))
    assert copy.read_text(encoding="utf-8") == (DOCS / "performance.md").read_text("utf-8")


def test_pytorchs_operators_share_a_line() -> None:
    made = Rows.of_case(rows.Book("cpu"), CASE, task="profile")
    for letter in "abc":
        made.add(f"aten::{letter}", "self_time", "s", [0.001])
    assert "| PyTorch's own | 3.0 |" in operator_profile.summary(made.rows)


def test_the_ends_of_an_axis_are_shown() -> None:
    made = Rows.of_case(rows.Book("cpu"), CASE, task="growth-batch-train")
    for name in (growth.NAIVE, growth.OURS):
        made.add(name, "wall_time", "s", [0.001])
    some = [replace(row, subnet=str(n)) for n in (1, 2, 4) for row in made.rows]
    assert [line.split(" | ")[1] for line in growth.summary(some).splitlines()[2:]] == ["1", "4"]
