"""A run folder: every stage reads what earlier ones left there, so each can be repeated alone.

``config.yaml`` is the complete recipe; ``metrics.csv``, ``checkpoint.pt`` and
``supernet.safetensors`` come from training, ``search.json`` and ``random_subnets.json`` from the
search, ``summary.json`` (the winners, tested), ``best/`` (the exported model) and the pictures
``front.png`` and ``training.png`` from `growtas.run.pipeline`; ``analysis/`` holds what ``growtas
analyze`` drew of the supernet.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from growtas.base import distributed
from growtas.base.config import ConfigError, content_of, read_text
from growtas.run.files import (
    CONFIG,
    RANDOM,
    REPORTED,
    SEARCH,
    SEARCHED,
    SUMMARY,
    SUPERNET,
    TRAINED,
    RunFiles,
)
from growtas.run.recipe import Recipe
from growtas.run.winners import Winner, best_limit, stored_winners, tested_winners
from growtas.space import Subnet
from growtas.supernet.vit.subnet_files import read_subnet

if TYPE_CHECKING:
    from growtas.search import Candidate, Evaluator, Score, SearchResult
    from growtas.supernet import Supernet
    from growtas.training.data import DataBundle

# Largest difference between the logits of the supernet and of the exported model, relative to the
# largest logit: float32 sums in another order, with a margin.
LOGIT_TOLERANCE = 1e-4
CHECK_IMAGES = 32

Split = Literal["search", "test"]
Say = Callable[[str], None]


class ExportMismatch(RuntimeError):
    """The exported model does not give the supernet's logits."""


