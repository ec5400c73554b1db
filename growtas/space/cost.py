"""Sizes of subnets, as families count them, and numbers of them as people write them. Pure Python.

The counts are of the ordinary model that a supernet's ``extract`` returns, so a search can bound
them before it runs anything.
"""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal, InvalidOperation
from typing import Any, Literal, NamedTuple

from growtas.space.subnet import Subnet

Axis = Literal["params", "macs"]
Count = int | float | str | None

_UNITS = {"K": 10**3, "M": 10**6, "G": 10**9, "B": 10**9, "T": 10**12}


class Cost(NamedTuple):
    """Size of the extracted model."""

    params: int  # parameters
    macs: int  # multiply-adds for one image


CostFunction = Callable[[Subnet], Cost]


def model_cost(model: Any) -> CostFunction:
    """The cost function of a supernet."""
    return model.cost


def parse_count(value: int | float | str, name: str = "count") -> int:
    """A number of parameters or multiply-adds: ``6000000``, ``6e6``, ``"6M"``, ``"1.3G"``.

    Units are powers of 1000: K, M, G (or B) and T, in either case.

    Raises:
        TypeError: neither a number nor text.
        ValueError: not a non-negative whole number.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise TypeError(f"{name} must be a number or a text like '6M', got {value!r}")
    text = str(value).strip()
    unit = _UNITS.get(text[-1:].upper(), 1)
    try:
        number = Decimal(text[:-1] if unit > 1 else text) * unit
    except InvalidOperation:
        raise ValueError(
            f"{name} must be a number or a text like '6M' or '1.3G', got {value!r}"
        ) from None
    if not number.is_finite() or number < 0 or number != number.to_integral_value():
        raise ValueError(f"{name} must be a whole number that is not negative, got {value!r}")
    return int(number)


def format_count(count: float) -> str:
    """`count` with a unit of 1000: 6000000 -> ``6M``, 5366056 -> ``5.366056M``."""
    for suffix, unit in (("G", 10**9), ("M", 10**6), ("K", 10**3)):
        if count >= unit:
            return f"{count / unit:.12g}{suffix}"
    return f"{count:.12g}"
