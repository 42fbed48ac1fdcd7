"""A training that diverges fails with its reason and registers nothing."""

import math
import shutil

import pytest
from mlflow import MlflowClient

from pipeline.core import model_files
from pipeline.core.checkpoint import CheckpointStore
from pipeline.core.dataset import Dataset
from pipeline.core.settings import TrainingSettings
from pipeline.divergence import Diverged
from pipeline.environment import Environment
from pipeline.launch.tracked import tracked
from pipeline.launch.training import Training
from pipeline.models.gan import Gan
from tests.project import PARAMS, TRAINING, Project

SETTINGS = TrainingSettings(**TRAINING).model_copy(update={"num_steps": 20, "log_every": 5})


def run(environment, data, settings):
    config = model_files.find("gan").Config(**PARAMS["gan"]["model"])
    training = Training("gan", settings, config, Dataset.open(data))
    folders = [environment.root / name for name in ("models/gan", "history/gan")]
    with tracked(training, environment, *folders) as (outcome, run):
        run.register(outcome.folder / "model", "gan")
    return training.folder(environment.storage)


def test_the_run_of_a_training_that_diverges_has_failed_and_the_next_one_is_registered(
    tmp_path, processed_digits, monkeypatch
):
    shutil.copy(processed_digits.parents[2] / "mlflow.db", tmp_path)
    places = {"tracking_uri": f"sqlite:///{tmp_path}/mlflow.db", "artifacts": str(tmp_path / "artifacts")}
    environment = Environment(tmp_path, storage=tmp_path / "storage", threads=1, device="cpu", **places)
    plain = Gan.loss

    def diverging(self, phase, batch, noise):
        loss, values = plain(self, phase, batch, noise)
        return (loss * math.nan if phase == "generator" and noise.step == 12 else loss), values

    monkeypatch.setattr(Gan, "loss", diverging)
    message = "the training diverged: train/generator/loss is nan at step 12"
    with pytest.raises(Diverged, match=message):
        run(environment, processed_digits, SETTINGS)
    (folder,) = (path for path in (tmp_path / "storage/trainings").glob("gan-*") if path.is_dir())
    assert CheckpointStore(folder / "checkpoints").latest()[0] == 10
    assert not (tmp_path / "models/gan").exists() and not (folder / "model").exists()
    client = MlflowClient(environment.tracking_uri)
    experiments = [each.experiment_id for each in client.search_experiments()]
    (failed,) = client.search_runs(experiments, "tags.`darkroom.stage` = 'train-gan'")
    assert failed.info.status == "FAILED" and message in failed.data.tags["darkroom.failure"]
    assert client.search_model_versions() == []

    monkeypatch.undo()  # such as a lower learning rate
    repaired = run(environment, processed_digits, SETTINGS.model_copy(update={"clip_norm": 1.0}))
    assert repaired != folder and (tmp_path / "models/gan/model.safetensors").is_file()
    (version,) = client.search_model_versions()
    assert client.get_run(version.run_id).info.status == "FINISHED" and version.run_id != failed.info.run_id


@pytest.mark.nightly
@pytest.mark.parametrize("workers", ["auto", pytest.param("2", marks=pytest.mark.cluster)])
def test_the_stage_ends_with_one_message_and_trains_with_a_repaired_setting(
    tmp_path, processed_digits, workers
):
    project = Project(tmp_path, processed_digits)
    sound = project.params["vae"]["model"]
    absurd = {"kind": "sgd", "learning_rate": 10.0}
    schedule = {"kind": "linear", "warmup_steps": 59, "final": 1.0}
    training = {**TRAINING, "schedule": schedule, "checkpoint_every": 1, "log_every": 1}
    project.params["vae"] = {"training": training, "model": {**sound, "optimizer": absurd}}
    project.write()
    code, output = project.run("stages.train", "vae", DARKROOM_WORKERS=workers)
    (error,) = (line for line in output.splitlines() if "error:" in line)
    assert code == 1 and "error: params.yaml: the training diverged: train/" in error, output
    assert "at step" in error and "Traceback" not in output
    (folder,) = project.trainings("vae")
    step, state = CheckpointStore(folder / "checkpoints").latest()
    assert step > 0 and all(value.isfinite().all() for value in state.values())
    assert not (project.folder / "models/vae").exists()
    client = MlflowClient(f"sqlite:///{project.folder}/mlflow.db")
    assert client.search_model_versions() == []
    project.params["vae"] = {"training": training, "model": sound}
    project.write()
    code, output = project.run("stages.train", "vae", DARKROOM_WORKERS=workers)
    assert code == 0 and len(client.search_model_versions()) == 1, output
