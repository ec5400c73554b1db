"""Strict loading of YAML into dataclasses: an unknown name or a wrong type is an error that helps.

Three steps, each usable alone: `load_yaml` reads text into plain values, `apply_override` changes
one of them from ``section.field=value``, and `build` turns the plain values into (nested)
dataclasses. `to_plain` and `dump_yaml` are the way back.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import functools
import inspect
import re
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

T = TypeVar("T")

# YAML 1.1 reads `1e-3` as a string because it has no dot; users mean a number.
_FLOAT_WITHOUT_DOT = (
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?[0-9]+[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)

# Where a value is: names of fields, and positions in lists.
Field = tuple[str | int, ...]
_PART = re.compile(r"(?P<name>[^\[\]]+)(?P<positions>(?:\[[0-9]+\])*)")
_POSITION = re.compile(r"[0-9]+")

_SEQUENCES = (tuple, list, Sequence)
_MAPPINGS = (dict, Mapping)


class _Unset:
    def __repr__(self) -> str:
        return "(not set)"


_UNSET = _Unset()


class ConfigError(ValueError):
    """A recipe, an override or a file that cannot be used; the message is meant for the user."""


def read_text(path: str | Path) -> str:
    """The text of a UTF-8 file.

    Raises:
        ConfigError: it holds something else, such as an image.
        OSError: it cannot be read.
    """
    try:
        return Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not a text file (UTF-8): {error}") from None


@contextlib.contextmanager
def content_of(path: str | Path, what: str) -> Iterator[None]:
    """Around the lines that take a file's content apart: what fails there is the file's fault,
    which should be `what` ("the result of a search").

    Raises:
        ConfigError: a value is missing, of another kind or out of range; names the file.
    """
    try:
        yield
    except (AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        said = str(error) if isinstance(error, ValueError) else repr(error)
        raise ConfigError(f"{path} is not {what}: {said}") from error


def load_yaml(text: str, *, source: str = "YAML") -> Any:
    """Reads YAML into plain values: dict, list, str, int, float, bool, None, and no other objects.

    Differs from ``yaml.safe_load`` in three ways: ``1e-3`` is a number; ``off``, ``on``, ``yes``
    and ``no`` are words (as in YAML 1.2; only ``true`` and ``false`` are booleans); and a key that
    is written twice is refused.

    Raises:
        ConfigError: the text is not valid YAML; the message names `source` and the line.
    """
    import yaml

    try:
        return yaml.load(text, Loader=_loader())
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}" if mark is not None else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise ConfigError(f"{source}{place}: {problem}") from None
    except RecursionError:
        raise ConfigError(f"{source}: lists or mappings are nested too deeply") from None
    except ValueError as error:  # of a value that looks like a date or a number and is none
        raise ConfigError(f"{source}: {error}") from None


@functools.cache
def _loader() -> Any:
    import yaml

    class Loader(yaml.SafeLoader):
        def construct_document(self, node: Any) -> Any:
            return self.construct_object(node, deep=True)  # refuses what contains itself

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            seen: list[Any] = []
            for key_node, _ in node.value:
                if key_node.tag == "tag:yaml.org,2002:merge":
                    continue
                key = self.construct_object(key_node, deep=True)
                if key in seen:
                    problem = f"{key!r} is written twice"
                    raise yaml.constructor.ConstructorError(
                        None, None, problem, key_node.start_mark
                    )
                seen.append(key)
            return super().construct_mapping(node, deep=deep)

    boolean = "tag:yaml.org,2002:bool"
    Loader.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag != boolean]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    Loader.add_implicit_resolver(
        boolean, re.compile("^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
    )
    Loader.add_implicit_resolver(*_FLOAT_WITHOUT_DOT)
    return Loader


def nearest(name: str, known: Iterable[str]) -> str:
    """`` (did you mean 'x'?)`` for the known name closest to `name`, else the empty string."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" (did you mean '{close[0]}'?)" if close else ""


def split_override(text: str) -> tuple[Field, Any]:
    """``"optim.lr=1e-3"`` -> ``(("optim", "lr"), 0.001)``; the value is read as YAML.

    A number in brackets is a position in a list, from 0: ``search.limits[0].max_params=6M``.

    Raises:
        ConfigError: there is no ``=``, or no such name before it.
    """
    name, equals, value = text.partition("=")
    parts = [_PART.fullmatch(part) for part in name.strip().split(".")]
    field: list[str | int] = []
    for part in parts:
        if not equals or part is None:
            raise ConfigError(
                f"cannot read {text!r}: write section.field=value, for example train.epochs=3 or "
                "search.limits[0].max_params=6M"
            )
        field += [part["name"], *map(int, _POSITION.findall(part["positions"]))]
    return tuple(field), load_yaml(value, source=f"override {text!r}")


def dotted(field: Field) -> str:
    """A field as it is written in an override: ``search.limits[0].name``."""
    return "".join(f"[{k}]" if isinstance(k, int) else f".{k}" for k in field).removeprefix(".")


