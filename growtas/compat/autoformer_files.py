"""AutoFormer's checkpoints: loaded into a supernet and written back, bit for bit.

PreNAS's files have the same keys.
"""

from __future__ import annotations

import argparse
import functools
import math
import os
from collections.abc import Mapping
from typing import Any, TypedDict, Unpack

import torch
from torch import Tensor

from growtas.base import torch_files
from growtas.compat.autoformer_layout import (
    HEAD_DIM,
    Layout,
    from_autoformer,
    shortened,
    to_autoformer,
)
from growtas.space import SearchSpace, SupernetSize
from growtas.supernet.vit.model import Supernet

_EPS = 1e-5  # of its layer norms


class UntoldOptions(TypedDict, total=False):
    """Options of :class:`growtas.Supernet` that tensors do not tell."""

    pool: str
    drop_path: float
    layer_norm_eps: float


def load_autoformer(
    source: str | os.PathLike[str] | Mapping[str, Any],
    space: SearchSpace | None = None,
    *,
    qkv_bias: str = "autoformer",
    image_size: int | tuple[int, int] | None = None,
    head_dim: int | None = None,
    verify: bool = True,
    **options: Unpack[UntoldOptions],
) -> Supernet:
    """A checkpoint of AutoFormer's or PreNAS's supernet as a :class:`growtas.Supernet`.

    Sizes, classes, patches and positions come from the tensors; what tensors do not show is an
    argument with AutoFormer's published value as default. Files are read without running code in
    them: beside tensors and plain values only the ``argparse.Namespace`` of AutoFormer's training
    files is accepted. The tensors are copied and keep their dtype; no random number is drawn.

    Args:
        source: a file, or a dict, with the state_dict itself or under ``model``; a leading
            ``module.`` (DistributedDataParallel) is stripped from keys.
        space: whose supernet has exactly the tensors' sizes; None for a space that holds the
            largest subnet only. Either way the model runs any subnet that fits its tensors.
        qkv_bias: ``"autoformer"`` as AutoFormer trains it, ``"blocks"`` for PreNAS's files. A file
            does not say which; the wrong one gives wrong logits.
        image_size: pixels, a side or ``(height, width)``; None for the square that the position
            embedding belongs to.
        head_dim: None for the width of the relative position tables, or 64 without them.
        verify: compare the file's records with their checksums.
        options: ``pool``, ``"mean"`` (AutoFormer's ``--gp``, in all its published commands) or
            ``"cls"``; ``drop_path`` for further training, 0 by default (AutoFormer trains with
            0.1); ``layer_norm_eps``, AutoFormer's 1e-5.

    Returns:
        The supernet on the CPU, in evaluation mode.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a checkpoint of AutoFormer's (one message lists all missing and unexpected
            keys and wrong shapes), an image size that is not known or does not fit, or a space of
            other sizes (the message names both).
    """
    if isinstance(source, Mapping):
        label, content = "the state_dict", source
    else:
        label = repr(os.fspath(source))
        content = torch_files.load(source, verify=verify, allowed=(argparse.Namespace,))
    state = _state(content, label)
    layout = Layout.infer(state, label, head_dim)
    layout.check(state, label)

    size, head_dim = layout.size, layout.head_dim
    if space is None:
        space = SearchSpace(
            (size.embed_dim,), (size.depth,), (size.num_heads,), (size.mlp_ratio,), head_dim,
            name="autoformer",
        )  # fmt: skip
    _check_space(space, size, head_dim, label)
    # Shapes only: the tensors replace the parameters. Even so initialising may draw numbers, once
    # torch.compile has been used in the process.
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        model = Supernet(
            space,
            _image_size(image_size, layout, label),
            **layout.options,
            qkv_bias=qkv_bias,
            **options,
        )
    dtype = functools.reduce(torch.promote_types, {value.dtype for value in state.values()})
    ours = from_autoformer(state, num_heads=size.num_heads, head_dim=head_dim, qkv_bias=qkv_bias)
    copies = {
        name: torch.empty(value.shape, dtype=dtype).copy_(value.detach())
        for name, value in ours.items()
    }
    model.load_state_dict(copies, strict=True, assign=True)
    return model.eval()


