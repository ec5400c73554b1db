"""Files that list subnets: AutoFormer's YAML and evolution results, PreNAS's candidates, plain.

Only evolution results, which are files of ``torch.save``, need torch.
"""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from growtas.base.checks import as_tuple, listed, mapping
from growtas.base.config import ConfigError, load_yaml
from growtas.space import SearchSpace, Subnet
from growtas.supernet.vit.config import SupernetConfig
from growtas.supernet.vit.geometry import vit_geometry

# A file with subnets, and the name of one of them if it has several.
SUBNET_FILE = re.compile(r"(.+\.(?:json|ya?ml|pth(?:\.tar)?))(?::(.+))?")

_PICKLED = (b"PK\x03\x04", b"\x80")  # how files of torch.save begin, new and old ones
_HEAD_DIM = 64  # of all of AutoFormer's and PreNAS's models
_STATED = ("num_params", "score")  # what PreNAS's files say about a subnet beside its choices


def load_subnets(
    path: str | os.PathLike[str], *, verify: bool = True, **model: Any
) -> dict[str, Subnet]:
    """The subnets in a file, by name and in the file's order.

    Reads, by content:

    - the ``RETRAIN`` section of AutoFormer's subnet files; the file gives the subnet its name;
    - PreNAS's candidate files (``interval_cands/*.json``): lists of subnets by parameter bin in
      millions, named by the bin (``"6.0"``), or ``"6.0-1"``, ``"6.0-2"`` where a bin has several;
      several such files in one, by name, give ``"tiny/6.0"``;
    - the results of AutoFormer's evolution (``checkpoint-20.pth.tar``): its best subnets so far,
      the best first, named by their ranks ``"1"``, ``"2"``, ...; no code in such a file is run;
    - the ``config.json`` of an exported model, and what ``growtas evaluate --json`` prints;
    - one subnet, a list of them (named 1, 2, ...), or subnets by name, each in a form that
      :meth:`growtas.Subnet.from_dict` reads; texts beside the names are notes.

    PreNAS's ``score`` depends on random weights and is dropped. A ``num_params`` (an integer, or a
    number of millions) is compared with :func:`growtas.num_params`. A disagreement is a warning and
    not an error: the subnet is fully given by its other fields, and the count also depends on the
    model, which such a file does not describe.

    Args:
        path: the file.
        verify: compare evolution results with their checksums.
        model: arguments of :func:`growtas.num_params` for the model whose parameters the file
            counts, such as ``num_classes=100``; AutoFormer's on ImageNet if left out.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is neither YAML nor JSON nor evolution results, it is damaged or holds
            code, lists no subnet, or one of them is wrong; the message names the file and the
            subnet.

    Warns:
        UserWarning: a stated ``num_params`` is not its subnet's count; once per file, naming both.
    """
    path = Path(path)
    return subnets_in(_parse(path, verify), str(path), path.stem, **model)


def subnets_in(
    content: Any, source: str, unnamed: str = "subnet", **model: Any
) -> dict[str, Subnet]:
    """As :func:`load_subnets`, for the plain values that such a file holds; `source` names it in
    messages, and `unnamed` a subnet that the content gives no name."""
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
                count = vit_geometry(SupernetConfig(**model), _HEAD_DIM).num_params(subnet)
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


def read_subnet(text: str, space: SearchSpace) -> Subnet | None:
    """The subnet that `text` says without a search: "smallest", "largest", JSON, or a file that
    `growtas.load_subnets` reads (FILE, or FILE:NAME if it has several); None if it is something
    else.

    Raises:
        ConfigError: the JSON or the file does not describe a subnet.
    """
    if text in ("smallest", "largest"):
        return space.smallest() if text == "smallest" else space.largest()
    try:
        if text.lstrip().startswith("{"):
            return _one(subnets_in(json.loads(text), "the JSON"), None, "the JSON")
        if file := SUBNET_FILE.fullmatch(text):
            path, name = file.groups()
            return _one(load_subnets(path), name, path)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"the subnet: {error}") from None
    return None


