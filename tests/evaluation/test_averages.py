import json

import numpy as np
import pytest
from scipy.stats import binomtest

from pipeline.estimate import Estimate
from pipeline.evaluation import averages


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


@pytest.mark.parametrize("count", [1, 2, 359, 10_000])
def test_proportions_agree_with_scipy(count):
    for hits in {0, 1, count // 3, count - 1, count}:
        found, expected = averages.proportion(np.arange(count) < hits), binomtest(hits, count)
        assert found.value == expected.statistic
        interval = expected.proportion_ci(method="wilson")
        assert (found.low, found.high) == pytest.approx((interval.low, interval.high), rel=1e-12)


def test_a_ratio_of_sums_is_not_the_mean_of_ratios_and_leaves_out_empty_denominators():
    numerators = np.array([[1.0, 0, 2], [3, 0, 0]])
    denominators = np.array([[2.0, 0, 2], [6, 0, 6]])
    found = averages.ratio(numerators, denominators, 50, 0)
    assert found.value == pytest.approx((4 / 8 + 2 / 8) / 2)
    assert found.low < found.value < found.high
    assert found == averages.ratio(numerators, denominators, 50, 0)
    assert np.isnan(averages.ratio(numerators[:, 1], denominators[:, 1], 2, 0).value)


def test_rounds_of_a_ratio_without_a_denominator_are_left_out_of_its_interval():
    found = averages.ratio(np.array([0.5, 0, 0, 0]), np.array([1.0, 0, 0, 0]), 50, 0)
    assert (found.value, found.low, found.high) == (0.5, 0.5, 0.5)
    assert averages.ratio(np.ones(1), np.ones(1), 1, 0).high == 1  # one round has no deviation


def test_the_interval_of_a_ratio_has_the_spread_of_new_samples():
    rng = np.random.default_rng(0)

    def drawn():
        below = rng.uniform(1, 3, size=(200, 2))
        return averages.ratio(below * rng.uniform(0, 1, size=(200, 2)), below, 100, 0)

    estimates = [drawn() for _ in range(200)]
    spread = np.std([estimate.value for estimate in estimates])
    assert np.mean([estimate.half_width / averages.Z for estimate in estimates]) == pytest.approx(
        spread, rel=0.2
    )


def test_an_estimate_is_the_same_after_json_and_has_flat_names_in_mlflow():
    estimate = Estimate(1.0, 0.5, 1.5).with_floor(np.float64(0.25))
    assert estimate.to_json() == {"value": 1.0, "low": 0.5, "high": 1.5, "floor": 0.25}
    numbers = json.loads(json.dumps({"fid": estimate.to_json(), "kid": Estimate(2.0).to_json()}))
    assert Estimate.read(numbers) == {"fid": estimate, "kid": Estimate(2.0)}
    assert estimate.metrics("fid") == {"fid": 1.0, "fid_low": 0.5, "fid_high": 1.5, "fid_floor": 0.25}
    assert Estimate(2.0).metrics("kid") == {"kid": 2.0} and Estimate(2.0).half_width == 0


def test_numbers_in_the_form_of_an_earlier_version_are_left_out():
    assert Estimate.read({"fid": 1.0, "fid_low": 0.5, "kid": {"mean": 1.0}, "psnr": {"value": 2.0}}) == {
        "psnr": Estimate(2.0)
    }
