"""The order of the examples, and the learning-rate schedule."""

import numpy as np
import pytest

from pipeline.core.distributed import DistributedContext
from pipeline.core.lr_schedule import learning_rate_factor
from pipeline.core.sampler import BLOCKS_PER_SHARD, WINDOW_SHARDS, Sampler
from pipeline.core.settings import ScheduleSettings
from pipeline.errors import BadInput

LARGE = (64, 100, 7, 90, 64, 128, 33, 80, 71)  # shards, three windows of them


def test_the_warm_up_is_linear_and_ends_at_the_full_rate():
    schedule = ScheduleSettings(warmup_steps=4)
    assert [learning_rate_factor(schedule, step, 10) for step in (1, 2, 4, 5)] == [0.25, 0.5, 1.0, 1.0]


@pytest.mark.parametrize(("kind", "middle"), [("cosine", 0.55), ("linear", 0.55), ("constant", 1.0)])
def test_the_curves_go_from_one_to_final(kind, middle):
    schedule = ScheduleSettings(kind=kind, final=0.1)
    assert learning_rate_factor(schedule, 50, 100) == pytest.approx(middle)
    assert learning_rate_factor(schedule, 100, 100) == pytest.approx(1.0 if kind == "constant" else 0.1)


def test_an_epoch_shows_each_example_at_most_once_and_the_next_one_in_another_order():
    order = Sampler(seed=1, shard_sizes=(10,), batch_size=3)
    first = np.concatenate([order.indices(step) for step in (1, 2, 3)])
    second = np.concatenate([order.indices(step) for step in (4, 5, 6)])
    assert order.steps_per_epoch == 3 and len(set(first)) == 9 and len(set(second)) == 9
    assert first.tolist() != second.tolist()


def test_the_order_is_a_function_of_seed_and_step():
    assert Sampler(1, (50,), 5).indices(37).tolist() == Sampler(1, (50,), 5).indices(37).tolist()
    assert Sampler(1, (50,), 5).indices(1).tolist() != Sampler(2, (50,), 5).indices(1).tolist()


def test_a_batch_larger_than_the_split_is_refused_with_the_largest_possible():
    with pytest.raises(BadInput, match="at most 7"):
        Sampler(0, (3, 4), 8)


def epoch_of(order, epoch=0):
    return np.concatenate(
        [order.indices(epoch * order.steps_per_epoch + step) for step in range(1, order.steps_per_epoch + 1)]
    )


def test_the_order_of_one_shard_does_not_change_between_versions():
    order = Sampler(3, (12,), 5)
    assert [order.indices(step).tolist() for step in (1, 2, 3, 100)] == [
        [10, 3, 7, 4, 11],
        [6, 0, 1, 2, 9],
        [10, 11, 3, 4, 0],
        [4, 1, 6, 8, 5],
    ]


@pytest.mark.parametrize("sizes", [(12,) * WINDOW_SHARDS, (1, 40, 2, 5)])
def test_shards_that_fill_one_window_are_permuted_as_a_whole(sizes):
    assert epoch_of(Sampler(3, sizes, 1)).tolist() == epoch_of(Sampler(3, (sum(sizes),), 1)).tolist()


@pytest.mark.parametrize("sizes", [LARGE, (1,) * 9, (3, 1000, 1, 1, 1, 1, 1)])
def test_with_several_windows_each_row_also_comes_once_an_epoch(sizes):
    for epoch in (0, 1, 5):
        assert sorted(epoch_of(Sampler(2, sizes, 1), epoch)) == list(range(sum(sizes)))


