"""Drift is found and named, and there are no false alarms."""

from statistics import NormalDist

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from pipeline.errors import BadInput
from pipeline.evaluation.features import FeatureSpace
from pipeline.params import validate
from pipeline.retraining.drift import (
    MINIMUM,
    Drift,
    DriftSettings,
    Sample,
    discrepancy,
    holm,
    measure,
    observe,
    statistics_of,
)

NAMES = ("cat", "dog", "owl")
SETTINGS = DriftSettings()


def draw(random, count, mix=(0.5, 0.5), shift=0.0, brighter=0.0):
    """Gaussian features and brightness whose means depend on the class, as real ones do."""
    labels = random.choice(len(mix), count, p=mix)
    features = random.normal(size=(count, 3)) + 2.0 * labels[:, None]
    features[:, 0] += shift
    statistics = pd.DataFrame({"brightness": random.normal(size=count) + labels + brighter})
    return Sample(features, statistics, labels)


def compare(settings=SETTINGS, reference=400, fresh=200, seed=1, **change) -> Drift:
    random = np.random.default_rng(seed)
    return measure(draw(random, reference), draw(random, fresh, **change), settings, seed, NAMES)


def alarms(drift: Drift) -> list[str]:
    assert drift.alarm == any(test.alarm for test in drift.tests)
    return [test.name for test in drift.tests if test.alarm]


def by_name(drift: Drift):
    return {test.name: test for test in drift.tests}


def shared(shift: float) -> float:
    """The total variation distance of two unit Gaussians ``shift`` apart."""
    return 2 * NormalDist().cdf(shift / 2) - 1


def test_holm_agrees_with_an_example_worked_by_hand():
    # ascending: 4 * 0.005, 3 * 0.01, 2 * 0.03, then 1 * 0.04, raised to the 0.06 before it
    assert holm(np.array([0.01, 0.04, 0.03, 0.005])) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm(np.array([0.9, 0.8])) == pytest.approx([1.0, 1.0])


def test_the_discrepancy_of_equal_sets_is_zero_and_of_two_points_is_known():
    points = np.random.default_rng(0).normal(size=(7, 1))
    twice = np.concatenate([points, points])
    weights = np.repeat([1 / 7, -1 / 7], 7)[:, None]
    assert discrepancy(np.exp(-((twice - twice.T) ** 2) / 2), weights) == pytest.approx(0.0, abs=1e-15)
    assert discrepancy(np.array([[1.0, 0.3], [0.3, 1.0]]), np.array([[1.0], [-1.0]])) == pytest.approx(
        2 - 2 * 0.3
    )


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({}, []),
        ({"shift": 1.5}, ["features"]),
        ({"brighter": 1.5}, ["brightness"]),
        ({"mix": (0.85, 0.15)}, ["class mix"]),  # although features and brightness depend on the class
        ({"mix": (0.85, 0.15), "shift": 1.5}, ["features", "class mix"]),
        ({"mix": (0.85, 0.15), "brighter": 1.5}, ["brightness", "class mix"]),
    ],
)
def test_an_alarm_names_what_drifted_and_nothing_else(change, found, seed):
    drift = compare(seed=seed, **change)
    assert alarms(drift) == found
    assert drift.sentence == (
        f"drift in {', '.join(found)}" if found else "no drift in 3 tests of 200 new pictures"
    )


def test_effects_are_the_share_of_pictures_that_differ():
    found = by_name(compare(SETTINGS, 1200, 1200, mix=(1.0, 0.0), shift=1.0, brighter=0.5))
    assert found["features"].effect == pytest.approx(shared(1.0), abs=0.07)
    assert found["brightness"].effect == pytest.approx(shared(0.5), abs=0.07)
    assert found["class mix"].effect == pytest.approx(0.5, abs=0.05)


def test_the_effect_on_features_is_not_inflated_by_a_small_batch():
    settings = DriftSettings(level=0.12, num_permutations=100)
    effects = [by_name(compare(settings, fresh=30, seed=seed))["features"].effect for seed in range(20)]
    assert np.median(effects) < 0.05


def test_p_values_are_uniform_without_drift_whatever_the_class_mix():
    settings = DriftSettings(level=0.12, num_permutations=100)
    found = [by_name(compare(settings, 40, 25, seed, mix=(0.8, 0.2))) for seed in range(120)]
    for name in ("features", "brightness"):
        assert stats.kstest([tests[name].p_value for tests in found], "uniform").pvalue > 0.01, name
    quiet = [by_name(compare(settings, 40, 25, seed))["class mix"].p_value for seed in range(120)]
    # There are few distinct tables: at most the level, 0.2, plus three standard errors.
    assert np.mean(np.array(quiet) <= 0.2) < 0.3


def test_no_p_value_is_zero_and_correction_only_raises():
    for test in compare(shift=5.0, brighter=5.0, mix=(0.1, 0.9)).tests:
        assert test.p_value == pytest.approx(1 / 2001)
        assert test.adjusted_p_value == pytest.approx(3 / 2001)


def test_a_small_drift_is_reported_without_an_alarm():
    for least, found, verdict in ((0.0, ["brightness"], "drift"), (0.3, [], "significant, but small")):
        drift = compare(DriftSettings(minimum_effect=least), brighter=0.6)
        assert alarms(drift) == found and by_name(drift)["brightness"].adjusted_p_value <= 0.01
        assert by_name(drift)["brightness"].sentence.startswith(f"{verdict}: brightness 1.")


