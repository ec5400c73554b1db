"""Sizes of a recipe that are left to the images: fields that say ``auto``, for an image folder.

The recipe ``folder`` leaves all of `FIELDS` open; any recipe may. What is chosen depends on the
folder, on the fields that are written out and on the number of CPU cores, and on nothing random.
"""

from __future__ import annotations

import json
import math
import os
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from growtas.base.config import ConfigError, apply_override, build, to_plain
from growtas.base.optional import require
from growtas.run.model import ModelConfig, read_space
from growtas.space.cost import format_count
from growtas.supernet.vit.geometry import num_params
from growtas.training.config import AugmentConfig, DataConfig, OptimConfig, TrainConfig

if TYPE_CHECKING:
    from growtas.space import SearchSpace, Subnet

AUTO = "auto"
FIELDS = (
    "data.test_split",
    "data.search_fraction",
    "data.num_classes",
    "data.in_chans",
    "data.image_size",
    "data.batch_size",
    "data.workers",
    "model.patch_size",
    "model.max_relative_position",
    "model.init_std",
    "space",
    "train.epochs",
    "train.threads",
    "optim.warmup_epochs",
    "strategy.stages",
    "search.limits",
)
# Fewer images than this leave a handful for the search and the test: nothing could be told apart.
LEAST_IMAGES = 40
_LOOK_AT = 200  # images whose size is read, evenly spread
_PATCHES = [16, 8, 4, 2]
_LEAST_GRID = 7  # patches per side, where the images have so many pixels
_SIDES = 8, 224
_STEPS = 4000  # optimizer steps in all, enough for the recipe digits
# Patches x channels up to which one thread is chosen; digits and mnist-5k, which set it, have 1,024
# and 1,536. Threads that wait for each other after every small operator cost the most where another
# program has their core, and gain the least where there is little to share.
_ONE_THREAD = 10_000
# Spaces, each with the largest number of training images that it is meant for.
_SPACES = (
    (1_000, {"embed_dim": [32, 48, 64], "num_heads": [2, 3, 4], "head_dim": 16}),
    (20_000, {"embed_dim": [64, 96, 128], "num_heads": [2, 3, 4], "head_dim": 32}),
    (math.inf, {"embed_dim": [96, 128, 192], "num_heads": [3, 4, 6], "head_dim": 32}),
)
_BLOCKS = {"depth": [4, 5, 6], "mlp_ratio": [2, 3, 4]}


@dataclass(frozen=True)
class Images:
    """What is in a folder."""

    place: Path  # folder with a folder for each class
    count: int
    num_classes: int
    side: int  # median of the shorter sides, in pixels
    grey: bool  # no image has colours
    test_split: str | None  # None if the folder has none
    looked_at: int  # images that were opened for `side` and `grey`
    unreadable: int  # those of them that could not be, and do not count there


def look(root: str, train_split: str = "train") -> Images:
    """Lists the images for training below `root` and reads the sizes of some.

    Raises:
        ConfigError: no such folder, no images, images outside class folders, only one class, too
            few images, or none that can be read.
    """
    from growtas.training.sources import find_split

    folder = Path(root)
    if not root or not folder.is_dir():
        raise ConfigError(
            f"data.root is {root!r}, not a folder: name the one with your images, either CLASS/ or "
            "train/CLASS/ and val/CLASS/ in it"
        )
    place = find_split(folder, train_split)
    test_split = next((s for s in ("validation", "test") if find_split(folder, s)), None)
    place, test_split = (place, test_split) if place else (folder, None)
    reader = require("timm.data.readers.reader_image_folder", "train")
    found, classes = reader.find_images_and_targets(str(place))
    if not found:
        raise ConfigError(f"data.root: no images (png, jpg, jpeg) in the folders below {place}")
    if "" in classes:
        raise ConfigError(f"data.root: images lie in {place} itself; put them into class folders")
    if len(classes) < 2:
        only = next(iter(classes))
        raise ConfigError(f"data.root: {place} has only the class {only!r}; two are needed")
    if len(found) < LEAST_IMAGES:
        raise ConfigError(
            f"data.root: {place} has {len(found)} images; at least {LEAST_IMAGES} are needed"
        )
    files = [path for path, _ in found[:: math.ceil(len(found) / _LOOK_AT)]]
    headers = [_header(path) for path in files]
    read = [header for header in headers if not isinstance(header, Exception)]
    if not read:
        raise ConfigError(
            f"data.root: none of {len(files)} images can be read; {files[0]}: {headers[0]}"
        )
    sizes, modes = zip(*read, strict=True)
    side = round(statistics.median(map(min, sizes)))
    grey = set(modes) <= {"1", "L", "LA"}
    lost = len(files) - len(read)
    return Images(place, len(found), len(classes), side, grey, test_split, len(files), lost)


