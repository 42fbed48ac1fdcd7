"""Work on many items in threads."""

import itertools
import re
import threading
from types import SimpleNamespace

import pytest

from pipeline import progress
from pipeline.data import threads
from pipeline.data.threads import in_order


@pytest.fixture(autouse=True)
def two_cores(monkeypatch):
    monkeypatch.setattr(threads, "cpu_count", lambda: 2)


def test_results_are_in_order_and_only_a_few_are_in_memory():
    begun, others = [], threading.Event()

    def work(number):
        begun.append(number)
        if number == 0:  # it ends after those behind it
            assert others.wait(30)
        if number == 3:
            others.set()
        return number

    results = in_order(work, range(100), "items", "working: items")
    for expected, found in enumerate(results):
        assert found == expected
        assert len(begun) <= expected + 6  # those before it, itself, and two for each thread
    assert expected == 99


def test_an_error_is_raised_at_its_place():
    results = in_order(lambda number: 1 // (2 - number), range(5), "items", "working: items")
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_progress_is_printed(monkeypatch, capsys):
    clock = itertools.count()
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    assert list(in_order(str, range(12), "clips", "checking: clips")) == [str(number) for number in range(12)]
    lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"clips: checking: clips, \d+ of 12, \d+ s", lines[0])
    assert re.fullmatch(r"clips: checking, \d+\.0 s", lines[-1])
