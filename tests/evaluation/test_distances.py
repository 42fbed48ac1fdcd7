import numpy as np
import pytest
from scipy.linalg import sqrtm
from scipy.spatial.distance import cdist

from pipeline.evaluation.averages import auroc
from pipeline.evaluation.frechet import distance, frechet, moments
from pipeline.evaluation.kernel import kernel_distance, kernel_sums
from pipeline.evaluation.neighbours import neighbourhoods, radii

RNG = np.random.default_rng(0)


def gaussians(count=400, dimensions=6, shift=0.0, seed=1):
    rng = np.random.default_rng(seed)
    return (
        rng.normal(size=(count, dimensions)) @ np.random.default_rng(9).normal(size=(dimensions, dimensions))
        + shift
    )


# the Fréchet distance


def test_equal_sets_have_no_frechet_distance():
    vectors = gaussians()
    assert frechet(vectors, vectors, 2, 0).value == pytest.approx(0, abs=1e-6)


def test_gaussians_of_known_means_and_diagonal_covariances_match_the_formula():
    mean1, mean2, variance1, variance2 = (RNG.uniform(0.5, 2, size=8) for _ in range(4))
    expected = ((mean1 - mean2) ** 2).sum() + ((np.sqrt(variance1) - np.sqrt(variance2)) ** 2).sum()
    assert distance((mean1, np.diag(variance1)), (mean2, np.diag(variance2))) == pytest.approx(
        expected, rel=1e-12
    )


def test_frechet_distance_agrees_with_the_matrix_square_root():
    first, second = gaussians(seed=1), gaussians(shift=0.5, seed=2) * 1.3
    (mean1, covariance1), (mean2, covariance2) = moments(first), moments(second)
    expected = ((mean1 - mean2) ** 2).sum() + np.trace(
        covariance1 + covariance2 - 2 * np.real(sqrtm(covariance1 @ covariance2))
    )
    assert frechet(first, second, 2, 0).value == pytest.approx(expected, rel=1e-6)


def test_frechet_distance_is_symmetric_and_invariant_under_rotation_and_shift():
    first, second = gaussians(seed=1), gaussians(shift=0.5, seed=2)
    rotation = np.linalg.qr(RNG.normal(size=(6, 6)))[0]
    value = frechet(first, second, 2, 0).value
    assert frechet(first @ rotation + 100, second @ rotation + 100, 2, 0).value == pytest.approx(
        value, rel=1e-9
    )
    assert frechet(second, first, 2, 0).value == pytest.approx(value, rel=1e-9)


@pytest.mark.parametrize("constant", [0, 8])
@pytest.mark.parametrize("count", [5, 400])
def test_frechet_distance_of_singular_covariances_is_exact(count, constant):
    first, second = (gaussians(count, 20, seed=seed) for seed in (1, 2))
    first[:, :constant] = second[:, :constant] = 0  # features that no image activates
    deviations = [(each - each.mean(axis=0)) / np.sqrt(count - 1) for each in (first, second)]
    shared = np.linalg.svd(deviations[0] @ deviations[1].T, compute_uv=False).sum()  # tr (C1 C2)^(1/2)
    squares = sum((each**2).sum() for each in deviations)
    expected = ((first.mean(axis=0) - second.mean(axis=0)) ** 2).sum() + squares - 2 * shared
    assert frechet(first, second, 2, 0).value == pytest.approx(expected, rel=1e-11)
    assert frechet(second, first, 2, 0).value == pytest.approx(expected, rel=1e-11)


def test_moments_with_counts_are_those_of_the_repeated_set():
    vectors, counts = gaussians(count=5), np.array([2.0, 0, 1, 0, 2])
    mean, covariance = moments(vectors, counts)
    repeated = np.repeat(vectors, counts.astype(int), axis=0)
    assert mean == pytest.approx(repeated.mean(axis=0))
    assert covariance == pytest.approx(np.cov(repeated.T))


def test_the_bootstrap_interval_is_seeded_contains_the_value_and_has_the_spread_of_new_samples():
    estimate = frechet(gaussians(shift=1), gaussians(seed=3), 100, 0)
    assert estimate == frechet(gaussians(shift=1), gaussians(seed=3), 100, 0)
    assert estimate.low < estimate.value < estimate.high
    fresh = [
        frechet(gaussians(shift=1, seed=10 + 2 * draw), gaussians(seed=11 + 2 * draw), 2, 0).value
        for draw in range(100)
    ]
    assert (estimate.high - estimate.low) / (2 * 1.96) == pytest.approx(np.std(fresh), rel=0.35)


# the kernel distance


def brute_kid(first, second):
    def k(x, y):
        return (x @ y / len(x) + 1) ** 3

    def within(points):
        return np.mean([k(x, y) for i, x in enumerate(points) for j, y in enumerate(points) if i != j])

    return within(first) + within(second) - 2 * np.mean([k(x, y) for x in first for y in second])