class Run:
    """A run folder and its recipe. `Run.start` makes a new one, `Run.open` finds an old one.

    Under torchrun every process makes the same calls; only rank 0 writes. What uses the trained
    supernet raises ConfigError if it was trained with another recipe: other settings move images
    between the splits and prepare them in another way.

    Args:
        recipe: what to run.
        folder: where the files are.
        say: receives one line for every step worth telling.
        verify: compare the supernet and checkpoints with their checksums when they are read.
    """

    def __init__(
        self, recipe: Recipe, folder: str | Path, say: Say = print, *, verify: bool = True
    ) -> None:
        self.recipe = recipe
        self.verify = verify
        self.folder = Path(folder)
        self.process = distributed.start(recipe.train.device, recipe.train.threads)
        self.files = RunFiles(self.folder, self.process)
        self.say = say if self.process.is_main else lambda line: None

    @classmethod
    def start(cls, recipe: Recipe, *, resume: bool = False, **options: Any) -> Run:
        """A run of `plan`, to which the folder belongs from now on: without `resume`, what another
        run left there is removed, and the recipe is saved."""
        run = cls.plan(recipe, resume=resume, **options)
        run._begin(resume)
        return run

    @classmethod
    def plan(
        cls,
        recipe: Recipe,
        *,
        resume: bool = False,
        overwrite: bool = False,
        say: Say = print,
        verify: bool = True,
    ) -> Run:
        """A run in ``recipe.output.dir``, checked; nothing is removed or written yet.

        Args:
            recipe: what to run.
            resume: continue a run of the same recipe; fields that cannot change its result may
                differ.
            overwrite: delete the files of a run that is there.
            say, verify: as for `Run`.

        Raises:
            ConfigError: the folder holds a run and neither `resume` nor `overwrite` is given, both
                are, or the run to resume has another recipe or its search other settings (the
                message lists the fields).
            OSError, ValueError: the data cannot be read or used.
        """
        if resume and overwrite:
            raise ConfigError("resume and overwrite exclude each other")
        run = cls(recipe, recipe.run_dir, say, verify=verify)
        run.files.check_free(resume=resume, overwrite=overwrite)
        if resume:
            run.files.check_trained_alike(recipe)
            run.files.check_searched_alike(recipe)
        run.check_data()
        return run

    def _begin(self, resume: bool) -> None:
        if not resume:
            self.files.remove(*TRAINED, *SEARCHED, *REPORTED)
        self.files.save_recipe(self.recipe)

    @classmethod
    def open(
        cls,
        folder: str | Path,
        overrides: Sequence[str] = (),
        say: Say = print,
        *,
        verify: bool = True,
    ) -> Run:
        """The run in `folder`, its recipe changed by `overrides`.

        Raises:
            ConfigError: there is no run in `folder`, or an override is wrong.
        """
        config = Path(folder) / CONFIG
        if not config.is_file():
            raise ConfigError(
                f"{folder} is not the folder of a run (no {CONFIG}); "
                "`growtas run RECIPE` and `growtas train RECIPE` make one"
            )
        recipe = Recipe.load(config, overrides)
        recipe = replace(recipe, output=replace(recipe.output, dir=str(folder)))
        return cls(recipe, folder, say, verify=verify)

    @cached_property
    def data(self) -> DataBundle:
        """The three splits of the recipe's data set."""
        from growtas.training.data import build_data

        return build_data(self.recipe.data, self.recipe.augment)

    def check_data(self) -> None:
        """Finds a missing or unfitting split before the training, not after it, and warns of a poor
        one; reads no image."""
        from growtas.training.data import SPLITS

        data = self.data
        counts = [len(split) for split in (data.train, data.search, data.test)]
        self.say("data: {:,} training, {:,} search and {:,} test images".format(*counts))
        for split in SPLITS:
            data.warn_about(split)

    @cached_property
    def model(self) -> Supernet:
        """The trained supernet, on the recipe's device, in evaluation mode."""
        from growtas.supernet import load_supernet

        path = self.folder / SUPERNET
        if not path.is_file():
            raise ConfigError(
                f"{self.folder} has no trained supernet ({SUPERNET}): `growtas train RECIPE` makes "
                "one, with --resume it finishes a training that was interrupted"
            )
        return load_supernet(path, device=str(self.process.device), verify=self.verify)

    def train(self, *, resume: bool = False) -> None:
        """Trains the supernet; `resume` keeps a finished training and continues a begun one."""
        if resume and (self.folder / SUPERNET).is_file():
            self.files.save_recipe(self.recipe)
            self.say(f"train: done before, using {self.folder / SUPERNET}")
            return
        import torch

        from growtas.space.cost import model_cost
        from growtas.training.trainer import Trainer

        recipe, data = self.recipe, self.data
        torch.manual_seed(recipe.train.seed)
        model = self._new_model()
        strategy = recipe.build_strategy(model.space, model_cost(model))
        trainer = Trainer(
            model, strategy, data, recipe.train, self.folder, optim=recipe.optim, say=self.say
        )
        if trainer.epochs > recipe.train.epochs:
            extra = trainer.epochs - recipe.train.epochs
            self.say(f"train: {trainer.epochs} epochs, the last {extra} of them the strategy's own")
        self._begin(resume)  # by now, what can be refused has been
        self.files.remove(*SEARCHED, *REPORTED)
        trainer.fit(resume=resume, verify=self.verify)
        self.__dict__.pop("model", None)  # of an earlier training

    def check_limits(self) -> None:
        """Finds a limit of the search that no subnet meets before the training, not after it;
        raises ValueError."""
        import torch

        from growtas.search.run import windows
        from growtas.space.cost import model_cost

        with torch.device("meta"):  # sizes are all that is needed
            model = self._new_model()
        windows(model.space, self.recipe.search, model_cost(model))

    def _new_model(self) -> Supernet:
        data = self.data
        return self.recipe.build_model(
            in_chans=data.in_chans, image_size=data.image_size, num_classes=data.num_classes
        )

    def search(self, *, resume: bool = False) -> SearchResult:
        """Searches the supernet under the recipe's limits, on the search split.

        The recipe goes to ``config.yaml``, so that the folder says what it holds.

        Args:
            resume: keep a finished search, continue one for more generations and one that was
                interrupted. Without it a search that is there is replaced.

        Raises:
            ConfigError: the search to resume has other settings; nothing is removed then.
            ValueError: no subnet meets a limit, or the search to resume is of other weights or
                images; nothing is removed then either.
        """
        from growtas.search import SearchResult, model_cost
        from growtas.search.run import Search

        self.files.check_trained_alike(self.recipe)
        if resume:
            self.files.check_searched_alike(self.recipe)
            path = self.folder / SEARCH
            if path.is_file() and (done := SearchResult.load(path)).config == self.recipe.search:
                self.files.save_recipe(self.recipe)
                self.say(f"search: done before, using {path}")
                return done
        current = Search(
            self.model.space,
            self.evaluator("search"),
            self.recipe.search,
            model_cost(self.model),
            self.folder,
        )
        if resume:
            current.load()
        self.files.save_recipe(self.recipe)
        self.files.remove(*REPORTED, *(() if resume else SEARCHED))
        return current.go(progress=self.recipe.train.progress)

    def random_subnets(self, result: SearchResult) -> tuple[list[Candidate], SearchResult]:
        """Random subnets scored on the search split, to draw beside what the search found, and the
        result with them, in ``search.json`` too; see `SearchResult.including`."""
        from growtas.search import Candidate, model_cost, score_random

        path, count = self.folder / RANDOM, self.recipe.output.random_subnets
        candidates = None
        if path.is_file():
            text = read_text(path)
            with content_of(path, "a list of scored subnets"):
                candidates = [Candidate.from_dict(values) for values in json.loads(text)]
        if candidates is None or len(candidates) != count:
            candidates = score_random(
                self.model.space,
                self.evaluator("search"),
                model_cost(self.model),
                count=count,
                seed=self.recipe.search.seed,
                known=result.candidates,
            )
            self.files.write_json(RANDOM, [candidate.to_dict() for candidate in candidates])
        whole = result.including(candidates)
        if whole is not result and self.process.is_main:
            whole.save(self.folder / SEARCH)
        return candidates, whole

    def test(self, result: SearchResult, *, resume: bool = False) -> list[Winner]:
        """Each limit's winner on the test images: the only time that a run reads them. `resume`
        keeps the results of these very winners if ``summary.json`` has them."""
        path = self.folder / SUMMARY
        if resume and (winners := stored_winners(path, result)) is not None:
            self.say(f"test: done before, using {path}")
            return winners
        return tested_winners(result, self.evaluator("test"))

    def evaluate(self, subnet: Subnet, split: Split) -> Score:
        """Accuracy and loss of one subnet on a split; ValueError if the supernet does not hold it.
        Nothing is written."""
        self.model.space.supernet.validate(subnet)
        return self.evaluator(split).score(subnet)

    def evaluator(self, split: Split) -> Evaluator:
        """What scores subnets of the trained supernet on a split, its images decoded once."""
        from growtas.search import Evaluator
        from growtas.training.batches import left_out, naming_dead_workers

        self.files.check_trained_alike(self.recipe)
        settings = self.recipe.search
        max_images = settings.max_images if split == "search" else None
        # A choice of images is made over the whole split, so then every rank has to read it.
        whole = max_images is not None
        rank, ranks = (0, 1) if whole else (self.process.rank, self.process.world_size)
        loader = self.data.eval_loader(split, rank=rank, world_size=ranks)
        with naming_dead_workers():
            evaluator = Evaluator.from_loader(
                self.model,
                loader,
                max_images=max_images,
                sharded=not whole,
                mean=self.data.config.mean,
                std=self.data.config.std,
                batch_size=settings.batch_size,
                amp=self.recipe.train.amp,
            )
        if line := left_out(split, loader, None if whole else self.process):
            self.say(line)
        return evaluator

    def extract(
        self, subnet: Subnet, folder: str | Path, info: dict[str, Any] | None = None
    ) -> float:
        """Exports one subnet to `folder`, with `info` in its ``config.json``, and checks what was
        written: it reads the files back and runs both models in float32 on the CPU.

        Returns:
            The largest difference between the logits of the supernet and of the exported model.

        Raises:
            ExportMismatch: that difference is more than rounding.
            ValueError: the supernet does not hold the subnet.
        """
        import torch

        from growtas import export
        from growtas.supernet import load_supernet

        self.files.check_trained_alike(self.recipe)
        self.model.space.supernet.validate(subnet)
        supernet = load_supernet(self.folder / SUPERNET, verify=self.verify)
        if self.process.is_main:
            alone = supernet.extract(subnet)
            alone.transform, alone.classes = self.data.transform, self.data.class_names
            export.save(alone, folder, {**(info or {}), "subnet": subnet.to_dict()})
        self.process.barrier()
        images, _ = next(iter(self.data.eval_loader("search", batch_size=CHECK_IMAGES)))
        with torch.inference_mode():
            expected = supernet(images, subnet)
            exported = export.load(folder)(images)
        difference = float((expected - exported).abs().max())
        allowed = LOGIT_TOLERANCE * max(1.0, float(expected.abs().max()))
        if not difference <= allowed:  # also if it is not a number
            raise ExportMismatch(
                f"the model in {folder} is not the supernet's {subnet}: logits differ by "
                f"{difference:.3g}, rounding explains {allowed:.3g}"
            )
        return difference

    def find_subnet(self, text: str) -> Subnet:
        """The subnet that a user means.

        Args:
            text: the name of a limit in ``search.json``, "best" (the winner with the best search
                result), "smallest", "largest", a file that `growtas.load_subnets` reads (FILE or
                FILE:NAME), or JSON.

        Raises:
            ConfigError: none of these.
        """
        from growtas.search import SearchResult

        subnet = read_subnet(text, self.model.space)
        if subnet is not None:
            return subnet
        path = self.folder / SEARCH
        names: list[str] = []
        if path.is_file():
            result = SearchResult.load(path)
            if text == "best":
                return best_limit(result).subnet
            names = [entry.limit.name for entry in result.limits]
            if text in names:
                return result[text].subnet
        known = ", ".join([*(["best", *names] if names else []), "smallest", "largest"])
        searched = "" if names else f" ({self.folder} has no {SEARCH} with winners yet)"
        raise ConfigError(
            f"no subnet {text!r}: use {known}, a JSON file or JSON with embed_dim, num_heads and "
            f"mlp_ratio{searched}"
        )
