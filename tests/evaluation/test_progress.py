"""The progress of an evaluation, and the history of a training."""

import itertools
import re
from types import SimpleNamespace

import pytest

from pipeline import progress
from pipeline.evaluation import history
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


def test_a_history_is_read_by_step(tmp_path):
    write_history(tmp_path, range(1, 21))
    table = history.curves(tmp_path)
    assert table is not None and table["step"].tolist() == list(range(1, 21))
    assert list(history.samples(tmp_path, 4)) == [1, 7, 14, 20]
    assert history.curves(tmp_path / "none") is None and history.times(tmp_path / "none") == {}
