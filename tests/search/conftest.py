"""A project with a search, and trainings that take no time."""

import copy
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline import environment
from pipeline.core.metrics_log import MetricsLog
from pipeline.errors import TrainingStopped
from pipeline.search import trials
from pipeline.search.ranking import Ranking
from pipeline.search.search import Search
from pipeline.search.space import read_search
from tests.project import Project

RATE, DROPOUT, SHIFT = "cnn.model.optimizer.learning_rate", "cnn.model.dropout", "cnn.model.shift"
SPACE = {
    "metric": "validation/accuracy",
    "mode": "max",
    "pruner": "none",
    "settings": {
        RATE: {"low": 1e-3, "high": 1e-1, "log": True},
        DROPOUT: {"choices": [0.0, 0.2]},
        SHIFT: {"low": 0.0, "high": 0.2, "when": {DROPOUT: 0.2}},
    },
}
STEPS = (4, 8, 12)


@pytest.fixture
def project(tmp_path, monkeypatch, processed_digits):
    """The current folder, with a search of the classifier, processed digits and MLflow's database."""
    made = Project(tmp_path / "project", processed_digits)
    training = {**made.params["cnn"]["training"], "num_steps": 12, "validate_every": 4}
    made.params["cnn"] = {**made.params["cnn"], "training": {**training, "checkpoint_every": 4}}
    made.params["search"] = {"cnn": copy.deepcopy(SPACE)}
    made.write()
    monkeypatch.chdir(made.folder)
    for name in ("MLFLOW_TRACKING_URI", "RAY_ADDRESS", "DARKROOM_STORAGE", "DARKROOM_WORKERS", "DVC_ROOT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DARKROOM_THREADS", "1")
    return made


class Trained:
    """The trainings that were run: (settings of the model, seed), and what interrupts the next ones."""

    def __init__(self):
        self.runs, self.interrupt_at = [], []

    @staticmethod
    def value(training, step):
        """The best dropout is 0.2, the best learning rate 0.01."""
        rate = training.config.optimizer.learning_rate
        return 0.5 + training.config.dropout - abs(rate - 0.01) + 0.01 * step + 0.001 * training.settings.seed

    @staticmethod
    def loss(step):
        """The smallest one is that of step 8."""
        return 10 + abs(step - 8)

    @contextmanager
    def tracked(self, training, environment, listeners=(), described=None):
        self.runs.append((training.fingerprint, training.settings.seed))
        folder = training.folder(environment.storage)
        log = MetricsLog(folder / "metrics.jsonl")
        if log.last_step == STEPS[-1]:
            listeners = ()  # a finished training calls none
        for step in STEPS:
            value = self.value(training, step)
            log.add(step, {"validation/accuracy": value, "validation/cross_entropy": self.loss(step)})
            if [len(self.runs), step] in self.interrupt_at:
                raise KeyboardInterrupt
            if any([listener(folder) for listener in listeners]):
                raise TrainingStopped("the training was stopped")
        yield SimpleNamespace(folder=folder), None


@pytest.fixture
def trained(monkeypatch):
    """Replaces the trainings by curves that depend on the settings alone."""
    made = Trained()
    monkeypatch.setattr(trials, "tracked", made.tracked)
    return made


def opened(num_seeds=1, **how):
    """The search of the current folder."""
    space = read_search("cnn")
    return Search(environment.read(), "cnn", space.model_copy(update=how), num_seeds)


def searched(number, num_seeds=1, seconds=None, parallel=1, **how):
    """Run ``number`` trials in all; the ranking."""
    search = opened(num_seeds, **how)
    return trials.run(search, trials.Budget(number, seconds), Path("searches/cnn.html"), parallel)


def by_number(ranking):
    """What is known of each trial, apart from times."""
    trials = sorted(ranking.trials, key=lambda trial: trial.number)
    return [(trial.state, trial.settings, trial.values, trial.fingerprints) for trial in trials]


def ranked(search):
    """The ranking of the recorded trials."""
    return Ranking.of(search)
