"""Statistical tests for drift between new pictures and a reference, each with an effect size.

Features of the champion: maximum mean discrepancy (Gretton et al. 2012, "A Kernel Two-Sample Test") with a
Gaussian kernel whose width is the median distance. Statistics of pixels: Kolmogorov-Smirnov distances. Class
mix: Pearson's chi-squared. The p-values come from permutations, are never zero (Phipson & Smyth 2010) and are
corrected by Holm's method (1979). All tests except that of the class mix permute within each class and weight
the reference to the class mix of the new pictures. So a change of the mix is reported by its own test only,
and does not hide another change.

The reference must be a random part of the champion's data on which it was not trained. Then the probability
of a false alarm for one batch is at most ``level``, on average over references.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from scipy.spatial.distance import pdist, squareform
from sklearn.neighbors import NearestNeighbors
from threadpoolctl import threadpool_limits

from pipeline.errors import BadInput
from pipeline.evaluation.distances import subset
from pipeline.evaluation.features import FeatureSpace
from pipeline.retraining.settings import MINIMUM, DriftSettings

NEIGHBOURS = 5
BLOCK = 500  # permutations at a time: bounded memory


@dataclass
class Sample:
    """The values of N pictures that are compared."""

    features: np.ndarray  # (N, D), float64
    statistics: dict[str, np.ndarray]  # each (N,), by name
    labels: np.ndarray  # (N,), int64

    def rows(self, chosen: np.ndarray) -> "Sample":
        """The pictures at the indices ``chosen``."""
        statistics = {name: values[chosen] for name, values in self.statistics.items()}
        return Sample(self.features[chosen], statistics, self.labels[chosen])


@dataclass
class Test:
    """One test of a batch."""

    name: str
    p_value: float
    effect: float  # a share of the pictures, see DriftSettings
    sentence: str
    adjusted_p_value: float = 1.0  # Holm's
    alarm: bool = False


@dataclass
class Drift:
    """The result of all tests of a batch.

    ``distances`` are those of the ``foreign`` pictures to the fifth nearest reference picture, divided by the
    median of the same distance within the reference.
    """

    sentence: str
    tests: list[Test] = field(default_factory=list)  # empty if nothing was measured
    alarm: bool = False
    foreign: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))  # indices, the farthest first
    distances: np.ndarray = field(default_factory=lambda: np.empty(0))


def observe(chunks: Iterable[tuple[np.ndarray, np.ndarray]], space: FeatureSpace) -> Sample:
    """The sample of all pictures in ``chunks`` (one or more): uint8 images (n, C, H, W) and labels (n,)."""
    parts = [
        Sample(space.vectors([torch.from_numpy(images).float() / 255]), statistics_of(images), labels)
        for images, labels in chunks
    ]
    statistics = {
        name: np.concatenate([part.statistics[name] for part in parts]) for name in parts[0].statistics
    }
    features, labels = (
        np.concatenate([getattr(part, name) for part in parts]) for name in ("features", "labels")
    )
    return Sample(features, statistics, labels)


def statistics_of(images: np.ndarray) -> dict[str, np.ndarray]:
    """Statistics (N,) of uint8 images (N, C, H, W) scaled to [0, 1]. "warmth" is red minus blue."""
    pixels = images.astype(np.float64) / 255
    second = [np.abs(np.diff(pixels, 2, axis=axis)).mean(axis=(1, 2, 3)) for axis in (2, 3)]
    found = {
        "brightness": pixels.mean(axis=(1, 2, 3)),
        "contrast": pixels.std(axis=(1, 2, 3)),
        "sharpness": second[0] + second[1],
    }
    if images.shape[1] == 3:
        found["warmth"] = (pixels[:, 0] - pixels[:, 2]).mean(axis=(1, 2))
    return found


@threadpool_limits.wrap(limits=1)  # with more threads the order of summation, and so the rounding, varies
def measure(
    reference: Sample, fresh: Sample, settings: DriftSettings, seed: int, class_names: Sequence[str]
) -> Drift:
    """Compare ``fresh`` with ``reference``. The same samples and seed give the same result.

    Classes that the reference lacks, and the label -1 of an unknown class, only enter the class mix test.
    Raises ``BadInput`` for features that are not finite.
    """
    for what, sample in (("new", fresh), ("reference", reference)):
        if len(sample.labels) < MINIMUM:
            return Drift(f"not measured: {len(sample.labels)} {what} pictures, at least {MINIMUM} are needed")
        if not np.isfinite(sample.features).all():
            finding = f"features of {what} pictures are not finite"
            raise BadInput(finding, where="drift", remedy="train the classifier again")
    names = [*class_names, "no known class"]
    reference, fresh = (replace(sample, labels=sample.labels % len(names)) for sample in (reference, fresh))
    random, count = np.random.default_rng(seed), settings.num_permutations
    known = reference.rows(subset(len(reference.labels), settings.max_samples, seed, "reference"))
    new = fresh.rows(subset(len(fresh.labels), settings.max_samples, seed, "fresh"))
    new = new.rows(np.flatnonzero(np.bincount(known.labels, minlength=len(names))[new.labels] > 1))
    tests = _within_classes(known, new, count, random) if len(new.labels) >= MINIMUM else []
    tests.append(_class_mix(reference.labels, fresh.labels, count, names, random))
    for test, adjusted in zip(tests, holm(np.array([test.p_value for test in tests])).tolist(), strict=True):
        is_significant = adjusted <= settings.level
        test.adjusted_p_value = adjusted
        test.alarm = is_significant and test.effect >= settings.minimum_effect
        verdict = "significant, but small" if is_significant else "within chance"
        numbers = f"{100 * test.effect:.0f} % apart, p {adjusted:.2g} corrected for {len(tests)} tests"
        test.sentence = f"{'drift' if test.alarm else verdict}: {test.sentence}; {numbers}"
    alarms = [test.name for test in tests if test.alarm]
    sentence = f"no drift in {len(tests)} tests of {len(fresh.labels):,} new pictures"
    if alarms:
        sentence = f"drift in {', '.join(alarms)}"
    neighbours = NearestNeighbors(n_neighbors=NEIGHBOURS, algorithm="brute").fit(known.features)
    # None: the reference itself, where a picture is not its own neighbour
    usual, distances = (neighbours.kneighbors(vectors)[0][:, -1] for vectors in (None, fresh.features))
    foreign = np.argsort(-distances, kind="stable")[: settings.num_shown]
    return Drift(sentence, tests, bool(alarms), foreign, distances[foreign] / (np.median(usual) or 1.0))


def holm(p_values: np.ndarray) -> np.ndarray:
    """Holm's step-down adjustment of p-values (K,)."""
    order, count = np.argsort(p_values, kind="stable"), len(p_values)
    adjusted = np.empty(count)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(p_values[order] * np.arange(count, 0, -1)))
    return adjusted


