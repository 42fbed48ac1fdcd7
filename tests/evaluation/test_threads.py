import time
import tracemalloc

import numpy as np
import pytest
import torch

from pipeline.evaluation.frechet import frechet
from pipeline.evaluation.kernel import kernel_distance, kernel_sums
from pipeline.evaluation.neighbours import neighbourhoods, radii
from pipeline.evaluation.threads import blocks, in_threads


def measured(samples, reference):
    near, nearest = neighbourhoods(samples, reference, radii(reference, 3), 3)
    kid = kernel_distance(samples, reference, kernel_sums(reference))
    return [frechet(samples, reference, 7, 0), kid, near, nearest.tolist()]


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr("pipeline.evaluation.threads.BLOCK_VALUES", 20_000)


def test_the_number_of_threads_changes_no_bit(small_blocks):
    random, before = np.random.default_rng(0), torch.get_num_threads()
    sets = random.normal(size=(300, 5)), random.normal(size=(400, 5))
    try:
        torch.set_num_threads(1)
        single = measured(*sets)
        torch.set_num_threads(4)
        assert measured(*sets) == single
    finally:
        torch.set_num_threads(before)


def test_memory_is_bounded_by_the_blocks(small_blocks):
    random = np.random.default_rng(0)
    sets = random.normal(size=(2000, 4)), random.normal(size=(3000, 4))
    measured(*(each[:50] for each in sets))  # imports
    tracemalloc.start()
    try:
        measured(*sets)
        assert tracemalloc.get_traced_memory()[1] < 6e6  # a whole matrix of distances takes 48 MB
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("rows, columns", [(1, 1), (5000, 7), (10, 10**9)])
def test_blocks_cover_all_rows(rows, columns):
    assert [row for part in blocks(rows, columns) for row in range(rows)[part]] == list(range(rows))


def test_results_are_in_order_and_items_are_drawn_only_a_few_ahead():
    drawn = []

    def items():
        for item in range(100):
            drawn.append(item)
            yield item

    def slow_first(item):
        time.sleep(0.05 if item == 0 else 0)
        return -item

    results = in_threads(slow_first, items(), "part", 100)
    assert next(results) == 0 and len(drawn) <= 2 * torch.get_num_threads() + 1
    assert list(results) == [-item for item in range(1, 100)]


def test_an_error_in_a_thread_is_raised():
    with pytest.raises(ZeroDivisionError):
        list(in_threads(lambda item: 1 // item, [1, 0, 1], "part", 3))