def apply_override(values: dict[str, Any], field: Field, value: Any) -> None:
    """Sets ``values[field[0]][field[1]]... = value`` in place; a number indexes a list.

    Names are not checked here but by `build`, which knows the fields.

    Raises:
        ConfigError: no such position in a list, or `field` goes on where there are no fields.
    """
    here: Any = values
    for depth in range(len(field) - 1):
        key = _key(here, field, depth)
        if isinstance(here, dict) and here.get(key) is None:
            here[key] = {}
        here = here[key]
    here[_key(here, field, len(field) - 1)] = value


def _key(here: Any, field: Field, depth: int) -> Any:
    """``field[depth]`` as a key of `here`, which is found at ``field[:depth]``."""
    key, place = field[depth], dotted(field[:depth])
    refused = f"cannot set {dotted(field)}: {place}"
    if isinstance(here, list):
        position = int(key) if str(key).isdecimal() else -1  # limits.0 is limits[0]
        if 0 <= position < len(here):
            return position
        last = len(here) - 1
        allowed = f"a list; its positions are [0] to [{last}]" if here else "an empty list"
        raise ConfigError(f"{refused} is {allowed}")
    if not isinstance(here, dict):
        raise ConfigError(f"{refused} is the value {here!r}, it has no fields")
    if isinstance(key, int):
        raise ConfigError(f"{refused} is not a list in this recipe; set all of it: {place}='[...]'")
    return key


def build(cls: type[T], values: Any, *, where: str = "") -> T:
    """Builds the dataclass `cls` from a mapping of plain values, checking every name and type.

    Args:
        cls: a dataclass; its fields may be dataclasses, scalars, Literal, unions, tuples, lists and
            mappings.
        values: what YAML gave; ``None`` (an empty section) means all defaults.
        where: dotted name of `values` in the recipe, put in front of every message.

    Raises:
        ConfigError: an unknown field (the nearest name is suggested), a missing field, a value of
            another type (the message states the value and what is expected), or whatever
            ``__post_init__`` refuses.
    """
    if not dataclasses.is_dataclass(cls):
        raise TypeError(f"{cls!r} is not a dataclass")
    values = {} if values is None else values
    given = arguments(cls, values, where=where)
    try:
        return cls(**given)
    except ConfigError:
        raise
    except (ValueError, TypeError) as error:
        # Some sections name themselves in their messages ("data.batch_size is 0; ...").
        named = not where or str(error).startswith(f"{where}.")
        raise ConfigError(str(error) if named else f"{where}: {error}") from None


def arguments(cls: type, values: Any, *, where: str = "") -> dict[str, Any]:
    """Plain values as arguments of the class `cls`, checked against its annotations.

    Args:
        cls: a class whose arguments have annotations and names; a dataclass, for example. Those
            of ``**options: Unpack[SomeTypedDict]`` count as optional arguments.
        values: a mapping.
        where: put in front of every message.

    Raises:
        ConfigError: as for `build`, except for what the class itself refuses.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(
            f"{where or 'recipe'}: expected fields (name: value), got {_shown(values)}"
        )
    prefix = f"{where}." if where else ""
    fields = inspect.signature(cls).parameters
    hints = typing.get_type_hints(cls.__init__)  # type: ignore[misc]  # of this very class
    allowed = {name: hints[name] for name in fields}
    needed = {name for name, f in fields.items() if f.default is inspect.Parameter.empty}
    for name, field in fields.items():
        if field.kind is inspect.Parameter.VAR_KEYWORD:
            needed.remove(name)
            allowed |= typing.get_type_hints(get_args(allowed.pop(name))[0])
    for name in values:
        if name not in allowed:
            known = ", ".join(allowed)
            hint = nearest(str(name), allowed)
            raise ConfigError(f"unknown field {prefix}{name}{hint}; known fields: {known}")
    given: dict[str, Any] = {}
    for name, annotation in allowed.items():
        if name in values:
            given[name] = convert(values[name], annotation, where=prefix + name)
        elif name in needed:
            raise ConfigError(f"{prefix}{name} is missing ({_type_name(annotation)})")
    return given


def convert(value: Any, annotation: Any, *, where: str) -> Any:
    """Checks a plain value against a type annotation; returns it in that type (list -> tuple)."""
    if annotation is Any:
        return value
    if dataclasses.is_dataclass(annotation) and isinstance(annotation, type):
        return value if isinstance(value, annotation) else build(annotation, value, where=where)
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        return _convert_union(value, annotation, where)
    if origin is Literal:
        if any(value == choice and type(value) is type(choice) for choice in arguments):
            return value
        raise _mismatch(where, value, annotation)
    container = origin or annotation
    if container in _SEQUENCES:
        return _convert_sequence(value, annotation, where)
    if container in _MAPPINGS:
        if not isinstance(value, Mapping):
            raise _mismatch(where, value, annotation)
        item = arguments[1] if arguments else Any
        return {key: convert(entry, item, where=f"{where}.{key}") for key, entry in value.items()}
    return _convert_scalar(value, annotation, where)


def _convert_scalar(value: Any, annotation: Any, where: str) -> Any:
    if annotation in (None, type(None)):
        if value is None:
            return None
    elif annotation is float:
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
    elif annotation is int:
        if isinstance(value, int) and not isinstance(value, bool):
            return value
        if isinstance(value, float) and value.is_integer():  # 5e5 is a float in YAML, yet a count
            return int(value)
    elif isinstance(annotation, type) and isinstance(value, annotation):
        return value
    raise _mismatch(where, value, annotation)


def _convert_union(value: Any, annotation: Any, where: str) -> Any:
    choices = get_args(annotation)
    # An arm of exactly the value's type wins, so that `int | float` keeps 3 an int.
    for choice in choices:
        if type(value) is choice or (value is None and choice is type(None)):
            return value
    if isinstance(value, Mapping):
        for choice in choices:
            if dataclasses.is_dataclass(choice):
                return convert(value, choice, where=where)  # its error says more than "A or B"
    for choice in choices:
        with contextlib.suppress(ConfigError):
            return convert(value, choice, where=where)
    raise _mismatch(where, value, annotation)


def _convert_sequence(value: Any, annotation: Any, where: str) -> Any:
    container, kinds = get_origin(annotation) or annotation, get_args(annotation)
    if not isinstance(value, (list, tuple)):
        raise _mismatch(where, value, annotation)
    if container is not tuple or not kinds or kinds[-1] is Ellipsis:  # any number of one type
        kinds = (kinds[0] if kinds else Any,) * len(value)
    if len(value) != len(kinds):
        raise _mismatch(where, value, annotation)
    items = zip(value, kinds, strict=True)
    converted = [convert(v, t, where=f"{where}[{i}]") for i, (v, t) in enumerate(items)]
    return converted if container is list else tuple(converted)


def to_plain(value: Any) -> Any:
    """Dataclasses, tuples and mappings as dicts and lists that YAML and JSON can hold."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value) if f.init
        }
    if isinstance(value, Mapping):
        return {key: to_plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(entry) for entry in value]
    return value