def kid(first, second):
    return kernel_distance(first, second, kernel_sums(second))


def test_kernel_distance_matches_brute_force_and_its_interval_the_jackknife_by_omission():
    first, second = RNG.normal(size=(7, 3)), RNG.normal(size=(5, 3)) + 1
    estimate = kid(first, second)
    assert estimate.value == pytest.approx(brute_kid(first, second), rel=1e-10)
    variance = 0.0
    for omitted in (
        [brute_kid(np.delete(first, row, 0), second) for row in range(7)],
        [brute_kid(first, np.delete(second, row, 0)) for row in range(5)],
    ):
        variance += (len(omitted) - 1) * np.var(omitted)
    assert estimate.high - estimate.value == pytest.approx(1.959964 * np.sqrt(variance), rel=1e-6)


def test_kernel_distance_in_chunks_is_the_same(monkeypatch):
    first, second = gaussians(50), gaussians(31, seed=2)
    whole = kid(first, second)
    monkeypatch.setattr("pipeline.evaluation.threads.BLOCK_VALUES", 7 * 31)
    parts = kid(first, second)
    assert (parts.value, parts.low) == pytest.approx((whole.value, whole.low), rel=1e-9)


def test_kernel_distance_is_unbiased_and_its_interval_covers_the_true_value():
    estimates = [
        kid(gaussians(60, seed=2 * draw + 20), gaussians(60, seed=2 * draw + 21)) for draw in range(300)
    ]
    values = np.array([estimate.value for estimate in estimates])
    assert abs(values.mean()) < 3 * values.std() / np.sqrt(len(values))
    assert np.mean([estimate.low <= 0 <= estimate.high for estimate in estimates]) > 0.9
    assert kid(gaussians(60), gaussians(60, shift=3, seed=2)).low > 0


# neighbours


def brute_prdc(samples, reference, k):
    real, made, between = cdist(reference, reference), cdist(samples, samples), cdist(samples, reference)
    real_ball = np.array([sorted(row)[k] for row in real])
    made_ball = np.array([sorted(row)[k] for row in made])
    precision = np.mean(
        [any(between[i, j] <= real_ball[j] for j in range(len(reference))) for i in range(len(samples))]
    )
    recall = np.mean(
        [any(between[i, j] <= made_ball[i] for i in range(len(samples))) for j in range(len(reference))]
    )
    density = sum(
        between[i, j] <= real_ball[j] for i in range(len(samples)) for j in range(len(reference))
    ) / (k * len(samples))
    coverage = np.mean(
        [any(between[i, j] <= real_ball[j] for i in range(len(samples))) for j in range(len(reference))]
    )
    return {"precision": precision, "recall": recall, "density": density, "coverage": coverage}


def measured(samples, reference, k=3):
    return {
        name: estimate.value
        for name, estimate in neighbourhoods(samples, reference, radii(reference, k), k)[0].items()
    }


@pytest.mark.parametrize("shift", [0.0, 0.7, 2.0])
def test_precision_recall_density_and_coverage_match_brute_force(shift, monkeypatch):
    monkeypatch.setattr("pipeline.evaluation.threads.BLOCK_VALUES", 16 * 70)
    samples, reference = gaussians(50, shift=shift), gaussians(70, seed=5)
    assert measured(samples, reference) == pytest.approx(brute_prdc(samples, reference, 3))


def test_identical_sets_score_one_and_far_sets_nothing():
    vectors = gaussians(80)
    same, far = measured(vectors, vectors), measured(vectors + 1000, vectors)
    assert (same["precision"], same["recall"], same["coverage"]) == (1, 1, 1)
    assert far == {"precision": 0, "recall": 0, "density": 0, "coverage": 0}


def test_a_generator_that_repeats_itself_has_precision_but_no_recall():
    reference = gaussians(200)
    collapsed = reference[:1] + 1e-3 * RNG.normal(size=(200, 6))
    scores = measured(collapsed, reference)
    assert scores["precision"] == 1
    assert scores["recall"] < 0.05 and scores["coverage"] < 0.2


def test_the_nearest_distance_is_the_nearest():
    samples, reference = gaussians(20), gaussians(30, seed=4)
    nearest = neighbourhoods(samples, reference, radii(reference, 3), 3)[1]
    assert nearest == pytest.approx(cdist(samples, reference).min(axis=1))


def test_memorisation_separates_copies_from_new_images():
    unseen = RNG.uniform(1, 2, size=300)
    assert auroc(np.zeros(300), unseen).value == 1
    assert auroc(np.full(300, 5.0), unseen).value == 0
    fresh = auroc(RNG.uniform(1, 2, size=300), unseen)
    assert fresh.low < 0.5 < fresh.high
    assert auroc(unseen, unseen).value == 0.5  # ties count half
