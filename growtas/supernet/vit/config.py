"""What a Vision Transformer has beside the sizes of its subnets: names, defaults and limits of the
options that its supernet, its stand-alone form and its costs share. Pure Python."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

from growtas.base.checks import positive_int

POOL = ("mean", "cls")
QKV_BIAS = ("blocks", "autoformer")
INIT_STD = 0.02  # of AutoFormer's truncated normals (and of most ViTs)


class ModelOptions(TypedDict, total=False):
    """Options of every form of the model, described at :class:`growtas.Supernet`."""

    pool: str
    class_token: bool
    absolute_position: bool
    relative_position: bool
    max_relative_position: int
    layer_norm_eps: float


class StandaloneOptions(ModelOptions, total=False):
    """Options of :class:`growtas.VisionTransformer`."""

    in_chans: int


class SupernetOptions(ModelOptions, total=False):
    """Options of :class:`growtas.Supernet`."""

    drop_path: float
    qkv_bias: str
    init_std: float


class CostOptions(SupernetOptions, total=False):
    """All arguments of :class:`growtas.Supernet` but the space."""

    image_size: int | Sequence[int]
    patch_size: int
    num_classes: int
    in_chans: int


@dataclass(frozen=True)
class ModelConfig:
    """The options with their defaults, checked.

    Raises:
        TypeError: a size is not an integer.
        ValueError: a value outside its range, or a class token that is read but not there.
    """

    image_size: int | Sequence[int] = 224  # height and width once it is constructed
    patch_size: int = 16
    num_classes: int = 1000
    in_chans: int = 3
    pool: str = "mean"
    class_token: bool = True
    absolute_position: bool = True
    relative_position: bool = True
    max_relative_position: int = 14
    layer_norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        patch_size = positive_int("patch_size", self.patch_size)
        positive_int("in_chans", self.in_chans)
        given = self.image_size
        sides = (given, given) if isinstance(given, int) else tuple(given)
        if len(sides) != 2:
            raise ValueError(f"image_size is {list(sides)}; a side is needed, or height and width")
        if any(positive_int("image_size", side) % patch_size for side in sides):
            raise ValueError(
                f"image_size {sides[0]} x {sides[1]} is not a multiple of patch_size {patch_size}"
            )
        object.__setattr__(self, "image_size", sides)
        if self.num_classes != 0:  # without a classifier
            positive_int("num_classes", self.num_classes)
        reach, eps = self.max_relative_position, self.layer_norm_eps
        if reach < 0:
            raise ValueError(f"max_relative_position is {reach}, minimum 0")
        if not 0.0 <= eps < math.inf:
            raise ValueError(f"layer_norm_eps is {eps}, it must be 0 or more")
        check_pool(self.pool, self.class_token)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        height, width = self.image_size  # type: ignore[misc]
        return height // self.patch_size, width // self.patch_size

    @property
    def reach(self) -> int | None:
        """Of relative position, in patches; None without."""
        return self.max_relative_position if self.relative_position else None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {**vars(self), "image_size": list(self.image_size)}  # type: ignore[arg-type]


@dataclass(frozen=True)
class SupernetConfig(ModelConfig):
    """Those of a supernet, which has a classifier."""

    drop_path: float = 0.0
    qkv_bias: str = "blocks"
    init_std: float = INIT_STD

    def __post_init__(self) -> None:
        super().__post_init__()
        positive_int("num_classes", self.num_classes)
        if not 0.0 <= self.drop_path < 1.0:
            raise ValueError(f"drop_path is {self.drop_path}, it must be in [0, 1)")
        if not 0.0 < self.init_std <= 1.0:
            raise ValueError(f"init_std is {self.init_std}, it must be in (0, 1]")
        check_qkv_bias(self.qkv_bias)


def check_pool(pool: str, class_token: bool) -> None:
    """Raise ValueError unless `pool` is known and what it reads is there."""
    if pool not in POOL:
        raise ValueError(f"pool is {pool!r}, allowed: {', '.join(POOL)}")
    if pool == "cls" and not class_token:
        raise ValueError("pool 'cls' needs class_token=True")


def check_qkv_bias(qkv_bias: str) -> None:
    """Raise ValueError unless it is a known reading of the bias."""
    if qkv_bias not in QKV_BIAS:
        raise ValueError(f"qkv_bias is {qkv_bias!r}, allowed: {', '.join(QKV_BIAS)}")
