"""CONTRIBUTING's worked example of a strategy, executed as it stands there."""

from __future__ import annotations

import ast
import random
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import tiny_recipe

from growtas.base.config import load_yaml
from growtas.run.folder import Run
from growtas.run.recipe import Recipe
from growtas.schedule import StepContext, build_strategy, registry
from growtas.space import SearchSpace
from growtas.training.metrics import read_metrics

ROOT = Path(__file__).parents[2]
NAME = "growtas.schedule.sandwich"


def blocks() -> dict[str, str]:
    """The code of the section, by language."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    section = text.partition("## Add a strategy\n")[2].partition("\n## ")[0]
    found = re.findall(r"^```(\w+)\n(.*?)^```$", section, re.DOTALL | re.MULTILINE)
    assert [language for language, _ in found] == ["python", "diff", "yaml"]
    return dict(found)


@pytest.fixture
def added(monkeypatch) -> dict[str, str]:
    """The strategy, added as CONTRIBUTING says: one file and one line."""
    code = blocks()
    module = ModuleType(NAME)
    monkeypatch.setitem(sys.modules, NAME, module)
    exec(compile(code["python"], f"{NAME}.py", "exec"), module.__dict__)
    before, line = code["diff"].splitlines()
    assert before[1:] in Path(registry.__file__).read_text().splitlines()
    assert line[0] == "+"
    for name, place in ast.literal_eval(f"{{{line[1:]}}}").items():
        monkeypatch.setitem(registry.STRATEGIES, name, place)
    return code


def test_its_plans(added):
    space = SearchSpace.preset("digits")
    strategy = build_strategy(load_yaml(added["yaml"])["strategy"], space)
    (phase,) = strategy.phases(space, 3)
    plan = strategy.plan(StepContext(random.Random(0), 0, 0.0, phase, 0))
    assert [one.loss for one in plan.passes] == ["ce", "kd:teacher", "kd:teacher"]
    assert [one.subnet for one in plan.passes[:2]] == [space.largest(), space.smallest()]
    assert plan.passes[2].subnet in space


def test_a_recipe_trains_with_it(added, tmp_path):
    values = tiny_recipe.values(tmp_path / "run") | load_yaml(added["yaml"])
    recipe = Recipe.from_dict(values, ["train.epochs=1"])
    Run.start(recipe, say=lambda line: None).train()
    (row,) = read_metrics(tmp_path / "run/metrics.jsonl")
    assert row["phase"] == "sandwich"
    assert row["step"] == 4
