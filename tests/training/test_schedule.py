"""Which examples a step sees, and at what share of the learning rate."""

import numpy as np
import pytest

from pipeline.errors import BadInput
from pipeline.training.schedule import Order, learning_rate_factor
from pipeline.training.settings import ScheduleSettings


def test_the_warm_up_is_linear_and_ends_at_the_full_rate():
    schedule = ScheduleSettings(warmup_steps=4)
    assert [learning_rate_factor(schedule, step, 10) for step in (1, 2, 4, 5)] == [0.25, 0.5, 1.0, 1.0]


@pytest.mark.parametrize(("kind", "middle"), [("cosine", 0.55), ("linear", 0.55), ("constant", 1.0)])
def test_the_curves_go_from_one_to_final(kind, middle):
    schedule = ScheduleSettings(kind=kind, final=0.1)
    assert learning_rate_factor(schedule, 50, 100) == pytest.approx(middle)
    assert learning_rate_factor(schedule, 100, 100) == pytest.approx(1.0 if kind == "constant" else 0.1)


def test_an_epoch_shows_each_example_at_most_once_and_the_next_one_in_another_order():
    order = Order(seed=1, count=10, batch_size=3)
    first = np.concatenate([order.indices(step) for step in (1, 2, 3)])
    second = np.concatenate([order.indices(step) for step in (4, 5, 6)])
    assert order.steps_per_epoch == 3 and len(set(first)) == 9 and len(set(second)) == 9
    assert first.tolist() != second.tolist()


def test_the_order_is_a_function_of_seed_and_step():
    assert Order(1, 50, 5).indices(37).tolist() == Order(1, 50, 5).indices(37).tolist()
    assert Order(1, 50, 5).indices(1).tolist() != Order(2, 50, 5).indices(1).tolist()


def test_a_batch_larger_than_the_split_is_refused_with_the_largest_possible():
    with pytest.raises(BadInput, match="at most 7"):
        Order(0, 7, 8)
