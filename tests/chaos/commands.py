"""The commands that are killed, and what must be right after each: a stage, a search, a retraining."""

import shutil
import sqlite3
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.files import hashes, read_json
from tests.chaos import small_project
from tests.chaos.small_project import SETTINGS

SHORT = {"num_steps": 12, "validate_every": 4, "sample_every": 12, "checkpoint_every": 4}
SPACE = {
    "metric": "validation/accuracy",
    "mode": "max",
    "pruner": "none",
    "settings": {
        "cnn.model.optimizer.learning_rate": {"low": 1e-3, "high": 1e-1, "log": True},
        "cnn.model.dropout": {"choices": [0.0, 0.2]},
    },
}
LONG = {"num_steps": 120, "batch_size": 64, "validate_every": 60, "sample_every": 120}
Run = Callable[..., None]  # calls `darkroom` with its arguments, undisturbed


class Stage:
    """`darkroom repro STAGE`, in the project with all stages."""

    imports: tuple[str, ...] = ()  # besides those of all commands
    interval = SETTINGS["checkpoint_every"]  # steps between two checkpoints

    def __init__(self, name: str, *arguments: str) -> None:
        self.name, self.arguments = name, arguments or ("repro", name)

    def result(self, folder: Path) -> dict[str, Any]:
        """What must have the same bits each time, and what MLflow and the folder show."""
        return small_project.result(folder, self.name)

    def lost(self, before: Path, after: Path) -> list[str]:
        """What was there before a kill, and is not as it was."""
        return small_project.lost(before, after)

    def steps_again(self, folder: Path) -> int:
        """The recorded steps that are to be done again."""
        return small_project.steps_again(folder, self.name[6:]) if self.name.startswith("train-") else 0


class Search(Stage):
    """`darkroom search`: a few short trials of a classifier."""

    interval = SHORT["checkpoint_every"]
    imports = ("optuna", "pipeline.leaderboard.trainings", "pipeline.search.trials")

    def create(self, folder: Path, run: Run) -> None:
        """A project that has the data of the search."""
        stages = ("download", "preprocess", "train-cnn")
        small_project.create(folder, stages, SHORT, search={"cnn": SPACE})
        run("repro", "preprocess")

    def result(self, folder: Path) -> dict[str, Any]:
        """The trials; their runs in MLflow, the parents of these."""
        from pipeline.search import study as studies

        storage = studies.storage_of(folder / ".darkroom/search/cnn.log")
        (study,) = storage.get_all_studies()
        keys = (studies.SETTINGS, studies.VALUES, studies.CURVES, studies.FINGERPRINTS)
        trials = [
            [trial.number, trial.state.name, trial.intermediate_values, *map(trial.user_attrs.get, keys)]
            for trial in storage.get_all_trials(study._study_id)
        ]
        trained = {fingerprint for *_, fingerprints in trials for fingerprint in fingerprints}
        parents = "select k.value, p.value from tags k join tags p on p.run_uuid = k.value"
        parents += " where k.key = 'mlflow.parentRunId' and p.key = 'darkroom.stage'"
        made = {"trials": trials, "trained twice": len(trials) - len(trained)}
        return small_project.described(folder, made, [stage for _, stage in _rows(folder, parents)])

    def steps_again(self, folder: Path) -> int:
        """Those of the trial that was running."""
        return small_project.steps_again(folder, "cnn")


class Retraining(Stage):
    """`darkroom retrain` on new pictures, with a champion: trains, compares, commits, promotes."""

    imports = ("pipeline.retraining.retrain",)
    first, last = 500, 700  # digits that are delivered before the champion, and in all

    def create(self, folder: Path, run: Run) -> None:
        """A project after its first retraining, with a new delivery."""
        from tests.retraining.deliveries import SECTIONS, deliver

        stages = ("download", "preprocess", "train-cnn", "evaluate")
        model = {"cnn": {"model": SECTIONS["cnn"]["model"]}}
        sections = {name: SECTIONS[name] for name in ("data", "gates")} | model
        retraining = {**SECTIONS["retrain"], "push": True}
        small_project.create(folder, stages, LONG, retrain=retraining, **sections)
        shutil.rmtree(folder.parent / "incoming", ignore_errors=True)
        deliver(folder, 0, self.first)
        run("retrain")
        deliver(folder, self.first, self.last)

    def result(self, folder: Path) -> dict[str, Any]:
        """The new model, decisions with all numbers, commits, aliases and their history, reports."""
        ended = [read_json(path) for path in sorted((folder / ".darkroom/retraining/ended").glob("*.json"))]
        made: dict[str, Any] = {name: hashes(folder / name) for name in ("models", "metrics")}
        made |= {key: [run[key] for run in ended] for key in ("decision", "explanation", "verdicts", "drift")}
        made["pictures"] = _git(folder, "rev-parse", "HEAD:data/own/digits.dvc")
        made["commits"] = _git(folder, "rev-list", "--count", "HEAD")
        made["changes"] = _git(folder, "status", "--porcelain")
        query = "select version, value from model_version_tags where key = 'darkroom.previous_champion'"
        return small_project.described(folder, made, _rows(folder, query))

    def lost(self, before: Path, after: Path) -> list[str]:
        """The branch may have moved to the commit of the retraining, which comes after the one before."""
        return [name for name in super().lost(before, after) if name != ".git/refs/heads"]

    def steps_again(self, folder: Path) -> int:
        """Those of the only model."""
        return small_project.steps_again(folder, "cnn")


OTHERS = {
    "search": Search("search", "search", "cnn", "--trials", "5", "--sampler", "random"),
    "retrain": Retraining("retrain", "retrain"),
}


def find(name: str) -> Stage:
    """The command of this name, or the stage."""
    return OTHERS.get(name) or Stage(name)


def _rows(folder: Path, query: str) -> list[Any]:
    with sqlite3.connect(f"file:{folder}/mlflow.db?mode=ro", uri=True) as database:
        return sorted(database.execute(query).fetchall())


def _git(folder: Path, *arguments: str) -> str:
    return subprocess.run(
        ["git", *arguments], cwd=folder, check=True, timeout=60, capture_output=True, text=True
    ).stdout