def test_an_epoch_reads_one_window_after_the_other_and_mixes_the_rows_of_each():
    sizes = (128,) * 9
    blocks = epoch_of(Sampler(4, sizes, 1)).reshape(3, -1) // (128 // BLOCKS_PER_SHARD)
    windows = [set(window.tolist()) for window in blocks]
    # Each window has the size of at most WINDOW_SHARDS shards, and no block is in two windows.
    assert [len(window) for window in windows] == [3 * BLOCKS_PER_SHARD] * 3
    assert len(set.union(*windows)) == 9 * BLOCKS_PER_SHARD
    for window in blocks:
        assert np.count_nonzero(np.diff(window) < 0) > 100  # neither sorted nor block by block
        assert np.count_nonzero(np.diff(window) == 0) < 30
        assert len({block // BLOCKS_PER_SHARD for block in window.tolist()}) == 9  # from all shards


def test_batches_may_cross_from_one_window_to_the_next():
    rows = epoch_of(Sampler(2, LARGE, 1))
    batches = Sampler(2, LARGE, 50)
    assert epoch_of(batches).tolist() == rows[: batches.steps_per_epoch * 50].tolist()
    assert Sampler(2, LARGE, 600).indices(1).tolist() == rows[:600].tolist()


def test_steps_can_be_read_in_any_order_and_any_number_of_workers_share_their_rows():
    order = Sampler(2, LARGE, 32)
    steps = range(1, 3 * order.steps_per_epoch)
    in_turn = [order.indices(step).tolist() for step in steps]
    assert [Sampler(2, LARGE, 32).indices(step).tolist() for step in reversed(steps)] == in_turn[::-1]
    for size in (1, 2, 3):
        shares = [order.indices(20)[slice(*DistributedContext(rank, size).rows(32))] for rank in range(size)]
        assert np.concatenate(shares).tolist() == in_turn[19]


def test_seeds_and_epochs_of_several_windows_differ_in_rows_and_in_what_shares_a_window():
    orders = [
        epoch_of(Sampler(2, LARGE, 1)),
        epoch_of(Sampler(3, LARGE, 1)),
        epoch_of(Sampler(2, LARGE, 1), epoch=1),
    ]
    firsts = [frozenset(order[:200].tolist()) for order in orders]
    assert len({tuple(order) for order in orders}) == len(set(firsts)) == 3


LABELS = np.repeat([4, 0, 9], [70, 25, 5])  # classes of a skewed split


def balanced(batch_size=10, seed=1, labels=LABELS):
    return Sampler(seed, (60, len(labels) - 60), batch_size, labels)


def test_a_balanced_epoch_has_the_same_share_of_each_class_and_shows_as_many_rows_as_it_can():
    rows = epoch_of(balanced())
    assert len(rows) == 100
    counts = np.bincount(rows, minlength=100)
    times = {label: counts[np.equal(LABELS, label)] for label in (0, 4, 9)}
    assert all(32 <= shown.sum() <= 34 for shown in times.values())
    assert times[4].max() == 1  # a large class: none of its rows twice
    assert times[0].min() >= 1 and times[9].min() >= 6 and times[9].max() <= 7  # others: each row as often
    assert np.count_nonzero(np.diff(LABELS[rows]) == 0) < 50  # mixed


def test_balanced_epochs_differ_and_show_all_rows_of_a_large_class_in_time():
    order = balanced()
    epochs = [epoch_of(order, epoch) for epoch in range(10)]
    assert len({tuple(rows) for rows in epochs}) == 10
    assert set(np.concatenate(epochs)) == set(range(100))
    assert epoch_of(balanced(seed=2)).tolist() != epochs[0].tolist()


def test_balanced_steps_can_be_read_in_any_order_and_any_number_of_workers_share_their_rows():
    steps = range(1, 31)
    in_turn = [balanced().indices(step).tolist() for step in steps]
    other = balanced(labels=LABELS[::-1])  # is not taken for it, although seed and sizes are the same
    again = []
    for step in reversed(steps):
        other.indices(step)
        again.append(balanced().indices(step).tolist())
    assert again == in_turn[::-1]
    for size in (1, 2, 3):
        shares = [
            balanced().indices(7)[slice(*DistributedContext(rank, size).rows(10))] for rank in range(size)
        ]
        assert np.concatenate(shares).tolist() == in_turn[6]


def test_a_balanced_epoch_of_even_classes_is_a_permutation():
    assert sorted(epoch_of(balanced(5, labels=np.arange(90) % 3))) == list(range(90))
