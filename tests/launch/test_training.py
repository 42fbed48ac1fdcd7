"""Trainings in process: their times, memory errors and GPUs."""

import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from ray.core.generated.common_pb2 import ActorDiedErrorContext
from ray.exceptions import ActorDiedError, OutOfMemoryError
from ray.train import WorkerGroupError
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError, WorkerHealthCheckTimeoutError
from safetensors import SafetensorError

from pipeline.core import model_files
from pipeline.core.dataset import Dataset
from pipeline.core.settings import TrainingSettings
from pipeline.core.step import Step
from pipeline.environment import Environment
from pipeline.errors import BadInput, DarkroomError
from pipeline.evaluation.report import PARTS, _parts
from pipeline.files import read_json
from pipeline.launch import ray_train, worker
from pipeline.launch import training as training_module
from pipeline.launch.training import Training, train
from pipeline.limits import LESS_MEMORY
from tests.project import ROOT

TOO_LARGE = "train-ae: 16 examples at once do not fit into the memory of cpu (2.0 GiB)"
# The beginning of a message of Ray 2.60.
RAYS_MESSAGE = """1 worker(s) were killed due to the node running low on memory. Memory on the node
(IP: 127.0.0.1, ID: be9d) was 22.61GB used / 23.54GB limit (0.960)
OOM kill reason: ..."""


@pytest.fixture
def digits(processed_digits):
    settings = TrainingSettings(num_steps=4, batch_size=16)
    return Training("ae", settings, model_files.find("ae").Config(width=8), Dataset.open(processed_digits))


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


def test_more_workers_than_a_batch_has_examples_are_refused_before_ray_starts(digits, tmp_path, monkeypatch):
    monkeypatch.setattr(training_module, "plan_resources", None)
    where = Environment(tmp_path, workers=17, storage=tmp_path / "storage", device="cpu")
    with pytest.raises(BadInput, match="17 workers cannot share a batch of 16\n  -> use at most 16 workers"):
        train(digits, where, None, None, [])


def fail_with(error):
    def fail(*given):
        raise error

    return fail


@pytest.mark.parametrize(
    ("error", "reported"),
    [
        (
            RuntimeError(
                "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9"
            ),
            f"{TOO_LARGE}\n  -> DARKROOM_MICROBATCH=8",
        ),
        (MemoryError(), TOO_LARGE),
        (RuntimeError("other"), "train-ae: the training failed: RuntimeError: other"),
        (ArithmeticError("no number"), "train-ae: the training failed: ArithmeticError"),
    ],
)
def test_a_lack_of_memory_is_told_from_other_errors(tmp_path, digits, monkeypatch, error, reported):
    monkeypatch.setattr(Step, "_accumulate", fail_with(error))
    monkeypatch.setattr(worker, "memory_limit", lambda: 2 * 2**30)
    where = Environment(tmp_path, storage=tmp_path / "storage", threads=1, device="cpu")
    with pytest.raises(DarkroomError) as caught:
        train(digits, where, tmp_path / "model", tmp_path / "history", [])
    assert str(caught.value).startswith(reported)


def died(message="Worker exit type: SYSTEM_ERROR"):
    context = ActorDiedErrorContext(error_message=message, actor_id=b"\0" * 16, class_name="RayTrainWorker")
    return WorkerHealthCheckFailedError(
        "A worker health check failed.\nWorker info: Worker(\n)", ActorDiedError(context)
    )


# The beginnings of messages of Ray 2.60 and PyTorch 2.13.
HANGING = (
    "A worker health check has been hanging for 60.12 seconds. Marking the worker as dead.\nWorker info:"
)
GLOO = "[gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 300000ms for recv operation to complete"
FULL = "Error while serializing: I/O error: No space left on device (os error 28)"


@pytest.mark.parametrize(
    ("failures", "killed", "what", "remedy"),
    [
        (
            [died()],
            True,
            f"{ray_train.LOST_WORKER}; meanwhile the kernel ended a process because",
            LESS_MEMORY,
        ),
        ([died()], False, "the training failed: ActorDiedError: a worker's process or machine was lost", ""),
        (
            [RuntimeError("Connection closed by peer"), died()],
            True,
            f"{ray_train.LOST_WORKER}; meanwhile the kernel",
            LESS_MEMORY,
        ),
        ([RuntimeError("Connection closed by peer"), died()], False, "the training failed: ActorDied", ""),
        (
            [RuntimeError("other")],
            True,
            "the training failed: RuntimeError: other",
            "the same command continues",
        ),
        (
            [SafetensorError(FULL)],
            False,
            f"the training failed: SafetensorError: {FULL}",
            "free some space there",
        ),
        ([OSError(24, "Too many open files", "x")], False, "the training failed: OSError", "ulimit -n 4096"),
        (
            [WorkerHealthCheckFailedError("", OutOfMemoryError(RAYS_MESSAGE))],
            False,
            "Ray ended a worker because memory ran out (22.61GB used / 23.54GB limit)",
            LESS_MEMORY,
        ),
        ([RuntimeError("Connection closed"), BadInput("the cause")], False, "the cause", ""),
        (
            [RuntimeError("Connection closed"), WorkerHealthCheckTimeoutError(HANGING)],
            False,
            "the training failed: WorkerHealthCheckTimeoutError: a worker did not answer in time",
            "the same command continues",
        ),
        ([RuntimeError(GLOO)], False, "the training failed: RuntimeError: a worker did not answer", ""),
    ],
)
def test_the_error_of_a_killed_worker_names_memory_if_it_ran_out(failures, killed, what, remedy):
    error = WorkerGroupError("", dict(enumerate(failures)))
    found = ray_train._to_darkroom_error(error, "ae", killed)
    assert found.what.startswith(what) and remedy in found.remedy


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
    assert all(times[key] > 0 for keys in PARTS.values() for key in keys)
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
from pathlib import Path
from pipeline import environment
environment.prepare()
from pipeline.core import model_files
from pipeline.core.dataset import Dataset
from pipeline.core.settings import TrainingSettings
from pipeline.launch.training import Training, train
from pipeline.limits import LESS_MEMORY
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
