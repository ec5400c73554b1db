"""The recipes that come with the package, one YAML file each."""

from __future__ import annotations

from importlib import resources

_SUFFIX = ".yaml"


def available() -> list[str]:
    """Their names."""
    files = resources.files(__name__).iterdir()
    return sorted(f.name.removesuffix(_SUFFIX) for f in files if f.name.endswith(_SUFFIX))


def read(name: str) -> str:
    """The text of one; KeyError if there is none of that name."""
    if name not in available():
        raise KeyError(name)
    return (resources.files(__name__) / f"{name}{_SUFFIX}").read_text(encoding="utf-8")
