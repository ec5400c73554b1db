"""The rules that hold growtas' structure together, as functions of a source tree.

Each rule returns one line for each thing that breaks it: file and line, what stands there, and
what is allowed. `test_layers.py` applies them to this repository, and to small trees that are made
up to break them.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

# From the top down: a file may import from its own layer and from those after it.
LAYERS = (
    "cli", "analysis", "run", "compat", "search", "export",
    "training", "schedule", "supernet", "kernels", "space", "base",
)  # fmt: skip
# Files beside the folders. The surface re-exports names for users; nothing in growtas imports it.
SURFACE = "surface"
FILES = {
    "__init__": SURFACE, "cost": SURFACE,
    "__main__": "cli", "cli": "cli", "cli_help": "cli",
    "version": "base",
}  # fmt: skip
# A search does not know how its supernet was trained, and an export needs no training.
APART = {("search", "schedule"), ("export", "training")}
# A public name that stays where users find it, though what it means lives above.
PUBLIC = {
    ("growtas/kernels/__init__.py", "growtas.supernet.vit.extents"): "growtas.kernels.Extents",
}
WITHOUT_TORCH = ("space", "schedule")
TORCH = {"torch", "torchvision", "timm", "triton"}

MAX_LINES = 450
MAX_PARAMETERS = 8
# Signatures that are not ours to shorten, and whose they are.
KEPT_SIGNATURES = {
    ("growtas/compat/autoformer.py", "__init__"): "AutoFormer's Vision_TransformerSuper",
    ("growtas/kernels/linear/api.py", "linear"): "a public operator with all that a layer fuses",
}

# Words of one family of models. `subnets` is no such word: it counts the calls that share a batch.
FAMILY = {"embed", "embedding", "hidden", "mlp", "vit", "transformer", "supernet", "depth"}
# These belong to attention itself, wherever its sizes are declared, and to nothing else.
ATTENTION = {"heads", "qkv", "patch"}
DECLARES_ATTENTION = {"csrc/bindings.cpp", "csrc/cpu/kernels.h", "csrc/cpu/ops.h"}
# The depth of a product is the length of its sums.
PRODUCTS = "csrc/cpu/"


@dataclass(frozen=True)
class Import:
    """One import: `typing` if only type checkers see it, `late` if it waits for a call, `open` if
    a string only begins the name, which then is some module of a package."""

    file: str
    line: int
    target: str
    typing: bool
    late: bool
    open: bool

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: imports {self.target}"


@dataclass(frozen=True)
class Function:
    """A function of some file, with its number of parameters (self and cls left out)."""

    file: str
    line: int
    name: str
    parameters: int
    compiled: bool  # by Triton: its parameters are those of a kernel launch


class Tree:
    """The sources below a repository's root."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.paths = sorted((root / "growtas").rglob("*.py"))

    @cached_property
    def modules(self) -> dict[str, Path]:
        """Dotted names; a package's is that of its `__init__.py`."""
        return {self.module(path): path for path in self.paths}

    @cached_property
    def syntax(self) -> dict[str, ast.Module]:
        return {self.name(p): ast.parse(p.read_text(encoding="utf-8"), str(p)) for p in self.paths}

    @cached_property
    def imports(self) -> list[Import]:
        found = (one for name in self.syntax for one in self._imports_of(name))
        return list(dict.fromkeys(found))

    @cached_property
    def functions(self) -> list[Function]:
        return [
            _function(name, node)
            for name, module in self.syntax.items()
            for node in ast.walk(module)
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        ]

    def name(self, path: Path) -> str:
        """`growtas/space/cost.py`."""
        return path.relative_to(self.root).as_posix()

    def module(self, path: Path) -> str:
        parts = path.relative_to(self.root).with_suffix("").parts
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

    def known(self, dotted: str) -> str | None:
        """The module itself or the nearest package that holds such a name."""
        while dotted and dotted not in self.modules:
            dotted = dotted.rpartition(".")[0]
        return dotted or None

    def _imports_of(self, file: str) -> Iterator[Import]:
        for node, typing, late in _walk(self.syntax[file]):
            for dotted in _imported(node, file):
                ours = dotted.split(".")[0] == "growtas"
                # The compiled core is a part of the kernels, and no file here.
                if not dotted.startswith("growtas._C") and (
                    target := self.known(dotted) if ours else dotted
                ):
                    yield Import(file, node.lineno, target, typing, late, False)
            if (text := _string(node)) and text.removesuffix(".") in self.modules:
                target = text.removesuffix(".")
                yield Import(file, node.lineno, target, typing, late, text != target)


