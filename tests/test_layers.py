"""The layers of growtas hold, and the rules that say so can fail."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from textwrap import dedent

import layers
import pytest

ROOT = Path(__file__).parents[1]
Rule = Callable[[layers.Tree], list[str]]


@pytest.fixture(scope="module")
def here() -> layers.Tree:
    return layers.Tree(ROOT)


@pytest.mark.parametrize("rule", layers.RULES, ids=lambda rule: rule.__name__)
def test_growtas(here: layers.Tree, rule: Rule) -> None:
    wrong = rule(here)
    assert not wrong, "\n" + "\n".join(wrong)


def test_the_tree_is_read_whole(here: layers.Tree) -> None:
    """A checker that sees nothing would pass everything."""
    assert {layers.layer_of(file) for file in here.syntax} == {*layers.LAYERS, layers.SURFACE}
    assert len(here.imports) > 500
    assert any(found.typing for found in here.imports)
    assert any(found.late for found in here.imports)


def test_exceptions_are_needed(here: layers.Tree) -> None:
    long = {(f.file, f.name) for f in here.functions if f.parameters > layers.MAX_PARAMETERS}
    assert layers.KEPT_SIGNATURES.keys() <= long


def make(root: Path, files: dict[str, str]) -> layers.Tree:
    for name, text in {"growtas/__init__.py": "", **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(dedent(text), encoding="utf-8")
    return layers.Tree(root)


@pytest.mark.parametrize(
    "source",
    [
        "import growtas.training.step",
        "from growtas.training import step",
        "from growtas.training.step import run",
        "from ..training.step import run",
        "def f():\n    from growtas.training.step import run",
        "if TYPE_CHECKING:\n    from growtas.training.step import run",
        "import importlib\nimportlib.import_module('growtas.training.step')",
        "HOME = {'run': 'growtas.training.step'}",
        "name = f'growtas.training.{stem}'",
    ],
)
def test_an_upward_import_is_found(tmp_path: Path, source: str) -> None:
    tree = make(
        tmp_path,
        {
            "growtas/training/__init__.py": "",
            "growtas/training/step.py": "def run(): ...",
            "growtas/supernet/__init__.py": "",
            "growtas/supernet/vit.py": source,
        },
    )
    (wrong,) = layers.imports_go_down(tree)
    line = len(source.splitlines())
    assert wrong.startswith(f"growtas/supernet/vit.py:{line}: imports growtas.training")
    assert wrong.endswith("(training); supernet may import supernet, kernels, space, base")


def test_downward_imports_and_prose_pass(tmp_path: Path) -> None:
    tree = make(
        tmp_path,
        {
            "growtas/training/step.py": "from growtas.supernet.vit import Supernet\nimport torch",
            "growtas/supernet/vit.py": '"""growtas.training.step"""\nimport growtas._C',
        },
    )
    assert [rule.__name__ for rule in layers.RULES if rule(tree)] == []


@pytest.mark.parametrize(
    "target", ["growtas", "growtas.cost"], ids=["the package", "a name for users"]
)
def test_nothing_imports_the_surface(tmp_path: Path, target: str) -> None:
    tree = make(
        tmp_path, {"growtas/cost.py": "", "growtas/run/info.py": f"def f():\n    import {target}"}
    )
    (wrong,) = layers.imports_go_down(tree)
    assert wrong.startswith(f"growtas/run/info.py:2: imports {target} (surface)")


def test_a_public_name_may_live_above(tmp_path: Path) -> None:
    ((file, target),) = layers.PUBLIC
    elsewhere = target.replace(".", "/") + ".py"
    tree = make(tmp_path, {elsewhere: "", file: f"HOME = {{'Extents': '{target}'}}"})
    assert not layers.imports_go_down(tree)
    assert not layers.kernels_know_no_family(tree)


def test_what_is_kept_apart(tmp_path: Path) -> None:
    tree = make(
        tmp_path,
        {
            "growtas/schedule/plan.py": "",
            "growtas/search/run.py": "from growtas.schedule.plan import Pass",
        },
    )
    (wrong,) = layers.imports_go_down(tree)
    assert "schedule" not in wrong.partition("may import")[2]


CIRCLE = {
    "growtas/space/one.py": "from growtas.space.two import b",
    "growtas/space/two.py": "from growtas.space.three import c",
    "growtas/space/three.py": "def f():\n    from growtas.space.one import a",
}


def test_a_circle_is_found(tmp_path: Path) -> None:
    wrong = layers.no_circles(make(tmp_path, CIRCLE))
    assert [line.partition(",")[0] for line in sorted(wrong)] == [
        "growtas/space/one.py:1: imports growtas.space.two",
        "growtas/space/three.py:2: imports growtas.space.one",
        "growtas/space/two.py:1: imports growtas.space.three",
    ]


def test_type_checkers_may_go_round(tmp_path: Path) -> None:
    source = "if TYPE_CHECKING:\n    from growtas.space.one import a\nelse:\n    a = None"
    assert not layers.no_circles(make(tmp_path, {**CIRCLE, "growtas/space/three.py": source}))


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import torch", True),
        ("def f():\n    from torch import nn", True),
        ("from growtas.base.files import read", True),  # which loads torch
        ("def f():\n    from growtas.base.files import read", False),  # only where it is needed
        ("if TYPE_CHECKING:\n    from torch import Tensor", False),
        ("import math", False),
    ],
)
def test_torch_in_a_pure_layer(tmp_path: Path, source: str, found: bool) -> None:
    tree = make(
        tmp_path,
        {"growtas/base/files.py": "import torch", "growtas/space/cost.py": source},
    )
    assert bool(layers.torch_stays_out(tree)) == found


@pytest.mark.parametrize(
    ("file", "target"),
    [
        ("native.py", "reference"),
        ("gpu_plan.py", "reference"),
        ("gpu.py", "static_reference"),
        ("gpu.py", "native"),
        ("reference.py", "native"),
    ],
)
def test_a_backend_imports_another(tmp_path: Path, file: str, target: str) -> None:
    folder = "growtas/kernels/linear"
    tree = make(
        tmp_path,
        {
            f"{folder}/__init__.py": "",
            f"{folder}/{target}.py": "",
            f"{folder}/{file}": f"def f():\n    from growtas.kernels.linear import {target}",
            f"{folder}/api.py": f"from growtas.kernels.linear import {target}",
        },
    )
    (wrong,) = layers.backends_keep_apart(tree)
    assert wrong.startswith(f"{folder}/{file}:2: imports growtas.kernels.linear.{target}")


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("growtas/kernels/extents.py", "def f(embed): ..."),
        ("growtas/kernels/extents.py", "COLUMNS = ('width', 'hidden_sizes')"),
        ("growtas/kernels/linear/api.py", "num_heads = 1"),
        ("growtas/kernels/linear/api.py", "x = model.embedDim"),
        ("csrc/cuda/adamw.h", "int depth;"),
        ("csrc/cpu/gemm.h", "/* prose */ int mlp_rows;"),
    ],
)
def test_a_word_of_a_family_is_found(tmp_path: Path, file: str, source: str) -> None:
    (wrong,) = layers.kernels_know_no_family(make(tmp_path, {file: source}))
    assert wrong.startswith(f"{file}:1: ")


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("growtas/kernels/extents.py", '"""An embedding."""\n# hidden\nsubnets = dispatch'),
        ("growtas/kernels/attention/api.py", "num_heads = qkv"),
        ("growtas/supernet/vit.py", "embed_dim = depth"),
        ("csrc/cpu/gemm.h", "// an embedding\n/* a\n hidden */ int depth, patchwork;"),
    ],
)
def test_other_words_pass(tmp_path: Path, file: str, source: str) -> None:
    assert not layers.kernels_know_no_family(make(tmp_path, {file: source}))


def test_a_place_without_a_layer_is_found(tmp_path: Path) -> None:
    tree = make(tmp_path, {"growtas/helpers.py": "", "growtas/utils/text.py": ""})
    assert len(layers.every_file_has_a_layer(tree)) == 2


def test_a_long_file_is_found(tmp_path: Path) -> None:
    lines = {"growtas/base/a.py": "\n" * 450, "growtas/base/b.py": "\n" * 451}
    (wrong,) = layers.files_are_short(make(tmp_path, lines))
    assert wrong.startswith("growtas/base/b.py:451:")


def test_many_parameters_are_found(tmp_path: Path) -> None:
    source = """
        def eight(a, b, c, d, *, e, f, g, **options): ...
        def nine(a, b, c, d, *e, f, g, h, **options): ...
        class A:
            def method(self, a, b, c, d, e, f, g, h): ...
            def __init__(self, a, b, c, d, e, f, g, h, i): ...
        @triton.jit(do_not_specialize=["i"])
        def kernel(a, b, c, d, e, f, g, h, i): ...
    """
    names = ("growtas/base/a.py", "growtas/compat/autoformer.py")
    tree = make(tmp_path, dict.fromkeys(names, source))
    wrong = layers.functions_take_few_parameters(tree)
    assert [line.split(" takes")[0] for line in wrong] == [
        "growtas/base/a.py:3: nine",
        "growtas/base/a.py:6: __init__",
        "growtas/compat/autoformer.py:3: nine",
    ]
