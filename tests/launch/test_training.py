"""Trainings in process: their times, memory errors and GPUs."""

import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from pipeline.core import model_files
from pipeline.core.dataset import Dataset
from pipeline.core.settings import TrainingSettings
from pipeline.core.step import Step
from pipeline.environment import Environment
from pipeline.errors import BadInput
from pipeline.evaluation.report import PARTS, _parts
from pipeline.files import read_json
from pipeline.launch import worker
from pipeline.launch.training import Training, train
from tests.project import ROOT


def test_a_batch_that_a_gpu_cannot_hold_is_refused_with_the_size_of_a_smaller_piece(
    tmp_path, processed_digits, monkeypatch
):
    def exhausted(*given):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")

    settings = TrainingSettings(num_steps=4, batch_size=64)
    training = Training(
        "ae", settings, model_files.find("ae").Config(width=8), Dataset.open(processed_digits)
    )
    where = Environment(tmp_path, storage=tmp_path / "storage", threads=1, device="cpu", microbatch=48)
    monkeypatch.setattr(Step, "_accumulate", exhausted)
    with pytest.raises(BadInput, match="48 examples at once") as caught:
        train(training, where, tmp_path / "model", tmp_path / "history", [])
    assert "DARKROOM_MICROBATCH=24" in caught.value.remedy
    monkeypatch.undo()
    train(training, where, tmp_path / "model", tmp_path / "history", [])  # and in pieces it is trained


@pytest.mark.parametrize(
    "workers", ["auto", pytest.param(2, marks=[pytest.mark.nightly, pytest.mark.cluster])]
)
def test_the_times_of_a_training_add_up_to_its_total_and_a_price_makes_them_a_cost(
    tmp_path, processed_digits, workers
):
    settings = TrainingSettings(
        num_steps=4, batch_size=16, log_every=1, validate_every=2, sample_every=2, checkpoint_every=2
    )
    training = Training(
        "ae", settings, model_files.find("ae").Config(width=8), Dataset.open(processed_digits)
    )
    where = Environment(
        tmp_path, workers, storage=tmp_path / "storage", threads=1, device="cpu", price_per_hour=0.75
    )
    times = train(training, where, tmp_path / "model", tmp_path / "history", []).times
    count = 1 if workers == "auto" else workers
    assert (
        times["cost"] == pytest.approx(times["total"] / 3600 * count * 0.75)
        and times["price_per_hour"] == 0.75
    )
    assert all(times[key] > 0 for keys in PARTS.values() for key in keys) and ("communication" in times) == (
        count > 1
    )
    assert sum(_parts(times).values()) == pytest.approx(times["total"]) and _parts(times)["other"] > 0
    assert read_json(tmp_path / "history" / "times.json") == times
    (training.folder(where.storage) / "finished.json").unlink()
    free = train(
        training, replace(where, price_per_hour=None), tmp_path / "model", tmp_path / "history", []
    ).times
    assert "cost" not in free


def test_a_training_runs_on_a_machine_with_one_gpu(tmp_path, processed_digits, monkeypatch):
    """The whole path through Ray Train's in-process mode; only the computation itself stays on the CPU."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    devices = []
    monkeypatch.setattr(worker, "_device", lambda device: devices.append(device) or torch.device("cpu"))
    settings = TrainingSettings(num_steps=2, batch_size=16)
    training = Training(
        "ae", settings, model_files.find("ae").Config(width=8), Dataset.open(processed_digits)
    )
    where = Environment(tmp_path, storage=tmp_path / "storage", threads=1)
    train(training, where, tmp_path / "model", tmp_path / "history", [])
    assert devices == ["cuda"] and (tmp_path / "model/model.safetensors").is_file()


@pytest.mark.cluster
@pytest.mark.nightly
def test_ray_workers_start_where_the_path_of_python_has_a_blank(tmp_path, processed_digits):
    """Ray puts that path into a shell command."""
    environment = tmp_path / "an environment"
    environment.symlink_to(sys.prefix)
    script = f"""
from pipeline import environment
environment.prepare()
from pipeline.core import model_files
from pipeline.core.dataset import Dataset
from pipeline.core.settings import TrainingSettings
from pipeline.launch.training import Training, train
from tests.project import ROOT
settings = TrainingSettings(num_steps=2, batch_size=16)
data = Dataset.open(Path({str(processed_digits)!r}))
training = Training("ae", settings, model_files.find("ae").Config(width=8), data)
here = Path({str(tmp_path)!r})
where = environment.Environment(here, 1, storage=here / "storage", threads=1, device="cpu")
train(training, where, here / "model", here / "history", [])
"""
    command = [str(environment / "bin/python"), "-c", script]
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "DARKROOM_"))}
    done = subprocess.run(
        command, env={**clean, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "model/model.safetensors").is_file()
