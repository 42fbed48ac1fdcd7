"""Checkpoints and the metrics log are complete or absent."""

import json

import pytest
import torch

from pipeline.core.checkpoint import CheckpointStore
from pipeline.core.metrics_log import MetricsLog, read
from pipeline.divergence import check_finite
from pipeline.errors import DarkroomError


def state(value):
    return {"a": torch.full((50,), float(value)), "b/c": torch.tensor(value)}


def test_the_newest_checkpoint_is_loaded_and_only_two_are_kept(tmp_path):
    store = CheckpointStore(tmp_path)
    for step in (1, 2, 3):
        store.save(step, state(step))
    step, found = store.latest()
    assert step == 3 and torch.equal(found["a"], state(3)["a"]) and found["b/c"] == 3
    assert len(list(tmp_path.iterdir())) == 4


@pytest.mark.parametrize(
    "harm", ["cut", "flip", "empty", "gone", "note cut", "note empty", "note of another", "renamed"]
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(tmp_path, capsys, harm):
    store = CheckpointStore(tmp_path)
    store.save(1, state(1))
    store.save(2, state(2))
    path, note = tmp_path / "step-0000000002.safetensors", tmp_path / "step-0000000002.json"
    data = path.read_bytes()
    if harm == "cut":
        path.write_bytes(data[: len(data) // 2])
    elif harm == "flip":
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    elif harm == "empty":
        path.write_bytes(b"")
    elif harm == "gone":
        path.unlink()
    elif harm == "note cut":
        note.write_text(note.read_text()[:10])
    elif harm == "note empty":
        note.write_text("")
    elif harm == "renamed":  # as by a flipped bit: the step is part of the name
        path, note = (
            path.rename(tmp_path / "step-0000000003.safetensors"),
            note.rename(path.with_name("step-0000000003.json")),
        )
    else:
        note.write_text(json.dumps({"step": 2}))
    assert store.latest()[0] == 1
    assert str(path) in capsys.readouterr().err


def test_no_flipped_bit_of_a_checkpoints_json_changes_what_is_loaded(tmp_path, capsys):
    store = CheckpointStore(tmp_path)
    store.save(60, state(60))
    note = tmp_path / "step-0000000060.json"
    data = note.read_bytes()
    skipped = 0
    for place in range(8 * len(data)):
        harmed = bytearray(data)
        harmed[place // 8] ^= 1 << place % 8
        note.write_bytes(harmed)
        found = store.latest()  # a changed blank does no harm
        skipped += found is None
        assert found is None or (found[0] == 60 and torch.equal(found[1]["a"], state(60)["a"]))
    assert skipped > 8 * 64  # all bits of the digest
    assert capsys.readouterr().err.count("skipping the damaged checkpoint") == skipped


def test_no_checkpoint_is_none(tmp_path):
    assert CheckpointStore(tmp_path / "absent").latest() is None


def test_a_write_that_fails_keeps_the_last_checkpoint_and_leaves_no_temporary_file(tmp_path, monkeypatch):
    store = CheckpointStore(tmp_path)
    store.save(1, state(1))

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pipeline.files.os.replace", full_disk)
    with pytest.raises(OSError, match="No space"):
        store.save(2, state(2))
    assert store.latest()[0] == 1 and len(list(tmp_path.iterdir())) == 2


def test_a_step_is_logged_only_once(tmp_path):
    path = tmp_path / "metrics.jsonl"
    first = MetricsLog(path)
    first.add(10, {"loss": 1.0})
    first.add(20, {"loss": 0.5})
    before = path.read_bytes()
    again = MetricsLog(path)
    again.add(10, {"loss": 1.0})
    again.add(20, {"loss": 0.5})
    assert path.read_bytes() == before
    again.add(30, {"loss": 0.2})
    assert [line["step"] for line in read(path)] == [10, 20, 30]


def test_an_incomplete_line_is_removed_and_written_again(tmp_path):
    path = tmp_path / "metrics.jsonl"
    MetricsLog(path).add(10, {"loss": 1.0})
    with open(path, "a") as file:
        file.write('{"step": 20, "ti')
    assert [line["step"] for line in read(path)] == [10]
    MetricsLog(path).add(20, {"loss": 0.5})
    assert [line["step"] for line in read(path)] == [10, 20]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_value_that_is_not_finite_ends_the_training_with_its_name(tmp_path, value):
    with pytest.raises(DarkroomError, match=r"train/loss is -?(nan|inf) at step 3"):
        check_finite(3, {"train/loss": value})
