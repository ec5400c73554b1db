"""Every number that README states has a stored row."""

from __future__ import annotations

import re

import pytest

from benchmarks import rows

README = (rows.ROOT / "README.md").read_text(encoding="utf-8")
STORED = rows.read(rows.RESULTS / "cpu-amd-epyc-torch2.15.0.csv")
OURS = "growtas-native-accumulate"
# Beginning of a line -> task, dtype, variant and metric of its rows, and whether it is the inverse.
LINES = {
    "train step fp32, naive": ("train", "float32", f"naive / {OURS}", "wall_time_ratio", False),
    "the same, bf16": ("train", "bfloat16", f"naive / {OURS}", "wall_time_ratio", False),
    "forward fp32, naive": ("forward", "float32", f"naive / {OURS}", "wall_time_ratio", False),
    "extra memory": ("memory", "float32", f"{OURS} / naive", "extra_memory_ratio", False),
    "train step fp32, growtas / timm": (
        "train", "float32", f"timm / {OURS}", "wall_time_ratio", True,
    ),
    "train step fp32, `torch.compile` per block": (
        "train", "float32", f"compile-static / {OURS}", "wall_time_ratio", False,
    ),
}  # fmt: skip
COLUMNS = [("smallest", 16), ("largest", 16), ("smallest", 64), ("largest", 64)]


def ratios(
    found: list[rows.Row], kind: tuple[str, str, str, str, bool], subnet: str, batch: int
) -> list[str]:
    task, dtype, variant, metric, inverse = kind
    case = ("autoformer-tiny", subnet, batch, dtype, task, variant, metric)
    return [
        f"{1 / row.median if inverse else row.median:.2f}"
        for row in found
        if (row.space, row.subnet, row.batch, row.dtype, row.task, row.variant, row.metric) == case
    ]


@pytest.mark.parametrize("begin", LINES)
def test_a_line_of_the_table(begin: str) -> None:
    (line,) = re.findall(rf"^\| {re.escape(begin)}.*$", README, re.MULTILINE)
    cells = [cell.strip().removesuffix("x") for cell in line.strip("| ").split("|")[1:]]
    newest = rows.newest(STORED)
    for cell, (subnet, batch) in zip(cells, COLUMNS, strict=False):
        assert cell in ratios(newest, LINES[begin], subnet, batch) or not cell


def test_the_table_has_no_other_line() -> None:
    table = README.partition("### Measured so far")[2].partition("\n\nAnother subnet")[0]
    lines = [line for line in table.splitlines() if re.search(r"\| \d\.\d\d", line)]
    assert len(lines) == len(LINES)


def test_the_text_below_it() -> None:
    random = {
        f"{row.median:.2f}"
        for row in STORED
        if (row.metric, row.subnet, row.variant) == ("random_over_fixed", "random200", OURS)
    }
    assert random == {"0.98"}
    assert "take 0.98 of the time" in README
    again = re.search(r"another run gave ([\d.]+)x and ([\d.]+)x", README.replace("\n", " "))
    assert again is not None
    for value, (subnet, batch) in zip(again.groups(), COLUMNS, strict=False):
        assert value in ratios(STORED, LINES["train step fp32, naive"], subnet, batch)
