"""Files that list subnets: AutoFormer's YAML, PreNAS's candidates, plain ones. Without torch."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from growtas import cost
from growtas.checks import listed, mapping
from growtas.config import ConfigError, load_yaml
from growtas.space import SearchSpace
from growtas.subnet import Subnet

_STATED = ("num_params", "score")  # what PreNAS's files say about a subnet beside its choices


def load_subnets(path: str | os.PathLike[str], **model: Any) -> dict[str, Subnet]:
    """The subnets in a YAML or JSON file, by name and in the file's order.

    Reads, by content:

    - the ``RETRAIN`` section of AutoFormer's subnet files; the file gives the subnet its name;
    - PreNAS's candidate files (``interval_cands/*.json``): lists of subnets by parameter bin in
      millions, named by the bin (``"6.0"``), or ``"6.0-1"``, ``"6.0-2"`` where a bin has several;
    - the ``config.json`` of an exported model, and what ``growtas evaluate --json`` prints;
    - one subnet, a list of them (named 1, 2, ...), or subnets by name, each in a form that
      :meth:`growtas.Subnet.from_dict` reads.

    PreNAS's ``score`` depends on random weights and is dropped. A ``num_params`` (an integer, or a
    number of millions) is compared with :func:`growtas.num_params`. A disagreement is a warning and
    not an error: the subnet is fully given by its other fields, and the count also depends on the
    model, which such a file does not describe.

    Args:
        path: the file.
        model: arguments of :func:`growtas.num_params` for the model whose parameters the file
            counts, such as ``num_classes=100``; AutoFormer's on ImageNet if left out.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is neither YAML nor JSON, lists no subnet, or one of them is wrong; the
            message names the file and the subnet.

    Warns:
        UserWarning: a stated ``num_params`` is not its subnet's count; once per file, naming both.
    """
    path = Path(path)
    return subnets_in(_parse(path), str(path), path.stem, **model)


def subnets_in(
    content: Any, source: str, unnamed: str = "subnet", **model: Any
) -> dict[str, Subnet]:
    """As :func:`load_subnets`, for what such a file holds.

    Args:
        content: plain values.
        source: where they are from, for messages.
        unnamed: name of a subnet that the content gives none.
        model: as for :func:`load_subnets`.

    Raises:
        ValueError: `content` lists no subnet, or one of them is wrong.

    Warns:
        UserWarning: see :func:`load_subnets`.
    """
    subnets: dict[str, Subnet] = {}
    disagreements: list[str] = []
    for name, values in _entries(content, source, unnamed):
        if name in subnets:
            raise ValueError(f"{source} has two subnets with the name {name!r}")
        try:
            fields = mapping("subnet", values)
            stated = {key: fields.pop(key) for key in _STATED if key in fields}
            subnet = Subnet.from_dict(fields)
            if "num_params" in stated:
                count = _num_params(subnet, model)
                if not _agree(stated["num_params"], count):
                    disagreements.append(f"{name!r}: {stated['num_params']} but {count:,}")
        except (TypeError, ValueError) as error:
            raise ValueError(f"{source}, subnet {name!r}: {error}") from None
        subnets[name] = subnet
    if not subnets:
        raise ValueError(f"{source} lists no subnet")
    if disagreements:
        counted = listed(f"{key}={value}" for key, value in model.items())
        warnings.warn(
            f"{source} states other num_params than its subnets have, counted for "
            f"{counted or 'AutoFormer on ImageNet'}: {'; '.join(disagreements)}. The subnets are "
            "used as they are",
            stacklevel=3,
        )
    return subnets


def _parse(path: Path) -> Any:
    text = path.read_text(encoding="utf-8")
    if text.lstrip()[:1] in ("{", "["):  # most likely JSON, which YAML reads with exceptions
        try:
            return json.loads(text, object_pairs_hook=_unique)
        except (json.JSONDecodeError, RecursionError):
            pass
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None
    return load_yaml(text, source=str(path))


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ConfigError(f"{next(k for k in keys if keys.count(k) > 1)!r} is written twice")
    return values


def _entries(content: Any, source: str, unnamed: str) -> Iterator[tuple[str, Any]]:
    """Name and fields of every subnet in a file's content."""
    if isinstance(content, list):
        content = {str(number): values for number, values in enumerate(content, 1)}
    if not isinstance(content, Mapping):
        raise ValueError(
            f"{source} lists no subnet: it holds {content!r}, expected a subnet, a list of "
            "subnets, or subnets by name"
        )
    content = content.get("info", content)  # of an exported model
    for section in ("RETRAIN", "subnet"):
        if section in content:
            yield unnamed, content[section]
            return
    if "SEARCH_SPACE" in content:
        raise ValueError(
            f"{source} describes a search space and has no RETRAIN section with a subnet: "
            "SearchSpace.from_yaml reads it"
        )
    if any(str(key).lower() == "embed_dim" for key in content):
        yield unnamed, content
        return
    for name, values in content.items():
        if not isinstance(values, list):
            yield str(name), values
            continue
        for number, entry in enumerate(values, 1):
            yield (f"{name}-{number}" if len(values) > 1 else str(name)), entry


def _num_params(subnet: Subnet, model: Mapping[str, Any]) -> int:
    heads, ratios = sorted(set(subnet.num_heads)), sorted(set(subnet.mlp_ratio))
    space = SearchSpace((subnet.embed_dim,), (subnet.depth,), tuple(heads), tuple(ratios))
    return cost.num_params(space, subnet, **model)


def _agree(stated: Any, count: int) -> bool:
    """Whether a file's number, an integer or millions, is this count."""
    if isinstance(stated, bool) or not isinstance(stated, (int, float)):
        raise TypeError(f"num_params must be a number, got {stated!r}")
    return stated == count if isinstance(stated, int) else abs(stated * 1e6 - count) < 0.5
