"""Of twenty broken trainings, five of each of four models, none becomes the champion."""

import json
import math
import shutil

import pytest
from mlflow import MlflowClient

from pipeline.core import model_files
from pipeline.core.batch import Batch
from pipeline.core.dataset import Dataset
from pipeline.core.settings import TrainingSettings
from pipeline.divergence import Diverged
from pipeline.environment import Environment
from pipeline.evaluation.settings import EvaluationSettings
from pipeline.launch.tracked import tracked
from pipeline.launch.training import Training
from pipeline.retraining import champion_challenger
from pipeline.retraining.gates import GateSettings
from tests.project import MODELS, PARAMS, TRAINING

SETTINGS = TrainingSettings(**{**TRAINING, "num_steps": 200, "log_every": 10, "checkpoint_every": 100})
NEW_PICTURES = 100  # so that a model that is as good as the champion is promoted


def nan_at_a_step(loss, phase, batch, noise):
    value, metrics = loss(phase, batch, noise)
    return (value * math.nan if noise.step == 12 else value), metrics


def constant(loss, phase, batch, noise):
    value, metrics = loss(phase, batch, noise)
    return value * 0, metrics


def away_from_the_minimum(loss, phase, batch, noise):
    value, metrics = loss(phase, batch, noise)
    return -value, metrics


def collapsed_to_one_example(loss, phase, batch, noise):
    first = {name: values[:1].expand_as(values) for name, values in batch.fields.items()}
    return loss(phase, Batch(first), noise)


BROKEN = (nan_at_a_step, constant, away_from_the_minimum, collapsed_to_one_example)
HUGE_RATE = {"kind": "adam", "learning_rate": 10.0}


class Served:
    """A project with champions of four models, trained by ``train``."""

    def __init__(self, folder, data):
        self.tree = folder
        shutil.copytree(data, folder / "data/processed/images")
        shutil.copy(data.parents[2] / "mlflow.db", folder)
        places = {"tracking_uri": f"sqlite:///{folder}/mlflow.db", "artifacts": str(folder / "artifacts")}
        self.environment = Environment(
            folder, storage=folder / ".darkroom", threads=1, device="cpu", **places
        )
        self.client = MlflowClient(self.environment.tracking_uri)
        for name in MODELS:
            self.train(name, 0)

    def train(self, name, seed, **model):
        """Train and register a model."""
        values = json.dumps({**PARAMS[name]["model"], **model})
        config = model_files.find(name).Config.model_validate_json(values)
        data = Dataset.open(self.tree / "data/processed/images")
        training = Training(name, SETTINGS.model_copy(update={"seed": seed}), config, data)
        folders = [self.tree / place / name for place in ("models", "history")]
        with tracked(training, self.environment, *folders) as (outcome, run):
            run.register(outcome.folder / "model", name)

    def compare(self, names):
        """What a retraining would find about the newest versions of these models: a verdict for each."""
        client, tree = self.client, self.tree
        newest = lambda name: max(self.versions(name), key=lambda each: int(each.version))
        serving = champion_challenger.champions(client, MODELS, tree / "fetched")
        return champion_challenger.compare(
            EvaluationSettings(**PARAMS["evaluate"]),
            GateSettings(),
            tree,
            "cpu",
            NEW_PICTURES,
            {name: newest(name) for name in names},
            serving,
        )

    def versions(self, name):
        return self.client.search_model_versions(f"name = '{name}'")

    def champions(self):
        aliases = {model.name: model.aliases for model in self.client.search_registered_models()}
        return {name: int(aliases[name]["champion"]) for name in MODELS}


@pytest.fixture(scope="module")
def served(tmp_path_factory, processed_digits):
    return Served(tmp_path_factory.mktemp("served") / "project", processed_digits)


@pytest.mark.nightly
@pytest.mark.timeout(900)
def test_models_that_are_as_good_as_the_champions_are_promoted(served):
    for name in MODELS:
        served.train(name, 1)
    verdicts = served.compare(MODELS)
    assert len(verdicts) == 4 and all(verdict.promoted for verdict in verdicts), verdicts


@pytest.mark.nightly
@pytest.mark.timeout(900)
@pytest.mark.parametrize("change", [None, *BROKEN], ids=lambda each: each.__name__ if each else "huge_rate")
def test_a_broken_training_ends_with_an_error_or_is_refused(served, monkeypatch, change):
    seed, compared = 2 + [None, *BROKEN].index(change), []
    for name in MODELS:
        task, before = model_files.find(name), len(served.versions(name))
        optimizers = {"optimizer", "generator_optimizer", "discriminator_optimizer"} & {
            *task.Config.model_fields
        }
        if change:
            broken = lambda self, *given, loss=task.loss: change(loss.__get__(self), *given)
            monkeypatch.setattr(task, "loss", broken)
        try:
            served.train(name, seed, **({} if change else dict.fromkeys(optimizers, HUGE_RATE)))
            compared.append(name)
        except Diverged as error:
            print(f"{name}: {error.what}")
        assert len(served.versions(name)) == before + (name in compared)
    monkeypatch.undo()
    verdicts = served.compare(compared)
    for verdict in verdicts:
        print(f"{verdict.model}: {verdict.reason}")
    assert [verdict.model for verdict in verdicts if verdict.refused] == compared
    assert champion_challenger.decide(verdicts, "cnn")[0] == "refused" or not compared
    assert served.champions() == dict.fromkeys(MODELS, 1)
