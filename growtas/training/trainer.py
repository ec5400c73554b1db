"""The training loop: executes a strategy's plans on a supernet, whatever the strategy is."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from growtas.base import distributed, stopping
from growtas.base.config import differences, to_plain
from growtas.base.progress import Progress
from growtas.schedule import Phase, StepContext, Strategy, total_epochs
from growtas.supernet import Supernet, save_supernet
from growtas.training.batches import left_out, naming_dead_workers, seed_all
from growtas.training.checkpoint import load_checkpoint, save_checkpoint
from growtas.training.config import OptimConfig, TrainConfig, check_pieces
from growtas.training.data import DataBundle
from growtas.training.epoch import EpochFigures
from growtas.training.evaluation import evaluate
from growtas.training.finite import FiniteLosses, NonFiniteLossError, all_finite
from growtas.training.growth import initialise_new_weights
from growtas.training.identity import lasting
from growtas.training.learning_rate import LearningRate, has_own_rate, segment_of
from growtas.training.metrics import MetricsLog, board_writer
from growtas.training.optimizer import build_optimizer, trained_boxes
from growtas.training.samples import some_names
from growtas.training.step import StepLosses, TrainStep

CHECKPOINT = "checkpoint.pt"
WEIGHTS = "supernet.safetensors"


@dataclass(frozen=True)
class TrainResult:
    """What a finished run leaves.

    Attributes:
        epochs: epochs trained in all, those before a resume included.
        steps: optimizer steps, likewise.
        seconds: wall time of this call.
        metrics: the last row of metrics.csv written by this call; empty if it trained nothing.
        weights: the saved supernet.
    """

    epochs: int
    steps: int
    seconds: float
    weights: Path
    metrics: Mapping[str, Any] = field(default_factory=dict)


class Trainer:
    """Trains a supernet.

    One process, or one per device under torchrun (DistributedDataParallel); all processes draw the
    same subnets. A run that is resumed, from the end of an epoch or from a step within one,
    continues with the same numbers as if it had not been interrupted. `run_dir` gets metrics.csv,
    metrics.jsonl, checkpoint.pt and, at the end, supernet.safetensors (the averaged weights if
    averaging is on). Seeds the global random generators of Python, NumPy and torch at every step.

    Args:
        model: the supernet; moved to the device and trained in place.
        strategy: what to train at each step.
        data: images; the test split is not touched.
        config: the loop.
        run_dir: folder of the run's files.
        optim: optimizer and learning rate.
        say: receives what the strategy has to tell, a line each, unless a progress bar shows it;
            the figures of the epoch have it too.

    Raises:
        ValueError: settings that do not fit the model, the data or each other.
        TypeError: the model is not a supernet.
        ImportError: a package that the settings need is missing.
    """

    def __init__(
        self,
        model: Supernet,
        strategy: Strategy,
        data: DataBundle,
        config: TrainConfig,
        run_dir: str | os.PathLike[str],
        *,
        optim: OptimConfig | None = None,
        say: Callable[[str], None] | None = None,
    ) -> None:
        self.strategy = strategy
        self.data = data
        self.config = config
        self.optim = optim if optim is not None else OptimConfig()
        self.run_dir = Path(run_dir)
        self.checkpoint = self.run_dir / CHECKPOINT
        self.say = say
        self.process = distributed.start(config.device, config.threads)
        check_pieces(data.config, config, self.process.world_size)
        _check_fit(model, data)
        if config.tensorboard and self.process.is_main:
            board_writer()
        self.model = model.to(self.process.device)
        self.phases = strategy.phases(model.space, config.epochs)
        self.epochs = total_epochs(strategy, config.epochs)
        self.loader = data.train_loader(
            seed=config.seed,
            rank=self.process.rank,
            world_size=self.process.world_size,
            device=self.process.device,
        )
        self.steps_per_epoch = len(self.loader)
        data.warn_about("train")
        data.warn_about("search")
        self.optimizer = build_optimizer(model, self.optim, data.config.batch_size)
        # Fails now rather than at the start of a late phase.
        for index in range(len(self.phases)):
            self._learning_rate(index)
        self.train_step = TrainStep(
            self.model, self.optimizer, data, config, self.optim, self.process
        )
        self.ema = self.train_step.average
        self.epoch = 0
        self.step = 0
        self._phase = -1
        self._rate: LearningRate | None = None
        self._losses = FiniteLosses(self.process, self.checkpoint, config.log_every)
        self._notes: list[str] = []  # not yet among the figures
        self._interrupted: dict[str, Any] | None = None  # figures of an epoch to go on with

    @property
    def final_model(self) -> Supernet:
        """The model to evaluate, search and save: the averaged weights if averaging is on."""
        return self.ema.module if self.ema is not None else self.model

    def _models(self) -> list[Supernet]:
        """The model that trains, and the average if there is one."""
        return [self.model] if self.ema is None else [self.model, self.ema.module]

    @property
    def phase(self) -> Phase:
        """The current phase."""
        return self.phases[max(self._phase, 0)]

    def fit(self, resume: bool = False, *, verify: bool = True) -> TrainResult:
        """Train to the end.

        Args:
            resume: continue from the run's checkpoint if there is one.
            verify: compare that checkpoint with its checksums.

        Raises:
            FileExistsError: `run_dir` holds a checkpoint and `resume` is False.
            NonFiniteLossError: the loss became infinite or not a number.
            ValueError: the checkpoint belongs to a run with other settings or other images, or a
                plan asks for something this trainer does not have.
            UnreadableImage, SampleError, WorkerDied: the images cannot be read.
            Stopped: the command got a signal (`stopping.py`); the checkpoint is of the latest
                step.
        """
        begun = time.perf_counter()
        if self.checkpoint.exists():
            if not resume:
                raise FileExistsError(
                    f"{self.checkpoint} exists: resume that run, or use another folder for this one"
                )
            self._restore(load_checkpoint(self.checkpoint, self.process.device, verify=verify))
        self.process.barrier()
        log = None
        row: dict[str, Any] = {}
        progress = self._progress()
        try:
            if self.process.is_main:
                self.run_dir.mkdir(parents=True, exist_ok=True)
                log = MetricsLog(self.run_dir, self.epoch, self.config.tensorboard)
            self._tell(progress)
            with stopping.postponed(), naming_dead_workers():
                while self.epoch < self.epochs:
                    row = self._epoch(progress)
                    if log is not None:
                        log.write(row)
                    done = self.epoch == self.epochs
                    if done or self.epoch % self.config.checkpoint_every == 0:
                        self._save()
        finally:
            progress.close()
            if log is not None:
                log.close()
        weights = self.run_dir / WEIGHTS
        if self.process.is_main:
            save_supernet(self.final_model, weights)
        self.process.barrier()
        return TrainResult(self.epoch, self.step, time.perf_counter() - begun, weights, row)

    def _epoch(self, progress: Progress) -> dict[str, Any]:
        begun = time.perf_counter()
        share = self.data.config.batch_size // self.process.world_size
        figures = EpochFigures(self.process, share, self._interrupted)
        self._interrupted = None
        self.loader.set_epoch(self.epoch, figures.first)
        place = f"epoch {self.epoch + 1}/{self.epochs}"
        for images, labels in self.loader:
            # A name per step and process, so that no state has to be saved for a resume.
            name = f"growtas:{self.config.seed}:{self.step}:{self.process.rank}:training"
            seed_all(name, self.process.device)
            images = images.to(self.process.device, non_blocking=True)
            labels = labels.to(self.process.device, non_blocking=True)
            figures.add(*self._train_step(images, labels))
            figures.unreadable |= self.loader.unreadable.keys()
            progress.step()
            if figures.steps % self.config.log_every == 0 and figures.steps < self.steps_per_epoch:
                self._losses.check(self.phase, self.steps_per_epoch)
                progress.show(f"{place}, {self.phase.name}", figures.text())
            self._stop_if_asked(figures)
        loss, accuracy = figures.read()
        self._losses.check(self.phase, self.steps_per_epoch)
        progress.show(f"{place}, {self.phase.name}", figures.text())
        speed = figures.images_per_second()
        self.epoch += 1
        self.strategy.end_epoch(self.phases, self.epoch, loss)
        self._tell(progress)
        row: dict[str, Any] = {
            "epoch": self.epoch,
            "step": self.step,
            "phase": self.phase.name,
            "lr": figures.lr,
            "train_loss": loss,
            "train_accuracy": accuracy,
            "images_per_second": speed,
            "unreadable": self._count_unreadable(figures, progress),
        }
        if self.epoch % self.config.eval_every == 0 or self.epoch == self.epochs:
            row |= self._evaluate(progress)
        if self._notes:
            row["note"], self._notes = "; ".join(self._notes), []
        return {**row, "seconds": time.perf_counter() - begun}

    def _train_step(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, float]:
        epoch = self.step / self.steps_per_epoch
        index = self.phases.index(self.strategy.phase(self.phases, epoch))
        if index != self._phase:
            self._begin_phase(index)
        assert self._rate is not None
        self._rate.set(self.step)
        # A generator per step: the same on all processes, and no state to save for a resume.
        rng = random.Random(f"growtas:{self.config.seed}:{self.step}")
        position = self.step - self.epoch * self.steps_per_epoch
        plan = self.strategy.plan(StepContext(rng, self.step, epoch, self.phase, position))
        result = self.train_step(plan, images, labels, self.step)
        self._losses.add(self.step, plan, result.losses)
        self.strategy.observe(plan, StepLosses(result.losses, self.process))
        self.step += 1
        lr = float(self.optimizer.param_groups[0]["lr"]) * plan.lr_scale
        return result.objective, result.correct, lr

    def _begin_phase(self, index: int) -> None:
        """Enter a phase for the first time: averages, fresh moments, growth, freezing, rate."""
        phase = self.phases[index]
        if phase.freeze is not None and self.ema is not None:
            # Trained and averaged weights must agree on the frozen boxes, and stay so.
            self.model.load_state_dict(self.ema.module.state_dict())
        if has_own_rate(phase):
            self.optimizer.restart()
        if self._phase >= 0:
            self._grow(self.phases[self._phase], phase, index)
        self._apply_phase(index)

    def _grow(self, before: Phase, phase: Phase, index: int) -> None:
        """Give the weights that only `phase` reads the start that it asks for."""
        if phase.growth_init == "none" and not phase.reset_moments:
            return
        old, new = before.space.largest(), phase.space.largest()
        seed = random.Random(f"growtas:{self.config.seed}:growth:{index}").getrandbits(32)
        known, read = self.model.boxes(old), self.model.boxes(new)
        # The average of weights that nothing read so far says nothing: it starts anew with them.
        initialise_new_weights(self._models(), known, read, phase.growth_init, seed)
        if phase.reset_moments:
            self.optimizer.reset(*trained_boxes(self.model, (old, new)))

    def _apply_phase(self, index: int) -> None:
        self._phase = index
        boxes: dict[Tensor, tuple[int, ...]] = {}
        if (freeze := self.phases[index].freeze) is not None:
            (boxes,) = trained_boxes(self.model, [freeze.largest()])
        self.optimizer.freeze(boxes)
        self._rate = self._learning_rate(index)

    def _learning_rate(self, index: int) -> LearningRate:
        segment = segment_of(self.phases, index, self.epochs, self.optim)
        batch = self.data.config.batch_size
        try:
            return LearningRate(self.optimizer, segment, batch, self.steps_per_epoch)
        except ValueError as error:
            raise ValueError(f"phase {self.phases[index].name!r}: {error}") from error

    def _evaluate(self, progress: Progress) -> dict[str, float]:
        space = self.model.space
        loader = self.data.eval_loader(
            "search",
            rank=self.process.rank,
            world_size=self.process.world_size,
            device=self.process.device,
        )
        subnets = [space.smallest(), space.largest()]
        dtype = self.train_step.dtype
        small, large = evaluate(self.final_model, subnets, loader, self.process, dtype)
        if line := left_out("search", loader, self.process):
            progress.tell(line)
        return {
            "smallest_accuracy": small.accuracy,
            "smallest_loss": small.loss,
            "largest_accuracy": large.accuracy,
            "largest_loss": large.loss,
        }

    def _count_unreadable(self, figures: EpochFigures, progress: Progress) -> int:
        dataset = self.data.train.dataset
        unread = figures.all_unreadable(len(dataset))
        if unread:
            progress.tell(
                f"epoch {self.epoch}: {len(unread)} training images cannot be read and were "
                f"replaced by others: {some_names(dataset, unread)}"
            )
        return len(unread)

    def _stop_if_asked(self, figures: EpochFigures) -> None:
        """Saves this step and stops if some process got a signal; all of them at the same step."""
        if not stopping.is_handled():
            return
        signum = self.process.agree(stopping.wanted())
        if not signum:
            return
        self._losses.check(self.phase, self.steps_per_epoch)
        self._interrupted = figures.state(len(self.data.train.dataset))
        self._save()
        raise stopping.Stopped(
            signum,
            f"stopped after step {self.step} of {self.epochs * self.steps_per_epoch}, which is in "
            f"{self.checkpoint}; with --resume it continues from there",
        )

    def _save(self) -> None:
        if not all_finite(p.detach() for model in self._models() for p in model.parameters()):
            raise NonFiniteLossError(
                f"weights are not finite after epoch {self.epoch}, so {self.checkpoint} was left "
                "as it is"
            )
        if self.process.is_main:
            state = {
                "epoch": self.epoch,
                "step": self.step,
                "phase": self._phase,
                "steps_per_epoch": self.steps_per_epoch,
                "interrupted": self._interrupted,
                "notes": self._notes,
                "settings": self._settings(),
                "model": self.model.state_dict(),
                "ema": None if self.ema is None else self.ema.module.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "scaler": self.train_step.scaler.state_dict(),
                "strategy": self.strategy.state_dict(),
            }
            save_checkpoint(state, self.checkpoint)
        self.process.barrier()

    def _restore(self, state: dict[str, Any]) -> None:
        changed = differences(state["settings"], self._settings())
        if changed:
            raise ValueError(
                f"{self.checkpoint} is from a run with other settings (then -> now): "
                + "; ".join(changed)
            )
        steps = state.get("steps_per_epoch", self.steps_per_epoch)
        if steps != self.steps_per_epoch:
            raise ValueError(
                f"{self.checkpoint} is from a run of {steps} steps an epoch, now there "
                f"are {self.steps_per_epoch}: the training images are others"
            )
        self.model.load_state_dict(state["model"])
        if self.ema is not None:
            self.ema.module.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.train_step.scaler.load_state_dict(state["scaler"])
        self.strategy.load_state_dict(state["strategy"])
        self.epoch, self.step = state["epoch"], state["step"]
        self._interrupted, self._notes = state.get("interrupted"), list(state.get("notes", ()))
        self._apply_phase(state["phase"])

    def _settings(self) -> dict[str, Any]:
        """What the numbers of the run depend on."""
        sections = {
            "train": to_plain(self.config),
            "optim": to_plain(self.optim),
            "data": to_plain(self.data.config),
            "augment": to_plain(self.data.augment),
        }
        return {
            **lasting(sections),
            "model": to_plain(self.model.config),
            "space": to_plain(self.model.space.to_dict()),
            "strategy": f"{type(self.strategy).__module__}.{type(self.strategy).__qualname__}",
            "phases": [str(phase) for phase in self.phases],
            "processes": self.process.world_size,
        }

    def _progress(self) -> Progress:
        steps = self.epochs * self.steps_per_epoch
        show = self.config.progress and self.process.is_main
        return Progress(steps, self.step, unit="step", show=show, say=self.say)

    def _tell(self, progress: Progress) -> None:
        for note in [*self.strategy.notes(), *self.train_step.notes()]:
            if note not in self._notes:  # an epoch that goes on may be told it again
                self._notes.append(note)
            progress.tell(note)


def _check_fit(model: Supernet, data: DataBundle) -> None:
    """Refuse a model that is no supernet, or not made for the images.

    Raises:
        TypeError, ValueError: naming what does not fit.
    """
    if not isinstance(model, Supernet):
        raise TypeError(
            f"the model is a {type(model).__name__}; allowed: a Supernet (for several processes "
            "the trainer wraps it itself)"
        )
    height, width = model.config["image_size"]
    for name, ours, theirs in (
        ("image_size", [height, width], [data.image_size, data.image_size]),
        ("in_chans", model.config["in_chans"], data.in_chans),
        ("num_classes", model.config["num_classes"], data.num_classes),
    ):
        if ours != theirs:
            raise ValueError(f"the model has {name} {ours}, the data {theirs}; they must agree")