def discrepancy(kernel: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Squared MMD (B,) from the kernel matrix (N, N) and ``weights`` (N, B).

    In each column of ``weights``, those of one set are positive with sum 1, those of the other negative with
    sum -1. The estimate is biased, but equally for every permutation, so the p-values need no correction.
    """
    return np.einsum("nb,nb->b", weights, kernel @ weights)


def _within_classes(reference: Sample, fresh: Sample, count: int, random: np.random.Generator) -> list[Test]:
    labels = np.concatenate([reference.labels, fresh.labels])
    is_fresh = np.arange(len(labels)) >= len(reference.labels)
    share = np.bincount(fresh.labels, minlength=labels.max() + 1) / len(fresh.labels)
    counterweight = (share / np.maximum(np.bincount(reference.labels, minlength=len(share)), 1))[labels]
    squares = squareform(pdist(np.concatenate([reference.features, fresh.features]), "sqeuclidean"))
    kernel = np.exp(-squares / (2 * np.median(squares) or 1.0))  # exp(-|x - y|^2 / (2 median^2))
    pools = {
        name: np.concatenate([values, fresh.statistics[name]])
        for name, values in reference.statistics.items()
    }

    def draw(columns: int) -> np.ndarray:
        """Weights (N, columns) of permutations within each class."""
        members = np.repeat(is_fresh[:, None], columns, axis=1)
        for label in np.unique(labels):
            members[labels == label] = random.permuted(members[labels == label], axis=0)
        return np.where(members, 1 / len(fresh.labels), -counterweight[:, None])

    def distances(weights: np.ndarray) -> np.ndarray:  # (tests, columns)
        largest_gaps = [np.abs(_gaps(values, weights)).max(axis=0) for values in pools.values()]
        return np.stack([discrepancy(kernel, weights), *largest_gaps])

    weights = np.where(is_fresh, 1 / len(fresh.labels), -counterweight)[:, None]
    observed = distances(weights)
    drawn = np.hstack([distances(draw(min(BLOCK, count - start))) for start in range(0, count, BLOCK)])
    # 1e-12: values that differ by rounding only are equal
    p_values = ((1 + (drawn >= observed - 1e-12).sum(axis=1)) / (1 + count)).tolist()
    new, old = np.maximum(weights, 0), np.maximum(-weights, 0)
    near_new, near_old = kernel @ new, kernel @ old  # similarity of each picture to either set
    witness = np.where(  # leaves out each picture's similarity to itself
        weights > 0, (near_new - new) / (1 - new) - near_old, near_new - (near_old - old) / (1 - old)
    )
    sentence = f"squared distance of features {observed[0, 0]:.2g}, {drawn[0].mean():.2g} by chance"
    tests = [Test("features", p_values[0], max(0.0, float(-_gaps(witness[:, 0], weights).min())), sentence)]
    effects = observed[1:, 0].tolist()
    for (name, values), p_value, effect in zip(pools.items(), p_values[1:], effects, strict=True):
        sentence = f"{name} {values @ new[:, 0]:.3g} on average, {values @ old[:, 0]:.3g} in the reference"
        tests.append(Test(name, p_value, effect, sentence))
    return tests


def _class_mix(
    reference: np.ndarray, fresh: np.ndarray, count: int, names: Sequence[str], random: np.random.Generator
) -> Test:
    before, now = (np.bincount(labels, minlength=len(names)) for labels in (reference, fresh))
    expected = (before + now) * (len(fresh) / (len(reference) + len(fresh)))
    draws = np.vstack([now, random.multivariate_hypergeometric(before + now, len(fresh), count)])
    # The term of the reference is a constant multiple of this.
    values = ((draws - expected) ** 2 / np.maximum(expected, 1e-300)).sum(axis=1)
    there, here = before / len(reference), now / len(fresh)
    most = int(np.abs(here - there).argmax())
    shares = f"{100 * here[most]:.0f} % of the new pictures, {100 * there[most]:.0f} % of the reference"
    p_value = (1 + int((values[1:] >= values[0] - 1e-12).sum())) / (1 + count)
    effect = float(np.abs(here - there).sum() / 2)
    return Test("class mix", p_value, effect, f"'{names[most]}' is {shares}")


def _gaps(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """F(v) - G(v), new minus reference, at each distinct value v, for each column of weights."""
    order = np.argsort(values, kind="stable")
    return np.cumsum(weights[order], axis=0)[np.append(np.diff(values[order]) > 0, True)]