def test_sentences_contain_the_numbers():
    random = np.random.default_rng(0)
    reference, fresh = draw(random, 100, (1.0,)), draw(random, 50, (1.0,))
    reference.statistics["brightness"], fresh.statistics["brightness"] = 0.25, 0.5
    reference.labels[:50] = 1
    brightness, mix = measure(reference, fresh, SETTINGS, 0, NAMES).tests[1:]
    assert brightness.sentence == (
        "drift: brightness 0.5 on average, 0.25 in the reference; 100 % apart, p 0.0015 corrected for 3 tests"
    )
    assert mix.sentence.startswith(
        "drift: 'cat' is 100 % of the new pictures, 50 % of the reference; 50 % apart, p 0.0015"
    )


def test_the_same_pictures_and_seed_give_the_same_answer():
    random = np.random.default_rng(0)
    reference, fresh = draw(random, 100), draw(random, 60)
    first, again, other = (
        measure(reference, fresh, DriftSettings(max_samples=50), seed, NAMES) for seed in (3, 3, 4)
    )
    assert first.tests == again.tests != other.tests
    assert first.foreign == again.foreign


def test_the_most_foreign_pictures_come_first_even_beyond_the_subset():
    random = np.random.default_rng(0)
    reference, fresh = draw(random, 300), draw(random, 300)
    fresh.features[[7, 250, 299]] = [[30.0] * 3, [90.0] * 3, [60.0] * 3]
    drift = measure(reference, fresh, DriftSettings(max_samples=20, num_shown=3), 0, NAMES)
    assert drift.foreign == [250, 299, 7]


def test_equal_values_are_no_drift():
    random = np.random.default_rng(0)
    reference, fresh = draw(random, 50), draw(random, 50)
    reference.statistics["brightness"] = fresh.statistics["brightness"] = 0.5
    brightness = by_name(measure(reference, fresh, SETTINGS, 0, NAMES))["brightness"]
    assert brightness.effect == pytest.approx(0.0) and brightness.p_value == 1.0


@pytest.mark.parametrize(
    ("reference", "fresh", "what"), [(400, MINIMUM - 1, "19 new"), (MINIMUM - 1, 400, "19 reference")]
)
def test_too_few_pictures_are_not_measured(reference, fresh, what):
    drift = compare(SETTINGS, reference, fresh, shift=9.0)
    assert drift.sentence == f"not measured: {what} pictures, at least 20 are needed"
    assert not drift.alarm and not drift.tests and not drift.foreign
    assert compare(SETTINGS, 400, MINIMUM, shift=9.0).alarm


def test_a_class_that_the_reference_lacks_only_enters_the_class_mix_test():
    assert alarms(compare(mix=(0.4, 0.4, 0.2))) == ["class mix"]
    random = np.random.default_rng(0)
    reference, fresh = draw(random, 200), draw(random, 200)
    fresh.labels[:50] = -1  # of an unknown class
    assert alarms(found := measure(reference, fresh, SETTINGS, 0, NAMES)) == ["class mix"]
    assert "'no known class' is 25 % of the new pictures, 0 % of the reference" in found.tests[-1].sentence
    drift = compare(mix=(0.0, 0.0, 1.0))
    assert [test.name for test in drift.tests] == alarms(drift) == ["class mix"]
    assert "'owl' is 100 % of the new pictures, 0 % of the reference" in drift.tests[0].sentence


def test_features_that_are_not_finite_are_refused():
    random = np.random.default_rng(0)
    reference, fresh = draw(random, 50), draw(random, 50)
    fresh.features[3, 1] = np.nan
    with pytest.raises(BadInput, match="features of new pictures are not finite"):
        measure(reference, fresh, SETTINGS, 0, NAMES)


def test_settings_under_which_no_alarm_is_possible_are_refused():
    with pytest.raises(BadInput, match="num_permutations must be at least 12,000"):
        validate({"level": 0.001}, DriftSettings, where="drift")
    assert validate({"level": 0.001, "num_permutations": 12000}, DriftSettings, where="drift").level == 0.001


def test_statistics_match_values_worked_out_by_hand():
    flat = np.full((1, 1, 4, 4), 51, np.uint8)
    striped = np.tile(np.array([0, 255], np.uint8), (1, 1, 4, 2))
    found = statistics_of(np.concatenate([flat, striped]))
    assert list(found["brightness"]) == pytest.approx([0.2, 0.5])
    assert list(found["contrast"]) == pytest.approx([0.0, 0.5])
    assert list(found["sharpness"]) == pytest.approx(
        [0.0, 2.0]
    )  # along rows |0 - 2 * 1 + 0|, along columns 0
    assert "warmth" not in found
    red = np.zeros((1, 3, 4, 4), np.uint8)
    red[:, 0] = 255
    warmth = statistics_of(np.concatenate([red, red[:, ::-1]]))["warmth"]
    assert list(warmth) == pytest.approx([1.0, -1.0])


def test_chunks_give_the_same_sample_as_all_pictures_at_once():
    random = np.random.default_rng(0)
    images, labels = random.integers(0, 256, (10, 3, 5, 5), dtype=np.uint8), np.arange(10)
    space = FeatureSpace("mean", "", lambda batch: batch.mean(dim=(2, 3)), torch.device("cpu"))
    once, chunked = (
        observe([(images, labels)], space),
        observe([(images[:7], labels[:7]), (images[7:], labels[7:])], space),
    )
    assert (
        once.features == pytest.approx(images.mean(axis=(2, 3)) / 255) and once.features.dtype == np.float64
    )
    assert np.array_equal(once.features, chunked.features) and np.array_equal(once.labels, chunked.labels)
    assert set(once.statistics) == {"brightness", "contrast", "sharpness", "warmth"}
    assert once.statistics.to_numpy() == pytest.approx(chunked.statistics.to_numpy())
