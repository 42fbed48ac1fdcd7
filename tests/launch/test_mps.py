"""Trainings on Apple's mps, without one: see fake_mps.py."""

import json

import pytest
import torch
from safetensors.torch import load_file

from pipeline.core import feed, model_files
from pipeline.core.dataset import Dataset
from pipeline.core.settings import TrainingSettings
from pipeline.core.step import Step
from pipeline.environment import Environment
from pipeline.errors import BadInput
from pipeline.launch import worker
from pipeline.launch.training import Training, train
from tests.launch.fake_mps import MPS, FakeMps
from tests.project import MODELS, PARAMS

SETTINGS = {
    "num_steps": 4,
    "batch_size": 16,
    "log_every": 1,
    "validate_every": 2,
    "sample_every": 2,
    "checkpoint_every": 2,
}
NOT_IMPLEMENTED = "The operator 'aten::foo' is not currently implemented for the MPS device. If you want this"


def training_of(name, data):
    config = model_files.find(name).Config.model_validate_json(json.dumps(PARAMS[name]["model"]))
    return Training(name, TrainingSettings(**SETTINGS), config, Dataset.open(data))


@pytest.fixture
def apple(monkeypatch):
    """A machine with mps. What only CUDA has is refused."""

    def refuse(*given):
        raise AssertionError("this is CUDA's")

    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", refuse)
    monkeypatch.setattr(torch.Tensor, "pin_memory", refuse)
    asked = []
    monkeypatch.setattr(worker, "_device", lambda name: asked.append(name) or MPS)
    return asked


@pytest.mark.parametrize("name", MODELS)
def test_a_model_trains_on_mps_as_on_the_cpu(tmp_path, processed_digits, apple, monkeypatch, name):
    training = training_of(name, processed_digits)
    with FakeMps():
        where = Environment(tmp_path, storage=tmp_path / "mps", threads=1)
        times = train(training, where, tmp_path / "model", tmp_path / "history", []).times
        assert apple == ["mps"] and times["device"] == "mps:0" and times["mode"] == "in process"
        # It resumes from a checkpoint, too.
        folder = training.folder(where.storage)
        for path in (folder / "checkpoints").glob("step-*4.*"):
            path.unlink()
        (folder / "finished.json").unlink()
        train(training, where, tmp_path / "resumed", tmp_path / "history", [])
    monkeypatch.undo()
    where = Environment(tmp_path, storage=tmp_path / "cpu", threads=1, device="cpu")
    train(training, where, tmp_path / "expected", tmp_path / "history", [])
    on_mps, resumed, on_cpu = (
        load_file(tmp_path / folder / "model.safetensors") for folder in ("model", "resumed", "expected")
    )
    for key, value in on_cpu.items():
        torch.testing.assert_close(on_mps[key], value, rtol=1e-4, atol=1e-5)  # other memory format
        assert torch.equal(on_mps[key], resumed[key])


def test_the_fake_device_refuses_what_mps_refuses():
    with FakeMps():
        tensor = torch.ones(2, device=MPS)
        assert tensor.device == MPS and torch.equal((tensor * 2).cpu(), torch.full((2,), 2.0))
        for operation in (tensor.double, lambda: tensor + torch.ones(2)):
            with pytest.raises((TypeError, RuntimeError), match=r"float64|tensors on mps:0 and cpu"):
                operation()
        with pytest.raises(AssertionError, match="freed"):
            torch.ones(2).to(MPS, non_blocking=True)
        with pytest.raises(AssertionError, match="slow"):
            torch.ones(2, 3, 4, 4).contiguous(memory_format=torch.channels_last).to(MPS)


def test_batches_are_read_on_demand(processed_digits, apple):
    data = Dataset.open(processed_digits)
    with FakeMps():
        batch = feed.make_feed(data.train, MPS, lambda step: [step, step + 1])(3)
        assert batch.images.device == MPS and len(batch) == 2


@pytest.mark.parametrize(
    ("error", "message", "remedy"),
    [
        (NotImplementedError(NOT_IMPLEMENTED), "aten::foo", "PYTORCH_ENABLE_MPS_FALLBACK=1"),
        (
            RuntimeError("MPS backend out of memory (MPS allocated: 9 GB, max allowed: 9 GB)."),
            "16 examples at once do not fit into the memory of mps:0",
            "DARKROOM_MICROBATCH=8",
        ),
    ],
)
def test_an_error_of_mps_names_the_remedy(
    tmp_path, processed_digits, apple, monkeypatch, error, message, remedy
):
    def fail(*given):
        raise error

    monkeypatch.setattr(Step, "_accumulate", fail)
    where = Environment(tmp_path, storage=tmp_path / "storage", threads=1)
    with FakeMps(), pytest.raises(BadInput) as caught:
        train(training_of("ae", processed_digits), where, tmp_path / "model", tmp_path / "history", [])
    assert message in caught.value.what and "GiB" not in caught.value.what
    assert remedy in caught.value.remedy
