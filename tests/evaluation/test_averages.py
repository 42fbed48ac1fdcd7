import numpy as np
import pytest

from pipeline.evaluation import averages
from pipeline.evaluation.averages import Estimate


def test_the_mean_of_unequal_batches_is_not_the_mean_of_their_means():
    estimate = averages.mean([np.array([1.0, 1.0, 1.0]), np.array([5.0])])
    assert estimate.value == 2.0  # the mean of the means would be 3
    error = np.std([1, 1, 1, 5], ddof=1) / 2
    assert estimate.low == pytest.approx(2 - 1.959964 * error, abs=1e-5)


def test_the_interval_of_a_mean_covers_the_true_mean_in_95_percent():
    rng = np.random.default_rng(0)
    estimates = [averages.mean([rng.normal(3, 2, size=50)]) for _ in range(2000)]
    assert 0.93 < np.mean([estimate.low <= 3 <= estimate.high for estimate in estimates]) < 0.96


@pytest.mark.parametrize(
    ("hits", "count", "low", "high"),
    [
        (0, 10, 0.0, 0.27753),
        (10, 10, 0.72247, 1.0),
        (5, 10, 0.23659, 0.76341),
        (81, 263, 0.25525, 0.36621),
    ],  # Newcombe 1998, table I
)
def test_wilson_intervals_match_published_ones(hits, count, low, high):
    estimate = averages.proportion(np.arange(count) < hits)
    assert (estimate.value, estimate.low, estimate.high) == pytest.approx((hits / count, low, high), abs=1e-4)


def test_an_estimate_is_flat_json():
    assert Estimate(1.0, 0.5, 1.5).flat("fid") == {"fid": 1.0, "fid_low": 0.5, "fid_high": 1.5}
    assert Estimate(1.0, 0.5, 1.5).with_floor(np.float64(0.25)).flat("fid")["fid_floor"] == 0.25
