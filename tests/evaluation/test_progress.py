"""The progress of an evaluation, and the history of a training."""

import itertools
import re
from contextlib import nullcontext
from threading import Event
from types import SimpleNamespace

import pytest

from pipeline import progress
from pipeline.evaluation import history
from pipeline.evaluation.evaluate import applying
from tests.evaluation.conftest import (
    run,
    write_history,
)


def test_each_slow_part_prints_its_progress_and_its_time(dataset, tasks, tmp_path, monkeypatch, capsys):
    clock = itertools.count(step=11)
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    run(dataset, tasks, tmp_path)
    lines = capsys.readouterr().out.splitlines()
    for part in (
        "generated images",
        "features of reference images",
        "bootstrap",
        "kernel distance",
        "nearest neighbours",
    ):
        assert any(part in line for line in lines), part
    assert any(line.startswith("gan: bootstrap of the Fréchet distance: rounds, 9 of 10, ") for line in lines)
    assert any(re.fullmatch(r"gan: bootstrap of the Fréchet distance, \d+\.0 s", line) for line in lines)


def test_lines_of_progress_are_five_seconds_apart(monkeypatch, capsys):
    clock = itertools.count()
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: next(clock) / 2))
    bar = progress.Progress()
    bar.start("gan")
    assert list(bar.track(range(100), "batches", 100)) == list(range(100))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "gan: batches, 8 of 100, 4 s" and 10 <= len(lines) <= 12
    assert re.fullmatch(r"gan: batches, 5\d\.\d s", lines[-1])


@pytest.mark.parametrize("seconds, printed", [(0.4, []), (0.6, ["gan: batches, 1.2 s"])])
def test_the_time_of_a_part_is_printed_unless_it_is_short(seconds, printed, monkeypatch, capsys):
    clock = itertools.count()
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: next(clock) * seconds))
    bar = progress.Progress()
    bar.start("gan")
    assert list(bar.track(["only"], "batches: all", 1)) == ["only"]
    assert capsys.readouterr().out.splitlines() == printed


def test_a_part_without_lines_of_its_own_is_printed_after_a_while(monkeypatch):
    monkeypatch.setattr(progress, "SILENT_SECONDS", 0.0)
    monkeypatch.setattr(progress, "POLL_SECONDS", 0.001)
    bar, lines, printed = progress.Progress("cnn"), [], Event()
    monkeypatch.setattr(bar, "print", lambda text: (lines.append(text), printed.set()))
    with bar.part("explanation"):
        assert printed.wait(60)
    assert re.fullmatch(r"explanation, \d+ s so far", lines[0])


def test_a_part_with_lines_of_its_own_adds_none_and_silence_is_at_most_half_a_minute(monkeypatch, capsys):
    assert progress.SECONDS == 5 and progress.SILENT_SECONDS + progress.POLL_SECONDS < 30
    monkeypatch.setattr(progress, "POLL_SECONDS", 0.001)
    bar, polled = progress.Progress("cnn"), Event()
    now = [1000.0]
    clock = lambda: polled.set() or now[0]
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=clock))
    bar.start("cnn")
    with bar.part("explanation"):
        for _ in range(3):
            now[0] += 15
            bar.print("own")
            polled.clear()
            assert polled.wait(60)
    assert "so far" not in capsys.readouterr().out


def test_every_evaluator_is_such_a_part(dataset, tasks, tmp_path, monkeypatch):
    parts, expected = set(), set()
    monkeypatch.setattr(progress.PROGRESS, "part", lambda what: parts.add(what) or nullcontext())

    def recorded(model):
        found = applying(model)
        expected.update(each.evaluate.__module__.rpartition(".")[2] for each in found)
        return found

    monkeypatch.setattr("pipeline.evaluation.evaluate.applying", recorded)
    run(dataset, tasks, tmp_path)
    assert parts == expected and {"generation", "reconstruction", "membership"} <= parts


def test_a_history_is_read_by_step(tmp_path):
    write_history(tmp_path, range(1, 21))
    table = history.curves(tmp_path)
    assert table is not None and table["step"].tolist() == list(range(1, 21))
    assert list(history.samples(tmp_path, 4)) == [1, 7, 14, 20]
    assert history.curves(tmp_path / "none") is None and history.times(tmp_path / "none") == {}


def test_a_line_without_a_model_begins_with_the_part(capsys):
    progress.Progress().print("kernel distance, 2.0 s")
    assert capsys.readouterr().out == "kernel distance, 2.0 s\n"