def dump_yaml(values: Mapping[str, Any]) -> str:
    """YAML text of plain values: one line per field, lists of scalars on their field's line."""
    import yaml

    class Dumper(yaml.SafeDumper):
        pass

    def represent_list(dumper: Any, items: list[Any]) -> Any:
        nested = any(isinstance(item, (list, dict)) for item in items)
        return dumper.represent_sequence("tag:yaml.org,2002:seq", items, flow_style=not nested)

    Dumper.add_representer(list, represent_list)
    Dumper.add_implicit_resolver(*_FLOAT_WITHOUT_DOT)  # so that the text "1e-3" gets quotes
    return yaml.dump(to_plain(values), Dumper=Dumper, sort_keys=False, default_flow_style=False)


def differences(left: Mapping[str, Any], right: Mapping[str, Any], *, where: str = "") -> list[str]:
    """One line ``name: left -> right`` for every value in which two nested mappings differ."""
    lines = []
    for key in [*left, *(k for k in right if k not in left)]:
        lines += _difference(f"{where}{key}", left.get(key, _UNSET), right.get(key, _UNSET))
    return lines


def _difference(name: str, left: Any, right: Any) -> list[str]:
    if isinstance(left, Mapping) and isinstance(right, Mapping):
        return differences(left, right, where=f"{name}.")
    lists = isinstance(left, list) and isinstance(right, list) and len(left) == len(right)
    if lists and any(isinstance(item, Mapping) for item in left):
        pairs = enumerate(zip(left, right, strict=True))
        return [line for i, (a, b) in pairs for line in _difference(f"{name}[{i}]", a, b)]
    return [] if left == right else [f"{name}: {left!r} -> {right!r}"]


def _mismatch(where: str, value: Any, annotation: Any) -> ConfigError:
    return ConfigError(f"{where}: expected {_type_name(annotation)}, got {_shown(value)}")


def _shown(value: Any) -> str:
    if value is None:
        return "nothing (null)"
    kinds = {dict: "mapping", str: "text", int: "integer", float: "number", bool: "true/false"}
    return f"{value!r} ({kinds.get(type(value), type(value).__name__)})"


def _type_name(annotation: Any) -> str:
    names = {int: "an integer", float: "a number", str: "a text", bool: "true or false"}
    if annotation is type(None):
        return "null"
    if annotation in names:
        return names[annotation]
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        return " or ".join(_type_name(a) for a in arguments)
    if origin is Literal:
        return "one of " + ", ".join(repr(a) for a in arguments)
    if dataclasses.is_dataclass(annotation):
        return "a mapping with " + ", ".join(f.name for f in dataclasses.fields(annotation))
    if origin is tuple and arguments and arguments[-1] is not Ellipsis:
        return f"a list of {len(arguments)}: " + ", ".join(_type_name(a) for a in arguments)
    if origin in _SEQUENCES:
        return f"a list, each item {_type_name(arguments[0])}"
    if origin in _MAPPINGS:
        return "a mapping"
    return getattr(annotation, "__name__", str(annotation))
