"""The files of a run folder: their names, whether they are of the recipe at hand, their removal."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from growtas.base.atomic import write_atomically
from growtas.base.config import ConfigError, differences
from growtas.base.distributed import Process
from growtas.run.recipe import Recipe
from growtas.training.identity import lasting

CONFIG = "config.yaml"
METRICS = "metrics.csv"
LOG = "metrics.jsonl"  # the same for programs
SUPERNET = "supernet.safetensors"
SEARCH = "search.json"
SEARCH_STATE = "search_state.json"
RANDOM = "random_subnets.json"
SUMMARY = "summary.json"
BEST = "best"
FRONT = "front.png"
TRAINING = "training.png"
ANALYSIS = "analysis"

# The files that each stage makes, in the order of the stages.
TRAINED = (METRICS, LOG, "checkpoint.pt", "tensorboard", SUPERNET, ANALYSIS)
SEARCHED = (SEARCH, SEARCH_STATE, RANDOM)
REPORTED = (SUMMARY, BEST, FRONT, TRAINING)


class RunFiles:
    """What lies in a run folder. Every process makes the same calls, one writes and removes."""

    def __init__(self, folder: Path, process: Process) -> None:
        self.folder = folder
        self.process = process

    def check_free(self, *, resume: bool, overwrite: bool) -> None:
        """Whether a run may begin here, or go on.

        Raises:
            ConfigError: the folder is a file, or holds a run that is neither to be resumed nor to
                be overwritten, or one to resume without its recipe.
        """
        folder = self.folder
        if folder.exists() and not folder.is_dir():
            raise ConfigError(f"output.dir is {str(folder)!r}, which is not a folder")
        found = [name for name in (*TRAINED, *SEARCHED, *REPORTED) if (folder / name).exists()]
        if found and not (resume or overwrite):
            raise ConfigError(
                f"{folder} already holds a run ({', '.join(found)}): add --resume to continue "
                "it, --overwrite to replace it, or output.dir=FOLDER to write elsewhere"
            )
        if found and resume and not (folder / CONFIG).is_file():
            raise ConfigError(
                f"{folder} holds a run without its {CONFIG}, so nobody knows its settings: "
                "--overwrite replaces it"
            )

    def check_trained_alike(self, recipe: Recipe) -> None:
        """Refuse (ConfigError) a recipe under which the supernet here would be another."""
        config = self.folder / CONFIG
        if not config.is_file():
            return
        changed = differences(*(_fixed(each) for each in (Recipe.load(config), recipe)))
        if changed:
            raise ConfigError(
                f"the run in {self.folder} has another recipe ({'; '.join(changed)}): repeat its "
                "settings, or start over with --overwrite or in another output.dir"
            )

    def check_searched_alike(self, recipe: Recipe) -> None:
        """Refuse (ConfigError) a recipe whose search cannot continue the one here."""
        from growtas.search.run import changed_settings

        changed = changed_settings(self.folder, recipe.search)
        if changed:
            raise ConfigError(
                f"the search in {self.folder} has other settings ({'; '.join(changed)}): repeat "
                f"its settings, or replace it with `growtas search {self.folder} --overwrite` and "
                "the new ones"
            )

    def save_recipe(self, recipe: Recipe) -> None:
        """Writes ``config.yaml``."""
        self.process.barrier()  # every process has read the old one
        if self.process.is_main:
            self.folder.mkdir(parents=True, exist_ok=True)
            recipe.save(self.folder / CONFIG)
        self.process.barrier()

    def write_json(self, name: str, values: Any) -> None:
        """Writes a file, in one piece."""
        if self.process.is_main:
            write_atomically(self.folder / name, json.dumps(values, indent=1) + "\n")

    def remove(self, *names: str) -> None:
        """Removes files: what was built on something that changes must not stay."""
        self.process.barrier()  # every process has looked at them
        if self.process.is_main:
            for path in (self.folder / name for name in names):
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)
        self.process.barrier()


def _fixed(recipe: Recipe) -> dict[str, Any]:
    """What of a recipe the trained supernet depends on."""
    settings = lasting(recipe.to_dict())
    return {name: settings[name] for name in settings if name not in ("output", "search")}
