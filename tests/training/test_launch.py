"""What a training says of its time, when all of it is Ray Train's and ours."""

from dataclasses import replace

import pytest
import torch

from pipeline.data.dataset import Dataset
from pipeline.environment import Environment
from pipeline.errors import BadInput
from pipeline.evaluation.report import PARTS, _parts
from pipeline.files import read_json
from pipeline.models import store
from pipeline.training.launch import Training, train
from pipeline.training.settings import TrainingSettings
from pipeline.training.step import Step


def test_a_batch_that_a_gpu_cannot_hold_is_refused_with_the_size_of_a_smaller_piece(tmp_path, processed_digits, monkeypatch):
    def exhausted(*given):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")

    settings = TrainingSettings(num_steps=4, batch_size=64)
    training = Training("ae", settings, store.find("ae").Config(width=8), Dataset.open(processed_digits))
    where = Environment(tmp_path, storage=tmp_path / "storage", threads=1, device="cpu", microbatch=48)
    monkeypatch.setattr(Step, "_accumulate", exhausted)
    with pytest.raises(BadInput, match="48 examples at once") as caught:
        train(training, where, tmp_path / "model", tmp_path / "history", [])
    assert "DARKROOM_MICROBATCH=24" in caught.value.remedy
    monkeypatch.undo()
    train(training, where, tmp_path / "model", tmp_path / "history", [])  # and in pieces it is trained


@pytest.mark.parametrize("workers", ["auto", pytest.param(2, marks=[pytest.mark.nightly, pytest.mark.cluster])])
def test_the_times_of_a_training_add_up_to_its_total_and_a_price_makes_them_a_cost(tmp_path, processed_digits, workers):
    settings = TrainingSettings(num_steps=4, batch_size=16, log_every=1, validate_every=2, sample_every=2, checkpoint_every=2)
    training = Training("ae", settings, store.find("ae").Config(width=8), Dataset.open(processed_digits))
    where = Environment(tmp_path, workers, storage=tmp_path / "storage", threads=1, device="cpu", price_per_hour=0.75)
    times = train(training, where, tmp_path / "model", tmp_path / "history", []).times
    count = 1 if workers == "auto" else workers
    assert times["cost"] == pytest.approx(times["total"] / 3600 * count * 0.75) and times["price_per_hour"] == 0.75
    assert all(times[key] > 0 for keys in PARTS.values() for key in keys) and ("communication" in times) == (count > 1)
    assert sum(_parts(times).values()) == pytest.approx(times["total"]) and _parts(times)["other"] > 0
    assert read_json(tmp_path / "history" / "times.json") == times
    (training.folder(where.storage) / "finished.json").unlink()
    free = train(training, replace(where, price_per_hour=None), tmp_path / "model", tmp_path / "history", []).times
    assert "cost" not in free
