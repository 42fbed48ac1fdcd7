"""The path of a training with GPU workers, on a Ray that believes in two GPUs; tensors stay on the CPU."""

import os
from dataclasses import replace

import pytest
import ray
import torch

from pipeline.core import model_files
from pipeline.core.dataset import Dataset
from pipeline.core.settings import TrainingSettings
from pipeline.environment import Environment
from pipeline.errors import BadInput
from pipeline.files import read_json
from pipeline.launch import ray_train
from pipeline.launch.training import Training, train
from pipeline.process import start_ray
from tests.launch import fictitious_gpus
from tests.project import ROOT

pytestmark = pytest.mark.cluster


@pytest.fixture
def address(monkeypatch):
    """A Ray in this process with two CPUs and two GPUs, used like a cluster."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # its workers import the test's function
    start_ray("", num_cpus=2, num_gpus=2)
    yield ray.get_runtime_context().gcs_address
    ray.shutdown()


@pytest.mark.nightly
def test_workers_wait_for_gpus_and_then_each_has_one(tmp_path, processed_digits, address, monkeypatch, capfd):
    monkeypatch.setattr(ray_train, "train_worker", fictitious_gpus.train_worker)
    monkeypatch.setattr("ray.train.torch.TorchConfig", fictitious_gpus.Gloo)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)  # of the machine that starts the training
    settings = TrainingSettings(num_steps=2, batch_size=16, checkpoint_every=2, sample_every=2)
    training = Training(
        "ae", settings, model_files.find("ae").Config(width=8), Dataset.open(processed_digits)
    )
    where = Environment(
        tmp_path, "auto", "cuda", ray_address=address, storage=tmp_path / "storage", threads=1
    )
    for workers in (3, 9):
        with pytest.raises(BadInput, match=f"{workers} workers were requested, but the cluster has 2 GPUs"):
            train(training, replace(where, workers=workers), tmp_path / "model", tmp_path / "history", [])

    other = ray.remote(num_gpus=1)(type("Other", (), {"gpus": lambda self: ray.get_gpu_ids()})).remote()
    assert len(ray.get(other.gpus.remote(), timeout=60)) == 1
    folder, seen = training.folder(where.storage), []

    def release(folder):
        """A listener: after two seconds the other job ends."""
        if not seen:
            seen.append(list(folder.glob("worker-*.json")))
            ray.kill(other)

    times = train(training, where, tmp_path / "model", tmp_path / "history", [release]).times
    assert "1 of 2 GPUs are free on the cluster: waiting for other jobs to end" in capfd.readouterr().out
    assert seen == [[]]  # no worker had started before
    assert ray.is_initialized()  # the cluster stays up

    workers = [read_json(path) for path in sorted(folder.glob("worker-*.json"))]
    assert len(workers) == times["workers"] == 2
    assert sorted(worker["device"] for worker in workers) == ["cuda:0", "cuda:1"]
    for worker in workers:
        assert [f"cuda:{gpu}" for gpu in worker["gpus"]] == [worker["device"]]
        assert (
            worker["visible"] == "0,1"
        )  # Ray Train shows each worker the GPUs of all workers of its machine
        assert worker["resources"] == {"GPU": 1.0}
    assert os.getpid() not in {worker["process"] for worker in workers}
    assert times["device"] == workers[0]["device"].replace("cuda", "cpu") and times["threads"] == 1
    assert times["mode"] == f"cluster {address}" and read_json(tmp_path / "history/times.json") == times
    assert (tmp_path / "model/model.safetensors").is_file()
