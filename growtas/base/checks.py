"""Checks of plain values that name the value and what is allowed. Pure Python."""

from __future__ import annotations

import math
import operator
import re
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

from growtas.base.config import nearest

_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


class Doubt(UserWarning):
    """What was asked for can be done, but the result may not mean what it seems to."""


def warn(text: str) -> None:
    """Warn with a `Doubt`; the command prints it as one line, once."""
    warnings.warn(text, Doubt, stacklevel=3)


# Fewer images make an accuracy uncertain by 10 percentage points and more.
_FEW_IMAGES = 100


def few_images(what: str, count: int) -> str | None:
    """What an accuracy on `count` images is worth, as a sentence about `what`; None if there are
    enough of them."""
    if count >= _FEW_IMAGES:
        return None
    points = 98 / count**0.5  # 1.96 standard deviations at an accuracy of one half
    return (
        f"{what} has {count} image{'s' if count > 1 else ''}: an accuracy measured on so few is "
        f"uncertain by up to {points:.0f} percentage points (95 %)"
    )


def at_least(label: str, value: Any, least: int | None) -> int:
    """`value` as an int of at least `least` (None: any); TypeError for what is no integer."""
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{label} must be an integer, got {value!r}") from None
    if isinstance(value, bool):
        raise TypeError(f"{label} must be an integer, got {value!r}")
    if least is not None and number < least:
        raise ValueError(f"{label} must be at least {least}, got {number}")
    return number


def positive_int(label: str, value: Any) -> int:
    """`value` as an int of at least 1; TypeError for anything that is not an integer."""
    return at_least(label, value, 1)


def positive_float(label: str, value: Any) -> float:
    """`value` as a finite float above 0; TypeError for anything that is not a number."""
    if isinstance(value, bool) or not hasattr(value, "__float__"):
        raise TypeError(f"{label} must be a number, got {value!r}")
    number = float(value)
    if not (math.isfinite(number) and number > 0):
        raise ValueError(f"{label} must be positive and finite, got {value}")
    return number


def check(ok: bool, label: str, value: Any, allowed: str) -> None:
    """ValueError with the value and what is allowed, unless `ok`."""
    if not ok:
        raise ValueError(f"{label} is {value!r}; allowed: {allowed}")


def check_number(
    label: str, value: Any, low: float, high: float = math.inf, *, open_low: bool = False
) -> None:
    """Refuse what is no finite number from `low` (exclusive if `open_low`) to `high`."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{label} is {value!r}; a number is needed")
    bounds = f"{'above' if open_low else 'at least'} {low:g}"
    if high < math.inf:
        bounds += f", at most {high:g}"
    above = value > low if open_low else value >= low
    ok = math.isfinite(value) and above and value <= high
    check(ok, label, value, f"a finite number {bounds}")


def check_integer(label: str, value: Any, low: int, high: int | None = None) -> None:
    """Refuse what is no integer from `low` to `high`."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{label} is {value!r}; an integer is needed")
    bounds = f"at least {low}" if high is None else f"{low} to {high}"
    ok = low <= value and (high is None or value <= high)
    check(ok, label, value, f"an integer of {bounds}")


def check_choice(label: str, value: Any, allowed: Iterable[str]) -> None:
    """Refuse what is none of the words `allowed`."""
    names = list(allowed)
    check(value in names, label, value, ", ".join(map(repr, names)))


def is_plain_name(value: str) -> bool:
    """Whether `value` can name a file or folder on every system, and is no path."""
    return _PLAIN_NAME.fullmatch(value) is not None


def plain_name(label: str, value: str) -> str:
    """`value` if `is_plain_name`; ValueError otherwise."""
    if not is_plain_name(value):
        raise ValueError(
            f"{label} is {value!r}; allowed: at most 100 letters, digits, '.', '_' and '-', the "
            "first one a letter or digit"
        )
    return value


def listed(values: Iterable[Any]) -> str:
    """The values separated by commas."""
    return ", ".join(str(value) for value in values)


def as_tuple(label: str, values: Any) -> tuple[Any, ...]:
    """The items of a list-like value; TypeError for a scalar or a text."""
    if isinstance(values, (str, bytes)) or not isinstance(values, Iterable):
        raise TypeError(f"{label} must be a list, got {values!r}")
    return tuple(values)


def mapping(
    label: str,
    values: Any,
    *,
    required: Iterable[str] = (),
    optional: Iterable[str] | None = None,
) -> dict[str, Any]:
    """A copy of a mapping whose keys are checked; `optional` None lets any other key pass.

    Raises:
        TypeError: `values` is not a mapping.
        ValueError: a required key is missing or a key is unknown; the nearest known one is named.
    """
    if not isinstance(values, Mapping):
        raise TypeError(f"{label} must map names to values, got {values!r}")
    if optional is not None:
        known = [*required, *optional]
        for key in values:
            if key not in known:
                hint = nearest(str(key), known)
                raise ValueError(f"unknown {label} field {key!r}{hint}; known: {listed(known)}")
    for key in required:
        if key not in values:
            raise ValueError(f"{label} field {key!r} is missing; needed: {listed(required)}")
    return dict(values)