def _header(path: str) -> tuple[tuple[int, int], str] | Exception:
    """Size (width, height) and colour mode of an image, or why it cannot be read."""
    image = require("PIL.Image", "train")
    try:
        with image.open(path) as opened:
            return opened.size, opened.mode
    except MemoryError:
        raise
    except Exception as error:  # decoders raise anything on a damaged file
        return error


def choose(
    values: dict[str, Any], say: Callable[[str], None], kept: Mapping[str, Any] | None = None
) -> None:
    """Replaces every ``auto`` in `FIELDS` by a value, in place.

    Args:
        values: plain values of a recipe.
        say: receives a line for what was found and for what was chosen, with the reason.
        kept: plain values of an earlier run whose choices are taken over as they are; the folder is
            then not looked at.

    Raises:
        ConfigError: the folder is not one to train on, see `look`, or the data set is not a folder.
    """
    sizes = _Sizes(values, say)
    if not any(map(sizes.is_open, FIELDS)):
        return
    if kept is not None:
        for field in filter(sizes.is_open, FIELDS):
            sizes.set(field, _get(kept, field))
        return
    sizes.complete()
    dataset = _get(values, "data.dataset")
    if dataset != "":
        field = next(filter(sizes.is_open, FIELDS))
        raise ConfigError(
            f"{field} is {AUTO}, which needs a folder of images: data.dataset is {dataset!r}"
        )
    sizes.choose(look(_get(values, "data.root"), _get(values, "data.train_split")))


