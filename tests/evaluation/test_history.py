"""The history of a training is checked before its numbers and pictures are used."""

import json

import pytest

from pipeline.errors import DarkroomError
from pipeline.evaluation import history
from pipeline.launch.training import _write_outputs

FILES = ["metrics.jsonl", "times.json", "samples/step-00000001.png", "sha256.json"]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "training/samples").mkdir(parents=True)
    (tmp_path / "training/model").mkdir()
    line = {"step": 1, "time": 1, "metrics": {"validation/accuracy": 0.75}}
    (tmp_path / "training/metrics.jsonl").write_text(json.dumps(line) + "\n")
    (tmp_path / "training/samples/step-00000001.png").write_bytes(b"picture")
    _write_outputs(tmp_path / "training", tmp_path / "models/cnn", tmp_path / "history/cnn", {"total": 1.5})
    return tmp_path / "history/cnn"


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("place", [2, -3])
def test_a_flipped_bit_is_named(folder, name, place):
    history.check(folder)
    data = bytearray((folder / name).read_bytes())
    data[place] ^= 1
    (folder / name).write_bytes(data)
    with pytest.raises(DarkroomError, match=r"history/cnn/.*: does not match sha256.json\n  -> restore it"):
        history.check(folder)


def test_a_missing_or_additional_file_is_named_and_an_older_history_accepted(folder):
    (folder / "more").touch()
    with pytest.raises(DarkroomError, match="history/cnn/more"):
        history.check(folder)
    (folder / "more").unlink()
    (folder / "times.json").unlink()
    with pytest.raises(DarkroomError, match=r"history/cnn/times\.json"):
        history.check(folder)
    (folder / "sha256.json").unlink()
    history.check(folder)
