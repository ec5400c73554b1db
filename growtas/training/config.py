"""Settings of a training run: the sections `data`, `augment`, `optim` and `train` of a recipe.

Plain values, checked on construction: ValueError (or TypeError) names the field, the value and
what is allowed. The defaults are AutoFormer's ImageNet recipe.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from growtas.base.checks import check, check_choice, check_integer, check_number
from growtas.training.builtin import BUILT_IN

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# timm names of data sets that can only be read front to back: no split by sample index.
STREAMING_PREFIXES = ("hfids/", "tfds/", "wds/")
# Name of a data set that is given in Python, see `growtas.training.build_data`.
OWN = "own"

# timm's policies. It ignores a section without a number and takes any name after `t`.
_POLICY = re.compile(
    r"rand(-(m\d+|n\d+|p{0}|mstd{0}|mmax\d+|inc[01]|t(weights|3aw?)))*"
    r"|augmix(-(m\d+|w\d+|d\d+|a{0}|b[01]|mstd{0}))*"
    r"|(v0r?|originalr?|3a)(-mstd{0})*".replace("{0}", r"\d+(\.\d+)?")
)
_POLICIES = (
    "null, 'rand', 'augmix', 'v0', 'v0r', 'original', 'originalr' or '3a', and options with their "
    "number after dashes, as in 'rand-m9-mstd0.5-inc1'"
)

# torch's generators take seeds of 64 bits; the epoch and the step need some of them.
_LARGEST_SEED = 2**32 - 1


def _pair(field: str, value: Any, low: float, high: float = math.inf) -> tuple[float, float]:
    if isinstance(value, str) or not isinstance(value, Sequence) or len(value) != 2:
        raise TypeError(f"{field} is {value!r}; two numbers are needed")
    for number in value:
        check_number(field, number, low, high)
    return float(value[0]), float(value[1])


@dataclass(frozen=True)
class DataConfig:
    """Which images are read and how they are split.

    None stands for the data set's own value, see `resolved`.
    """

    # "digits", "mnist-5k" (see `builtin`), "" (image folder or tar), "torch/<name>", "hfds/<name>";
    # "own": given in Python
    dataset: str = "digits"
    root: str = ""  # folder or archive of the data set
    train_split: str = "train"  # the split that training and search images come from
    test_split: str | None = "validation"  # the split of the final test; None: cut out of training
    download: bool = False  # let torchvision download the data set
    image_key: str | None = None  # column of the images (hfds only); None: "image"
    label_key: str | None = None  # column of the labels (hfds only); None: "label"
    num_classes: int | None = None  # None: counted from the data set
    image_size: int | None = None  # side of the square input in pixels; None: the set's, else 224
    in_chans: int | None = None  # image channels, 1 or 3; None: 1 for digits and mnist-5k, else 3
    # Per channel, images in [0, 1]; None: of digits or mnist-5k, ImageNet's for others.
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    interpolation: str = "bicubic"  # "bicubic", "bilinear" or (while training) "random"
    crop_pct: float | None = None  # centre crop of evaluation; None: digits, mnist-5k 1, else 0.875
    batch_size: int = 128  # images per optimizer step, over all processes together
    eval_batch_size: int = 256  # images per evaluation batch and process
    workers: int = 4  # loader processes per training process; 0: it loads by itself
    search_fraction: float = 0.08  # share of the training split set aside for the search
    test_fraction: float = 0.2  # share set aside for the test if there is no test split
    split_seed: int = 0  # another value gives another split by sample index
    # Evaluate without the images that cannot be read, and say how many; false: an error names them.
    skip_unreadable: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.dataset, str):
            raise TypeError(f"data.dataset is {self.dataset!r}; a name is needed")
        if self.dataset.lower().startswith(STREAMING_PREFIXES):
            raise ValueError(
                f"data.dataset is {self.dataset!r}, which can only be read front to back; the "
                "search split is taken out by sample index, so use an image folder, a tar file, "
                "'torch/<name>' or 'hfds/<name>'"
            )
        for field, low in (("num_classes", 2), ("image_size", 1), ("in_chans", 1)):
            if getattr(self, field) is not None:
                check_integer(f"data.{field}", getattr(self, field), low)
        check(self.in_chans in (None, 1, 3), "data.in_chans", self.in_chans, "1 (grey), 3 (RGB)")
        for field in ("mean", "std"):
            value = getattr(self, field)
            if value is not None:
                for number in value:
                    check_number(f"data.{field}", number, 0.0, open_low=field == "std")
                object.__setattr__(self, field, tuple(float(number) for number in value))
        check_choice("data.interpolation", self.interpolation, ("bicubic", "bilinear", "random"))
        if self.crop_pct is not None:
            check_number("data.crop_pct", self.crop_pct, 0.0, 1.0, open_low=True)
        for field, low in (("batch_size", 1), ("eval_batch_size", 1), ("workers", 0)):
            check_integer(f"data.{field}", getattr(self, field), low)
        check_integer("data.split_seed", self.split_seed, 0)
        check_number("data.search_fraction", self.search_fraction, 0.0, 0.9, open_low=True)
        check_number("data.test_fraction", self.test_fraction, 0.0, 0.9)
        if self.test_split == self.train_split and not self.cuts_test:
            raise ValueError(
                f"data.test_split is {self.test_split!r}, the training split; allowed: another "
                "split, or null to cut one out of it"
            )
        if self.cuts_test:
            ok = self.test_fraction > 0 and self.search_fraction + self.test_fraction < 1
            allowed = "above 0, and below 1 together with data.search_fraction: no test split given"
            check(ok, "data.test_fraction", self.test_fraction, allowed)

    @property
    def cuts_test(self) -> bool:
        """Whether the test split is cut out of the training split by hash."""
        return self.dataset in BUILT_IN or self.test_split is None

    def resolved(self) -> DataConfig:
        """The same settings with the data set's own values for None (num_classes excepted).

        Raises:
            ValueError: `root` is missing, which a recipe leaves to its user, or `mean` or `std`
                does not fit the channels.
        """
        rootless = self.dataset in (*BUILT_IN, OWN) or self.dataset.lower().startswith("hfds/")
        place = f"the folder (or tar file) of data set {self.dataset!r}"
        check(rootless or bool(self.root), "data.root", self.root, place)
        built_in = BUILT_IN.get(self.dataset)
        in_chans = self.in_chans or (1 if built_in else 3)
        if built_in:
            mean, std = (built_in.mean,) * in_chans, (built_in.std,) * in_chans
        elif in_chans == 3:
            mean, std = IMAGENET_MEAN, IMAGENET_STD
        else:
            mean, std = (0.5,), (0.5,)
        config = replace(
            self,
            image_size=self.image_size or (built_in.image_size if built_in else 224),
            in_chans=in_chans,
            mean=self.mean if self.mean is not None else mean,
            std=self.std if self.std is not None else std,
            crop_pct=self.crop_pct or (1.0 if built_in else 0.875),
        )
        for field in ("mean", "std"):
            value = getattr(config, field)
            allowed = f"{in_chans} numbers, one per channel"
            check(len(value) == in_chans, f"data.{field}", value, allowed)
        return config


@dataclass(frozen=True)
class AugmentConfig:
    """What training does to its images and labels; carried out by timm."""

    auto_augment: str | None = "rand-m9-mstd0.5-inc1"  # timm policy string; None: off
    color_jitter: float = 0.4  # strength; without effect while auto_augment is on
    hflip: float = 0.5  # probability of a horizontal flip
    scale: tuple[float, float] = (0.08, 1.0)  # area of the random crop
    ratio: tuple[float, float] = (3 / 4, 4 / 3)  # aspect ratio of the random crop
    reprob: float = 0.25  # probability of random erasing
    remode: str = "pixel"  # fill of an erased box: noise per "pixel", one "rand" colour, "const" 0
    recount: int = 1  # largest number of erased boxes
    mixup: float = 0.8  # mixup alpha; 0: off
    cutmix: float = 1.0  # cutmix alpha; 0: off
    mixup_prob: float = 1.0  # probability that a batch (pair, image) is mixed at all
    mixup_switch_prob: float = 0.5  # probability of cutmix where both are on
    mixup_mode: str = "batch"  # one mixing ratio per "batch", "pair" or "elem"
    smoothing: float = 0.1  # label smoothing
    repeated_aug: int = 3  # differently augmented copies of an image per epoch; 1: off

    def __post_init__(self) -> None:
        policy = self.auto_augment
        if policy is not None and not isinstance(policy, str):
            raise TypeError(f"augment.auto_augment is {policy!r}; a timm policy or None is needed")
        ok = policy is None or _POLICY.fullmatch(policy)
        check(bool(ok), "augment.auto_augment", policy, _POLICIES)
        for field in ("hflip", "reprob", "mixup_prob", "mixup_switch_prob"):
            check_number(f"augment.{field}", getattr(self, field), 0.0, 1.0)
        for field in ("color_jitter", "mixup", "cutmix"):
            check_number(f"augment.{field}", getattr(self, field), 0.0)
        for field, high in (("scale", 1.0), ("ratio", math.inf)):
            value = _pair(f"augment.{field}", getattr(self, field), 1e-6, high)
            check(value[0] <= value[1], f"augment.{field}", value, "ascending numbers")
            object.__setattr__(self, field, value)
        check_choice("augment.remode", self.remode, ("pixel", "rand", "const"))
        check_integer("augment.recount", self.recount, 1)
        check_choice("augment.mixup_mode", self.mixup_mode, ("batch", "pair", "elem"))
        check_number("augment.smoothing", self.smoothing, 0.0)
        check(self.smoothing < 1, "augment.smoothing", self.smoothing, "below 1")
        check_integer("augment.repeated_aug", self.repeated_aug, 1)

    @property
    def mixes(self) -> bool:
        """Whether mixup or cutmix is on."""
        return self.mixup_prob > 0 and (self.mixup > 0 or self.cutmix > 0)

    @classmethod
    def off(cls) -> AugmentConfig:
        """No augmentation: training sees the images as evaluation does, with hard labels."""
        return cls(
            auto_augment=None,
            color_jitter=0.0,
            hflip=0.0,
            scale=(1.0, 1.0),
            ratio=(1.0, 1.0),
            reprob=0.0,
            mixup=0.0,
            cutmix=0.0,
            mixup_prob=0.0,
            smoothing=0.0,
            repeated_aug=1,
        )

    @classmethod
    def digits(cls) -> AugmentConfig:
        """What small handwritten digits can take: a gentle crop and label smoothing."""
        return replace(cls.off(), scale=(0.7, 1.0), ratio=(0.85, 1.18), smoothing=0.1)


@dataclass(frozen=True)
class OptimConfig:
    """AdamW and its cosine schedule with linear warm-up."""

    lr: float = 5e-4  # peak learning rate at a batch of lr_base_batch images
    lr_base_batch: int = 512  # lr is scaled by batch_size / lr_base_batch; 0: lr is used as it is
    min_lr: float = 1e-5  # learning rate at the end of the cosine; not scaled
    warmup_lr: float = 1e-6  # learning rate at the start of the warm-up; not scaled
    warmup_epochs: float = 20.0  # length of the linear warm-up
    # "cosine", or "autoformer": the same one epoch late, as in AutoFormer's loop, where every epoch
    # but the first has the rate meant for the one before.
    schedule: str = "cosine"
    sched_on_updates: bool = False  # change the rate at every step instead of once per epoch
    weight_decay: float = 0.05  # not applied to 1-D parameters, class token, position embedding
    betas: tuple[float, float] = (0.9, 0.999)  # decay of the first and of the second moment
    eps: float = 1e-8  # added to the root of the second moment
    clip_grad: float | None = None  # largest norm of the whole gradient; None: no clipping
    # Weights that a step did not sample: "dense" (they decay and coast), "masked" (untouched) or
    # "skip" (as "dense", but untouched where nothing of the whole parameter was sampled).
    inactive: str = "dense"

    def __post_init__(self) -> None:
        check_number("optim.lr", self.lr, 0.0, open_low=True)
        check_integer("optim.lr_base_batch", self.lr_base_batch, 0)
        for field in ("min_lr", "warmup_lr", "warmup_epochs", "weight_decay"):
            check_number(f"optim.{field}", getattr(self, field), 0.0)
        object.__setattr__(self, "betas", _pair("optim.betas", self.betas, 0.0))
        check(max(self.betas) < 1, "optim.betas", self.betas, "two numbers below 1")
        check_number("optim.eps", self.eps, 0.0, open_low=True)
        if self.clip_grad is not None:
            check_number("optim.clip_grad", self.clip_grad, 0.0, open_low=True)
        check_choice("optim.schedule", self.schedule, ("cosine", "autoformer"))
        if self.schedule == "autoformer":
            once = "False, as schedule 'autoformer' keeps the rate within an epoch"
            check(not self.sched_on_updates, "optim.sched_on_updates", True, once)
        check_choice("optim.inactive", self.inactive, ("dense", "masked", "skip"))

    def peak_lr(self, batch_size: int) -> float:
        """Peak learning rate for `batch_size` images per step over all processes."""
        return self.lr * batch_size / self.lr_base_batch if self.lr_base_batch else self.lr


@dataclass(frozen=True)
class TrainConfig:
    """The loop. Drop path is a property of the model: `Supernet(..., drop_path=...)`."""

    epochs: int = 500  # without the epochs that a phase brings itself (GrowTAS+)
    seed: int = 0  # of subnet sampling, image order and augmentation
    amp: str = "auto"  # "bf16", "fp16", "off", or "auto": bf16 (else fp16) on GPU, off on CPU
    ema_decay: float = 0.0  # decay of the averaged weights, which are then the result; 0: off
    ema_warmup: bool = True  # let the average follow quickly at first
    accumulate: int = 1  # pieces a process cuts its share of a batch into (saves memory)
    compile: bool = False  # torch.compile every block
    # A step in one CUDA graph for every subnet: "auto" (on Triton's kernels, without compile and
    # accumulate), "on" (on a CPU the same functions run without a graph) or "off".
    graph: str = "auto"
    eval_every: int = 1  # epochs between evaluations on the search split
    checkpoint_every: int = 1  # epochs between checkpoints
    log_every: int = 50  # steps between readings of the loss (reading waits for the GPU)
    device: str = "auto"  # "auto", "cpu", "cuda" or "cuda:<index>"
    threads: int | None = None  # CPU threads of each process, for scoring too; None: torch's choice
    tensorboard: bool = False  # also write TensorBoard event files
    progress: bool = True  # show a progress bar, or lines where there is no terminal

    def __post_init__(self) -> None:
        for field in ("epochs", "accumulate", "eval_every", "checkpoint_every", "log_every"):
            check_integer(f"train.{field}", getattr(self, field), 1)
        check_integer("train.seed", self.seed, 0, _LARGEST_SEED)
        if self.threads is not None:
            check_integer("train.threads", self.threads, 1)
        check_choice("train.amp", self.amp, ("auto", "bf16", "fp16", "off"))
        check_choice("train.graph", self.graph, ("auto", "on", "off"))
        check_number("train.ema_decay", self.ema_decay, 0.0)
        check(self.ema_decay < 1, "train.ema_decay", self.ema_decay, "0 (off) to below 1")
        if not isinstance(self.device, str):
            raise TypeError(f"train.device is {self.device!r}; a name is needed")
        kind, colon, index = self.device.partition(":")
        ok = kind == "cuda" and index.isdigit() if colon else kind in ("auto", "cpu", "cuda")
        check(ok, "train.device", self.device, "'auto', 'cpu', 'cuda', 'cuda:<index>'")


def check_pieces(data: DataConfig, train: TrainConfig, processes: int = 1) -> None:
    """Refuse more pieces than a process has images to cut into them.

    Raises:
        ValueError: `train.accumulate` is above a process's share of `data.batch_size`.
    """
    share = data.batch_size // processes
    allowed = f"at most {share}, the images of data.batch_size that a process has"
    check(train.accumulate <= share, "train.accumulate", train.accumulate, allowed)
