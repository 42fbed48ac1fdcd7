"""Trainings that begin from other weights, need another model, or are ended by a listener."""

from dataclasses import replace

import pytest
import torch

from pipeline.core import metrics_log, model_files
from pipeline.core.dataset import Dataset
from pipeline.core.settings import TrainingSettings
from pipeline.environment import Environment
from pipeline.errors import BadInput, DarkroomError, TrainingStopped
from pipeline.files import sha256
from pipeline.launch import training as training_module
from pipeline.launch.training import Training, train

SETTINGS = TrainingSettings(
    num_steps=40, batch_size=16, log_every=4, validate_every=20, sample_every=40, checkpoint_every=4
)


@pytest.fixture
def run(tmp_path, processed_digits):
    """A function that trains a model to the folder models/<name>, and returns that folder."""
    data = Dataset.open(processed_digits)

    def run(name, config=None, settings=SETTINGS, needs=None, listeners=(), storage="storage", model=""):
        kind = model_files.find(name)
        training = Training(name, settings, kind.Config(**config or {}), data, needs or {})
        environment = Environment(tmp_path, storage=tmp_path / storage, threads=1, device="cpu")
        folder = tmp_path / "models" / (model or name)
        train(training, environment, folder, tmp_path / "history", list(listeners))
        return folder

    return run


def few_steps(**values):
    return SETTINGS.model_copy(update={"num_steps": 4, **values})


def test_a_training_begins_with_the_matching_tensors_of_another_model_and_lists_the_others(run, capsys):
    first = run("cnn", {"channels": (8, 8), "dense": (16,)}, few_steps())
    still = {"num_steps": 1, "initial_weights": str(first)}
    config = {"channels": (8, 8), "dense": (24,), "optimizer": {"learning_rate": 1e-12}}
    second = run("cnn", config, few_steps(**still), model="second")
    given, got = (model_files.load(folder).state_dict() for folder in (first, second))
    for name, value in got.items():
        same = given[name].shape == value.shape
        assert torch.allclose(given[name], value, atol=1e-6) if same else "dense" in name or "output" in name
    printed = capsys.readouterr().out
    assert f"initial weights: 5 of 8 tensors are from {first}" in printed
    assert "new: dense.0.bias" in printed.replace("network.", "") and "not used: " in printed


def test_other_initial_weights_are_another_training(run, tmp_path, processed_digits):
    first = run("cnn", {"channels": (8,), "dense": (8,)}, few_steps())
    plain, begun = (
        Training("cnn", few_steps(**more), model_files.find("cnn").Config(), Dataset.open(processed_digits))
        for more in ({}, {"initial_weights": str(first / "model.safetensors")})
    )
    assert plain.fingerprint != begun.fingerprint
    (first / "model.safetensors").write_bytes((first / "model.safetensors").read_bytes() + b" ")
    assert replace(begun, name="cnn").fingerprint != begun.fingerprint  # it is computed again


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (None, "cannot be read"),
        (b"no tensors", "is not a safetensors file"),
        ("ae", "no tensor has the name"),
    ],
    ids=["missing", "damaged", "another model"],
)
def test_initial_weights_that_cannot_be_used_are_refused(run, tmp_path, content, what):
    path = tmp_path / "given.safetensors"
    if content == "ae":
        path = run("ae", {"width": 8}, few_steps()) / "model.safetensors"
    elif content:
        path.write_bytes(content)
    with pytest.raises(BadInput, match=what) as caught:
        run("cnn", {"channels": (8,), "dense": (8,)}, few_steps(initial_weights=str(path)))
    assert str(path) in str(caught.value) and caught.value.remedy
    assert not (tmp_path / "models/cnn").exists()


def test_a_needed_model_is_used_unchanged_and_saved_with_the_model_that_needs_it(run, processed_digits):
    small = {"width": 8, "num_codes": 8}
    first = run("vqvae", small, few_steps())
    needing = run("transformer", {"width": 16}, few_steps(), {"vqvae": first})
    given, task = model_files.load(first), model_files.load(needing)
    assert all(torch.equal(value, given.state_dict()[key]) for key, value in task.vqvae.state_dict().items())
    images = torch.rand(3, 1, 8, 8)
    assert torch.equal(task.vqvae.tokens(images), given.tokens(images))
    assert model_files.read_card(needing)["needs"]["vqvae"]["config"]["num_codes"] == 8
    # Another autoencoder makes it another training; a damaged one is refused.
    data = Dataset.open(processed_digits)
    training = Training("transformer", SETTINGS, task.config, data, {"vqvae": first})
    other = run("vqvae", small, few_steps(seed=1), model="other")
    assert replace(training, needs={"vqvae": other}).fingerprint != training.fingerprint
    (other / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(DarkroomError, match="do not match the SHA-256"):
        run("transformer", {}, few_steps(), {"vqvae": other}, model="again")


def test_a_training_without_the_model_that_it_needs_is_refused_with_the_stage_to_run(run, tmp_path):
    with pytest.raises(BadInput, match="no trained model here") as caught:
        run("transformer", {}, few_steps(), {"vqvae": tmp_path / "models/vqvae"})
    assert "dvc repro train-vqvae" in caught.value.remedy


def test_a_listener_ends_a_training_which_can_be_continued_later(run, tmp_path, monkeypatch):
    monkeypatch.setattr(training_module, "POLL_SECONDS", 0.01)
    whole = sha256(run("ae", {"width": 8}, storage="whole") / "model.safetensors")
    logged = lambda folder: len(metrics_log.read(folder / "metrics.jsonl")) > 2
    with pytest.raises(TrainingStopped, match="stopped") as caught:
        run("ae", {"width": 8}, listeners=[lambda folder: None, logged], model="stopped")
    assert "continues from the last checkpoint" in caught.value.remedy
    assert not (tmp_path / "models/stopped").exists()
    (folder,) = (tmp_path / "storage/trainings").glob("ae-*/checkpoints")
    assert 4 <= max(int(path.stem.removeprefix("step-")) for path in folder.glob("*.json")) < 40
    assert sha256(run("ae", {"width": 8}, model="stopped") / "model.safetensors") == whole
