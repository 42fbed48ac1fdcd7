"""What a training prints while it runs."""

import errno
import json

import pytest

from pipeline.launch import progress
from pipeline.tracking.system import SystemMetrics


@pytest.fixture
def clock(monkeypatch):
    """The time that the progress sees, in seconds."""
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_training_without_a_new_step_says_so_once_a_minute(tmp_path, clock, capsys):
    listener = progress.Progress("gan", 100, 10, has_workers=True)
    for _ in range(75):
        clock[0] += 2
        listener(tmp_path)
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(";")[0] for line in lines] == [
        "gan: no new step for 60 s",
        "gan: no new step for 120 s",
    ]
    assert "a Ray worker that does not answer is replaced after a minute" in lines[0]
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 5, "time": 1, "metrics": {}}) + "\n")
    for _ in range(29):
        clock[0] += 2
        listener(tmp_path)
    (line,) = capsys.readouterr().out.splitlines()
    assert "5/100" in line
    clock[0] += 60
    listener(tmp_path)
    assert capsys.readouterr().out.startswith("gan: no new step for 116 s")


def test_without_ray_workers_it_says_that_the_training_can_be_ended(tmp_path, clock, capsys):
    listener = progress.Progress("gan", 100, 10, has_workers=False)
    clock[0] += 60
    listener(tmp_path)
    assert "60 s; Ctrl-C ends the training, and the same command continues" in capsys.readouterr().out


def test_system_metrics_that_cannot_be_written_do_not_end_the_training(tmp_path, monkeypatch):
    def full(step, metrics):
        raise OSError(errno.ENOSPC, "No space left on device")

    sample = SystemMetrics()
    sample(tmp_path)
    monkeypatch.setattr(sample.log, "add", full)
    sample(tmp_path)
    assert sample.sampled_at > 0