class _Sizes:
    """The choices, each from those before it and from what is written out."""

    def __init__(self, values: dict[str, Any], say: Callable[[str], None]) -> None:
        self.values = values
        self.say = say

    def is_open(self, field: str) -> bool:
        return _get(self.values, field) == AUTO

    def set(self, field: str, value: Any) -> None:
        apply_override(self.values, tuple(field.split(".")), value)

    def complete(self) -> None:
        """Checks what is written out and adds the defaults, in the sections that are read here."""
        for section, cls in (
            ("data", DataConfig),
            ("augment", AugmentConfig),
            ("model", ModelConfig),
            ("optim", OptimConfig),
            ("train", TrainConfig),
        ):
            given = self.values.get(section) or {}
            names = [name for name in given if self.is_open(f"{section}.{name}")]
            rest = {name: value for name, value in given.items() if name not in names}
            whole = to_plain(build(cls, rest, where=section))
            self.values[section] = whole | dict.fromkeys(names, AUTO)

    def fill(self, why: str, **choices: Any) -> None:
        """Sets the fields (with ``__`` for a dot) that are open, and says so."""
        chosen = []
        for name, value in choices.items():
            field = name.replace("__", ".")
            if self.is_open(field):
                self.set(field, value)
                chosen.append(f"{field}={_shown(value)}")
        if chosen:
            self.say(f"  {' '.join(chosen)}: {why}")

    def choose(self, images: Images) -> None:
        self.say(f"{images.count:,} images of {images.num_classes} classes in {images.place}")
        if images.unreadable:
            what = f"{images.unreadable} of {images.looked_at} images cannot be read"
            skipped = self.values["data"]["skip_unreadable"]
            remedy = "" if skipped else "; to evaluate without them: data.skip_unreadable=true"
            self.say(f"{what}: left out of the sizing{remedy}")
        training = self._splits(images)
        self._pixels(images)
        self._length(training)
        self._space(training)
        self._threads()
        self.say("any of these can be set, for example data.image_size=64 train.epochs=20")

    def _splits(self, images: Images) -> int:
        """Returns the number of training images, those that cannot be read among them."""
        from growtas.training.samples import split_indices

        why = f"{images.place.parent} has a split for the test"
        if images.test_split is None:
            share = _get(self.values, "data.test_fraction")
            why = f"no split for the test, so {share:.0%} of the images are kept for it, by hash"
        self.fill(why, data__test_split=images.test_split)
        # A thousand images tell accuracies apart by two or three points; more are not taken away
        # from the training, and never more than a fifth.
        fraction = round(min(0.2, max(0.02, 1000 / images.count)), 3)
        self.fill("of the images are for the search alone", data__search_fraction=fraction)
        colours = 1 if images.grey else 3
        why = f"as the folders say; the images have {'no ' if images.grey else ''}colours"
        self.fill(why, data__num_classes=images.num_classes, data__in_chans=colours)
        data = self.values["data"]
        test_fraction = data["test_fraction"] if data["test_split"] is None else 0.0
        splits = split_indices(
            images.count, data["search_fraction"], test_fraction, data["split_seed"]
        )
        return len(splits["train"])

    def _pixels(self, images: Images) -> None:
        side, patches = _get(self.values, "data.image_size"), _PATCHES
        if side == AUTO:
            side = min(max(images.side, _SIDES[0]), _SIDES[1])
        else:
            patches = [patch for patch in range(patches[0], 0, -1) if side % patch == 0]
        patch = _get(self.values, "model.patch_size")
        if patch == AUTO:
            fitting = (patch for patch in patches if side >= _LEAST_GRID * patch)
            patch = next(fitting, patches[-1])
        size = max(2, round(side / patch)) * patch
        grid = size // patch
        self.fill(
            f"the median of the shorter sides is {images.side} pixels, {grid} x {grid} patches",
            data__image_size=size,
            model__patch_size=patch,
            model__max_relative_position=grid,
        )
        cores = os.cpu_count() or 1
        workers = 0 if size <= 32 else min(4, cores)
        why = f"{cores} CPU cores" if workers else "images this small are read while training"
        self.fill(why, data__workers=workers)

    def _length(self, training: int) -> None:
        batch = 2 ** min(7, max(3, round(math.log2(max(1, training) / 30))))
        # Only without repeated augmentation is an epoch all full batches of the training images.
        exact = self.values["augment"]["repeated_aug"] == 1
        of = f"{training // batch} steps in an epoch of" if exact else "for"
        self.fill(f"{of} {training:,} training images", data__batch_size=batch)
        steps = training // self.values["data"]["batch_size"]
        epochs = min(200, max(20, round(_STEPS / max(1, steps))))
        epochs = epochs if self.is_open("train.epochs") else _get(self.values, "train.epochs")
        warmup = max(1, epochs // 20)
        why = f"{steps * epochs:,} steps" if exact else "the fewer, the more images"
        self.fill(why, train__epochs=epochs, optim__warmup_epochs=warmup)

    def _space(self, training: int) -> None:
        most, sizes = next(entry for entry in _SPACES if training <= entry[0])
        meant = f"for up to {most:,}" if most < math.inf else f"for more than {_SPACES[-2][0]:,}"
        self.fill(f"{meant} training images", space={**sizes, **_BLOCKS})
        space = read_space(self.values["space"])
        widest = space.embed_dim[-1]
        why = f"the more channels, here {widest}, the smaller"
        self.fill(why, model__init_std=round(0.8 / math.sqrt(widest), 3))
        smaller = list(space.embed_dim[:-1])
        stages: list[dict[str, Any]] = [{"start": 0}]
        if smaller:
            stages = [{"start": 0, "restrict": {"embed_dim": smaller}}, {"start": 0.5}]
        self.fill("all but the widest subnets first", strategy__stages=stages)
        if self.is_open("search.limits"):
            low, high = self._params(space, space.smallest()), self._params(space, space.largest())
            steps = [low * (high / low) ** (third / 3) for third in (1, 2, 3)]
            # Names that need no quotes in a shell, unlike "<=90K", which they would have otherwise.
            limits = [{"name": most, "max_params": most} for most in map(_round_up, steps)]
            why = f"subnets have {_round_up(low)} to {_round_up(high)} parameters"
            self.fill(why, search__limits=limits)

    def _threads(self) -> None:
        data, model = self.values["data"], self.values["model"]
        grid = data["image_size"] // model["patch_size"]
        widest = read_space(self.values["space"]).embed_dim[-1]
        what = f"{grid} x {grid} patches of {widest} channels"
        if grid * grid * widest <= _ONE_THREAD:
            why = f"{what} gain little from a second one, and lose much on a busy computer"
            self.fill(why, train__threads=1)
        else:
            self.fill(f"{what} are enough work for as many as torch chooses", train__threads=None)

    def _params(self, space: SearchSpace, subnet: Subnet) -> int:
        data = self.values["data"]
        images = {name: data[name] for name in ("num_classes", "image_size", "in_chans")}
        return num_params(space, subnet, **images, **self.values["model"])


def _get(values: Mapping[str, Any], field: str) -> Any:
    """The value of a dotted field; None where a section or the field is missing."""
    here: Any = values
    for key in field.split("."):
        here = here.get(key) if isinstance(here, Mapping) else None
    return here


def _shown(value: Any) -> str:
    """As it can be given on a command line."""
    if isinstance(value, (dict, list)):
        return f"'{json.dumps(value).replace(chr(34), '')}'"
    return "null" if value is None else str(value)


def _round_up(count: float) -> str:
    """Two significant digits and a unit."""
    unit = 10 ** max(0, math.floor(math.log10(count)) - 1)
    return format_count(math.ceil(count / unit) * unit)