def _walk(node: ast.AST, typing: bool = False, late: bool = False) -> Iterator[tuple]:
    """Every expression and statement, and whether only type checkers or only a call reach it."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant):
            continue  # documentation
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            for statement in child.body:
                yield statement, True, late
            for statement in child.orelse:
                yield statement, typing, late
                yield from _walk(statement, typing, late)
            continue
        yield child, typing, late
        inner = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        yield from _walk(child, typing, late or inner)


def _imported(node: ast.AST, file: str) -> list[str]:
    """Dotted names that a statement imports."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        package = file.removesuffix(".py").split("/")[: -node.level] if node.level else []
        base = ".".join([*package, *([node.module] if node.module else [])])
        return [f"{base}.{alias.name}" for alias in node.names]
    return []


def _string(node: ast.AST) -> str:
    """A string that may be given to importlib, as those of lazy tables are; else nothing."""
    found = isinstance(node, ast.Constant) and isinstance(node.value, str)
    return node.value if found and node.value.startswith("growtas.") else ""


def _function(file: str, node: ast.FunctionDef | ast.AsyncFunctionDef) -> Function:
    arguments = node.args
    names = [a.arg for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
    names += [a.arg for a in (arguments.vararg, arguments.kwarg) if a]
    count = len(names) - (names[:1] in (["self"], ["cls"]))
    compiled = any("triton.jit" in ast.unparse(d) for d in node.decorator_list)
    return Function(file, node.lineno, node.name, count, compiled)


def layer_of(file: str) -> str | None:
    """A folder's name, or what `FILES` says; None for a place that has no layer."""
    parts = file.removesuffix(".py").split("/")[1:]
    found = FILES.get(parts[0]) if len(parts) == 1 else parts[0]
    return found if found in (*LAYERS, SURFACE) else None


def every_file_has_a_layer(tree: Tree) -> list[str]:
    return [
        f"{name}:1: has no layer; allowed: one of the folders {', '.join(LAYERS[1:])}"
        for name in tree.syntax
        if layer_of(name) is None
    ]


def imports_go_down(tree: Tree) -> list[str]:
    wrong = []
    for found in tree.imports:
        own = layer_of(found.file)
        if own in (None, SURFACE) or found.target not in tree.modules:
            continue
        if (found.file, found.target) in PUBLIC:
            continue
        other = layer_of(tree.name(tree.modules[found.target])) or "no layer"
        allowed = [name for name in LAYERS[LAYERS.index(own) :] if (own, name) not in APART]
        if other not in allowed:
            wrong.append(f"{found} ({other}); {own} may import {', '.join(allowed)}")
    return wrong


def no_circles(tree: Tree) -> list[str]:
    """Files that import each other, at once or in a call; what is for type checkers is exempt."""
    edges: dict[str, dict[str, Import]] = {module: {} for module in tree.modules}
    for found in tree.imports:
        source = tree.module(tree.root / found.file)
        if found.target in edges and found.target != source and not (found.typing or found.open):
            edges[source].setdefault(found.target, found)
    reached = {module: _reachable(module, edges) for module in edges}
    return [
        f"{found}, which leads back to it; move what both need into a file below them"
        for source, targets in edges.items()
        for target, found in targets.items()
        if source in reached[target]
    ]


def _reachable(start: str, edges: dict[str, dict[str, Import]]) -> set[str]:
    seen: set[str] = set()
    waiting = list(edges[start])
    while waiting:
        module = waiting.pop()
        if module not in seen:
            seen.add(module)
            waiting += edges[module]
    return seen


def torch_stays_out(tree: Tree) -> list[str]:
    """Of the layers `WITHOUT_TORCH`: they import no torch, nor, when loaded, a file that does."""
    by_file: dict[str, list[Import]] = {}
    for found in tree.imports:
        by_file.setdefault(found.file, []).append(found)

    def loads_torch(file: str, seen: set[str]) -> bool:
        if file in seen:
            return False
        seen.add(file)
        return any(
            found.target.split(".")[0] in TORCH
            or (
                found.target in tree.modules
                and loads_torch(tree.name(tree.modules[found.target]), seen)
            )
            for found in by_file.get(file, ())
            if not (found.typing or found.late)
        )

    wrong = []
    for found in tree.imports:
        own = layer_of(found.file)
        if own not in WITHOUT_TORCH or found.typing:
            continue
        path = tree.modules.get(found.target)
        direct = found.target.split(".")[0] in TORCH
        if direct or (path and not found.late and loads_torch(tree.name(path), set())):
            wrong.append(f"{found}, and so torch; {own} is pure Python")
    return wrong


def backends_keep_apart(tree: Tree) -> list[str]:
    """Within an operator's folder: which of them runs is for the dispatcher to say."""
    wrong = []
    for found in tree.imports:
        own, other = _backend(found.file), _backend(found.target.replace(".", "/"))
        if own and other and own != other:
            wrong.append(
                f"{found} ({other}); a file of the {own} backend may import {own} files and what "
                "all backends share"
            )
    return wrong


def _backend(file: str) -> str | None:
    parts = file.removesuffix(".py").split("/")
    if parts[:2] != ["growtas", "kernels"] or len(parts) < 4 or parts[2] == "triton":
        return None
    words = parts[3].split("_")
    return next((name for name in ("native", "gpu", "reference") if name in words), None)


def kernels_know_no_family(tree: Tree) -> list[str]:
    """Names and strings of growtas/kernels and csrc; documentation and comments are prose."""
    wrong = {}
    for file, line, text in (*_python_words(tree), *_native_words(tree)):
        attention = "attention" in file or file in DECLARES_ATTENTION
        for word in map(str.lower, re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", text)):
            if word == "depth" and file.startswith(PRODUCTS):
                continue
            if word in FAMILY or (word in ATTENTION and not attention):
                wrong[file, line, word] = (
                    f"{file}:{line}: {text!r} says {word!r}; kernels know rows, columns, sizes "
                    "and boxes, and only attention knows heads, q, k and v"
                )
    return list(wrong.values())


def _python_words(tree: Tree) -> Iterator[tuple[str, int, str]]:
    for file, module in tree.syntax.items():
        if not file.startswith("growtas/kernels/"):
            continue
        for node, _, _ in _walk(module):
            texts: list[str | None] = []
            for field in ("id", "attr", "arg", "name", "asname"):
                value = getattr(node, field, None)
                texts.append(value if isinstance(value, str) else None)
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                # A module's name is an import, for which there is another rule.
                texts += [word for word in node.value.split() if not word.startswith("growtas.")]
            for text in texts:
                if text:
                    yield file, getattr(node, "lineno", 1), text


def _native_words(tree: Tree) -> Iterator[tuple[str, int, str]]:
    for path in sorted((tree.root / "csrc").rglob("*")):
        if path.suffix not in (".cpp", ".h", ".cu"):
            continue
        text = re.sub(
            r"//[^\n]*|/\*.*?\*/",
            lambda comment: "\n" * comment[0].count("\n"),
            path.read_text(encoding="utf-8"),
            flags=re.DOTALL,
        )
        for number, line in enumerate(text.splitlines(), 1):
            for word in re.findall(r"[A-Za-z_]\w*", line):
                yield tree.name(path), number, word


def files_are_short(tree: Tree) -> list[str]:
    lengths = {
        tree.name(path): len(path.read_text(encoding="utf-8").splitlines()) for path in tree.paths
    }
    return [
        f"{name}:{length}: has {length} lines; allowed: {MAX_LINES}"
        for name, length in lengths.items()
        if length > MAX_LINES
    ]


def functions_take_few_parameters(tree: Tree) -> list[str]:
    return [
        f"{f.file}:{f.line}: {f.name} takes {f.parameters} parameters; allowed: {MAX_PARAMETERS} "
        "(`**options: Unpack[...]` is one), and any number where Triton compiles it"
        for f in tree.functions
        if f.parameters > MAX_PARAMETERS
        and not f.compiled
        and (f.file, f.name) not in KEPT_SIGNATURES
    ]


RULES = (
    every_file_has_a_layer,
    imports_go_down,
    no_circles,
    torch_stays_out,
    backends_keep_apart,
    kernels_know_no_family,
    files_are_short,
    functions_take_few_parameters,
)