def save_autoformer(model: Supernet, path: str | os.PathLike[str]) -> None:
    """Write a supernet as AutoFormer's ``{"model": state_dict}``, atomically.

    Keys, order and shapes are the original's. What :func:`load_autoformer` read comes back bit for
    bit, and the same model always gives the same bytes. A bias of ``qkv_bias="blocks"`` is written
    the way PreNAS reads it; AutoFormer's own code would take the same file for something else,
    because its bias is not interleaved.

    Raises:
        ValueError: the model has something AutoFormer's model cannot have (the message lists all):
            no class token, a head dim other than 64, heads that do not fill the embedding dim,
            another layer norm eps, or relative position on a grid that is not square.
    """
    config, size, head_dim = model.config, model.space.supernet, model.space.head_dim
    reasons = []
    if not config["class_token"]:
        reasons.append("it has no class token")
    if head_dim != HEAD_DIM:
        reasons.append(f"its head dim is {head_dim}, AutoFormer's {HEAD_DIM}")
    if size.num_heads * head_dim != size.embed_dim:
        reasons.append(
            f"its {size.num_heads} heads of {head_dim} are not its embedding dim {size.embed_dim}"
        )
    if config["layer_norm_eps"] != _EPS:
        reasons.append(f"its layer_norm_eps is {config['layer_norm_eps']}, AutoFormer's {_EPS}")
    if config["relative_position"] and model.grid[0] != model.grid[1]:
        reasons.append(f"it has relative position on a {model.grid[0]} x {model.grid[1]} grid")
    if reasons:
        raise ValueError(f"the model has no AutoFormer form: {'; '.join(reasons)}")
    state = model.state_dict()
    theirs = to_autoformer(
        {name: state[name].cpu() for name in model.boxes(size.largest())},  # in AutoFormer's order
        patch_size=config["patch_size"],
        in_chans=config["in_chans"],
    )
    torch_files.save({"model": theirs}, path)


def _state(content: Any, label: str) -> dict[str, Tensor]:
    """The state_dict in a checkpoint, its keys without ``module.``."""
    if isinstance(content, Mapping) and isinstance(content.get("model"), Mapping):
        content = content["model"]
    if not isinstance(content, Mapping):
        raise ValueError(f"{label} holds a {type(content).__name__}, expected a state_dict")
    other = [
        key
        for key, value in content.items()
        if not (isinstance(key, str) and isinstance(value, Tensor))
    ]
    if other or not content:
        what = f"no tensor at {shortened(other)}" if other else "nothing"
        raise ValueError(f"{label} is not a state_dict, nor holds one under 'model': it has {what}")
    wrapped = all(key.startswith("module.") for key in content)
    return {key.removeprefix("module.") if wrapped else key: v for key, v in content.items()}


def _check_space(space: SearchSpace, size: SupernetSize, head_dim: int, label: str) -> None:
    if not isinstance(space, SearchSpace):
        raise TypeError(f"space must be a SearchSpace or None, got {space!r}")
    ours, theirs = _sizes(space.supernet, space.head_dim), _sizes(size, head_dim)
    if ours != theirs:
        raise ValueError(f"space {space.name!r} is of a supernet of {ours}; {label} has {theirs}")


def _sizes(size: SupernetSize, head_dim: int) -> str:
    return (
        f"embed_dim {size.embed_dim}, num_heads {size.num_heads}, hidden width {size.hidden_dim}, "
        f"depth {size.depth}, head_dim {head_dim}"
    )


def _image_size(given: int | tuple[int, int] | None, layout: Layout, label: str) -> tuple[int, int]:
    """Height and width in pixels, checked against the number of positions."""
    patch = layout.options["patch_size"]
    patches = None if layout.positions is None else layout.positions - 1
    if given is None:
        if patches is None:
            raise ValueError(f"{label} has no pos_embed to tell the image size: give image_size")
        side = math.isqrt(patches)
        if side < 1 or side**2 != patches:
            raise ValueError(
                f"{label} has positions for {patches} patches, which is no square: give image_size "
                "as (height, width)"
            )
        return side * patch, side * patch
    height, width = (given, given) if isinstance(given, int) else given
    count = (height // patch) * (width // patch)
    if patches not in (None, count):
        raise ValueError(
            f"image_size {height} x {width} has {count} patches of {patch} pixels, {label} has "
            f"positions for {patches}"
        )
    return height, width
