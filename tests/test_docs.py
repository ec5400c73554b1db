"""Every file, module and name that the pages mention exists, and every link leads somewhere."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "benchmarks/README.md"],
    key=str,
)
FOLDERS = ("growtas", "csrc", "benchmarks", "tests", "docs")
FOREIGN = {
    "evolution.py",  # AutoFormer's
    "triton.py",  # what a backend must not be called
    # The worked examples of CONTRIBUTING, which their own tests write and run.
    "growtas/kernels/scale/api.py",
    "growtas/kernels/scale/reference.py",
    "growtas/schedule/sandwich.py",
}
SUFFIXES = "py|h|cpp|cu|md|csv|png|svg|yaml"

CODE = re.compile(r"^```.*?^```|^ {4}.*?$|`[^`\n]+`", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
PATH = re.compile(rf"(?<![\w/.~-])(?:{'|'.join(FOLDERS)})/[\w./*-]*[\w*/]")
FILE = re.compile(rf"`((?:[\w-]+/)*[\w-]+\.(?:{SUFFIXES}))`")
DOTTED = re.compile(r"(?<![\w./-])(?:growtas|benchmarks)(?:\.[A-Za-z_]\w*)+(?![\w/])")


def missing_links(page: Path, text: str) -> list[str]:
    missing = []
    for target in LINK.findall(CODE.sub("", text)):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        path = page.parent / name if name else page
        found = path.exists() and (not anchor or anchor in anchors(path))
        if not found:
            missing.append(target)
    return missing


def anchors(page: Path) -> set[str]:
    """As GitHub derives them from headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\s-]", "", h.lower()).replace(" ", "-") for h in headings}


def missing_files(text: str) -> list[str]:
    """Paths, and names of source files in backticks, which may leave folders out."""
    missing = [path for path in PATH.findall(text) if not list(ROOT.glob(path.rstrip("/.")))]
    sources = (name for name in FILE.findall(text) if name.endswith((".py", ".h", ".cpp", ".cu")))
    missing += [name for name in sources if not somewhere(name)]
    return [name for name in missing if name not in FOREIGN]


def somewhere(name: str) -> bool:
    places = ((ROOT / folder).glob(f"**/{name}") for folder in FOLDERS)
    return (ROOT / name).exists() or any(next(place, None) for place in places)


def missing_names(text: str) -> list[str]:
    """Dotted names that are neither a module nor something in one."""
    examples = {path.removesuffix(".py").replace("/", ".") for path in FOREIGN}
    return [n for n in DOTTED.findall(text) if n not in examples and not leads_somewhere(n)]


def leads_somewhere(name: str) -> bool:
    if name.rpartition(".")[2] in SUFFIXES.split("|"):
        return True  # a file's name
    found = importlib.import_module(name.partition(".")[0])
    path = found.__name__
    for part in name.split(".")[1:]:
        path = f"{path}.{part}"
        if not hasattr(found, part):
            try:
                importlib.import_module(path)
            except ModuleNotFoundError:
                return False
        found = getattr(found, part)
    return True


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_page(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    # What another project's folders hold, or a reader's, is no path of ours.
    assert not missing_links(page, text)
    assert not missing_files(text)
    assert not missing_names(text)


def test_what_is_missing_is_found() -> None:
    page = ROOT / "docs" / "training.md"
    code = "```\nx[0](a)\n```\n\n    y[0](b)\n\n`z[0](c)` "
    links = (
        code
        + "[a](data.md) [b](gone.md) [c](search.md#gone) [d](#several-processes) [e](https://x)"
    )
    assert missing_links(page, links) == ["gone.md", "search.md#gone"]
    files = "growtas/space/cost.py, growtas/cost/gone.py; `trainer.py` `gone.py` `kernels/gone.py`"
    assert missing_files(files) == ["growtas/cost/gone.py", "gone.py", "kernels/gone.py"]
    names = "growtas.cost.macs growtas.macs growtas.run.folder.Run growtas.space.gone growtas.svg"
    assert missing_names(names) == ["growtas.space.gone"]
