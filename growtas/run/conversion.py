"""AutoFormer's checkpoint files to growtas's and back: what ``growtas convert`` does."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from growtas.base.config import ConfigError
from growtas.run.files import SUPERNET
from growtas.run.folder import Run, Say
from growtas.run.model import ModelConfig
from growtas.run.recipe import Recipe
from growtas.space import SearchSpace

if TYPE_CHECKING:
    from growtas.supernet import Supernet

_READINGS = {
    "autoformer": "AutoFormer's, a flat prefix (files of PreNAS need --qkv-bias blocks)",
    "blocks": "PreNAS's, interleaved like the weights (files of AutoFormer need autoformer)",
}


def convert(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    space: SearchSpace | None = None,
    overwrite: bool = False,
    say: Say = print,
    verify: bool = True,
    **options: Any,
) -> None:
    """A supernet file becomes an AutoFormer checkpoint, anything else is read as one and becomes a
    supernet file. Which it is, the content says, not the name.

    Args:
        source: the file to read; of a run folder, its supernet.
        target: the file to write.
        space: for the supernet; see `growtas.load_autoformer`.
        overwrite: replace a file that is there.
        say: receives the lines of the summary.
        verify: compare what is read with its checksums.
        options: further arguments of `growtas.load_autoformer`.

    Raises:
        ConfigError: `target` is a folder or exists, or `space` or `options` come with a supernet
            file, which knows them.
        ValueError: what `source` holds cannot be converted.
    """
    from growtas.compat.autoformer_files import load_autoformer, save_autoformer
    from growtas.supernet import load_supernet, save_supernet

    source, target = Path(source), Path(target)
    source = source / SUPERNET if source.is_dir() else source
    if target.is_dir():
        raise ConfigError(f"{target} is a folder: name a file in it, or add --recipe for a run")
    if target.exists() and not overwrite:
        raise ConfigError(f"{target} exists: add --overwrite, or name another file")
    if _is_safetensors(source):
        given = {**({"space": space} if space else {}), **options}
        if given:
            raise ConfigError(
                f"{source} is a supernet of growtas and says its {' and '.join(given)} itself"
            )
        model = load_supernet(source, verify=verify)
        save_autoformer(model, target)
        say(f"{target}: AutoFormer checkpoint")
    else:
        model = load_autoformer(source, space, verify=verify, **options)
        save_supernet(model, target)
        say(f"{target}: supernet of growtas")
    _describe(model, say)


def adopt(
    checkpoint: str | os.PathLike[str],
    recipe: Recipe,
    *,
    overwrite: bool = False,
    say: Say = print,
    verify: bool = True,
    **options: Any,
) -> Run:
    """A run folder, as if trained, for an AutoFormer checkpoint: it can be searched, evaluated and
    extracted from.

    The recipe gives the space, the data and the search; what the checkpoint knows better goes into
    the recipe's section ``model``.

    Args:
        checkpoint: the file to read.
        recipe: its ``output.dir`` becomes the run folder.
        overwrite: replace a run that is there.
        say, verify, options: as for `convert`.

    Raises:
        ConfigError: there is a run and `overwrite` is not given, or the data have another number of
            classes or other images than the checkpoint.
        ValueError: not a checkpoint of AutoFormer's, or of other sizes than the recipe's space.
    """
    from growtas.compat.autoformer_files import load_autoformer
    from growtas.supernet import save_supernet

    settings = {"pool": recipe.model.pool, "drop_path": recipe.model.drop_path, **options}
    model = load_autoformer(checkpoint, recipe.build_space(), verify=verify, **settings)
    known: Mapping[str, Any] = {f.name: model.config[f.name] for f in fields(ModelConfig)}
    recipe = replace(recipe, model=ModelConfig(**known))
    _check_data(model, recipe)
    run = Run.start(recipe, overwrite=overwrite, say=say, verify=verify)
    if run.process.is_main:
        save_supernet(model, run.folder / SUPERNET)
    run.process.barrier()
    run.say(f"{run.folder}: run folder with the supernet of {checkpoint}")
    _describe(model, run.say)
    return run


def _check_data(model: Supernet, recipe: Recipe) -> None:
    """Refuse data that the model cannot be evaluated on, and say what would make them fit; reads no
    image."""
    from growtas.training.data import build_data

    data = build_data(recipe.data, recipe.augment)
    height, width = model.image_size
    ours = {**model.config, "image_size": height if height == width else (height, width)}
    names = {"num_classes": "classes", "in_chans": "image channels", "image_size": "pixels"}
    fitting: dict[str, Any] = {f: ours[f] for f in names if ours[f] != getattr(data, f)}
    if not fitting:
        return
    misfits = [
        f"{names[f]}: the data have {getattr(data, f)}, the checkpoint was made for {value}"
        for f, value in fitting.items()
    ]
    counted = data.num_classes if recipe.data.num_classes is None else 0
    try:
        if fitting.get("num_classes", counted) < counted:
            raise ValueError(f"the data set has {counted} classes")
        build_data(replace(recipe.data, **fitting), recipe.augment)
        remedy = "add " + " ".join(f"data.{field}={value}" for field, value in fitting.items())
    except (TypeError, ValueError) as error:
        remedy = f"no setting helps ({error})"
    raise ConfigError(f"{'; '.join(misfits)}: {remedy}")


def _is_safetensors(path: Path) -> bool:
    """Whether a file begins like safetensors: eight bytes of length, then JSON."""
    with open(path, "rb") as file:
        return file.read(9)[8:] == b"{"


def _describe(model: Supernet, say: Say) -> None:
    size, space, config = model.space.supernet, model.space, model.config
    height, width = model.image_size
    count = sum(value.numel() for value in model.parameters())
    say(
        f"supernet  embedding {size.embed_dim}, {size.depth} blocks, {size.num_heads} heads of "
        f"{space.head_dim}, MLP {size.hidden_dim}; {count:,} parameters"
    )
    say(
        f"images    {config['in_chans']} x {height} x {width}, patches of {config['patch_size']}, "
        f"{config['num_classes']} classes"
    )
    say(f"space     {space.name}, subnets: {space.size:,}")
    say(f"qkv bias  {_READINGS[config['qkv_bias']]}")