def _one(subnets: Mapping[str, Subnet], name: str | None, source: str) -> Subnet:
    """The subnet called `name`, or the only one."""
    if name is None and len(subnets) == 1:
        return next(iter(subnets.values()))
    if name is None or name not in subnets:
        known = ", ".join(f"{source}:{known}" for known in subnets)
        raise ConfigError(
            f"{source} has no {name!r}" if name else f"{source} has several; use {known}"
        )
    return subnets[name]


def _parse(path: Path, verify: bool) -> Any:
    content = path.read_bytes()
    if content.startswith(_PICKLED):
        from growtas.base import torch_files

        return _best_of_evolution(torch_files.load(path, verify=verify), str(path))
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text: {error}") from None
    if text.lstrip()[:1] in ("{", "["):  # most likely JSON, which YAML reads with exceptions
        try:
            return json.loads(text, object_pairs_hook=_unique)
        except (json.JSONDecodeError, RecursionError):
            pass
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None
    return load_yaml(text, source=str(path))


def _best_of_evolution(content: Any, source: str) -> list[dict[str, Any]]:
    """The longest list of best subnets in what AutoFormer's evolution saves after a generation."""
    if not isinstance(content, Mapping) or "keep_top_k" not in content:
        raise ValueError(
            f"{source} holds no results of AutoFormer's evolution: it has no keep_top_k. "
            "load_autoformer reads the checkpoint of a supernet"
        )
    lists = [
        as_tuple(f"{source}: keep_top_k[{size!r}]", candidates)
        for size, candidates in mapping(f"{source}: keep_top_k", content["keep_top_k"]).items()
    ]
    scored = mapping(f"{source}: vis_dict", content.get("vis_dict", {}))
    entries = []
    best = max(lists, key=len, default=())
    for rank, candidate in enumerate(best, 1):
        entry = _decoded(candidate, f"{source}, subnet '{rank}'")
        score = mapping(f"{source}: vis_dict of subnet '{rank}'", scored.get(candidate, {}))
        if (params := score.get("params")) is not None:
            entry["num_params"] = params  # in millions
        entries.append(entry)
    return entries


def _decoded(candidate: Any, label: str) -> dict[str, Any]:
    """The subnet that one of its tuples stands for."""
    if isinstance(candidate, tuple) and candidate and isinstance(candidate[0], int):
        depth = candidate[0]
        if len(candidate) == 2 * depth + 2:
            return {
                "depth": depth,
                "mlp_ratio": candidate[1 : depth + 1],
                "num_heads": candidate[depth + 1 : -1],
                "embed_dim": candidate[-1],
            }
    raise ValueError(
        f"{label} is {candidate!r}; expected a depth, the MLP ratio and then the heads of so many "
        "blocks, and an embedding dim"
    )


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
        if isinstance(values, str):
            continue
        if _is_group(values):
            for inner, fields in _entries(values, source, unnamed):
                yield f"{name}/{inner}", fields
            continue
        if not isinstance(values, list):
            yield str(name), values
            continue
        for number, entry in enumerate(values, 1):
            yield (f"{name}-{number}" if len(values) > 1 else str(name)), entry


def _is_group(values: Any) -> bool:
    """Whether `values` are subnets by name, and not the fields of one."""
    if not isinstance(values, Mapping):
        return False
    entries = [v[0] if isinstance(v, list) and v else v for v in values.values()]
    return any(isinstance(entry, Mapping) for entry in entries)


def _agree(stated: Any, count: int) -> bool:
    """Whether a file's number, an integer or millions, is this count."""
    if isinstance(stated, bool) or not isinstance(stated, (int, float)):
        raise TypeError(f"num_params must be a number, got {stated!r}")
    return stated == count if isinstance(stated, int) else abs(stated * 1e6 - count) < 0.5
