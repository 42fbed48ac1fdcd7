"""Statistical tests for drift between new pictures and a reference, with a known false alarm rate and an
effect size each.

Features of the champion: maximum mean discrepancy (Gretton et al. 2012, "A Kernel Two-Sample Test"), Gaussian
kernel as wide as the median distance. Statistics: Kolmogorov-Smirnov distances. Class mix: Pearson's
chi-squared. P-values are from permutations, never zero (Phipson & Smyth 2010), corrected by Holm 1979. All
but the class mix are permuted within each class, against a reference weighted to the new pictures' class mix:
a change of the mix alone is reported by its own test only, and hides no other change.

The reference must be exchangeable with pictures without drift: a random part of the champion's data on which
it was not trained. Then one batch gives a false alarm with a probability of at most ``level``, on average
over references.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from scipy.spatial.distance import pdist, squareform
from sklearn.neighbors import NearestNeighbors
from threadpoolctl import threadpool_limits

from pipeline.core.task import Batch
from pipeline.errors import BadInput
from pipeline.evaluation.distances import subset
from pipeline.evaluation.features import FeatureSpace
from pipeline.retraining.settings import MINIMUM, DriftSettings

NEIGHBOURS = 5
BLOCK = 500  # permutations at a time: bounded memory


@dataclass
class Sample:
    """What is compared of N pictures: ``features`` (N, D), float64; ``statistics``, each (N,), by name;
    ``labels`` (N,), int64."""

    features: np.ndarray
    statistics: dict[str, np.ndarray]
    labels: np.ndarray

    def rows(self, chosen: np.ndarray) -> "Sample":
        """The pictures at the indices ``chosen``."""
        return Sample(
            self.features[chosen],
            {name: values[chosen] for name, values in self.statistics.items()},
            self.labels[chosen],
        )


@dataclass
class Test:
    """One test of a batch: ``adjusted_p_value`` is Holm's, ``effect`` a share of pictures (see
    :class:`DriftSettings`)."""

    name: str
    p_value: float
    effect: float
    sentence: str
    adjusted_p_value: float = 1.0
    alarm: bool = False


@dataclass
class Drift:
    """``foreign``: indices of new pictures, the farthest first; ``distances``: theirs to the fifth nearest
    reference picture, over the median of the reference's own. ``sentence`` is one sentence. Without ``tests``
    nothing was measured."""

    sentence: str
    tests: list[Test] = field(default_factory=list)
    alarm: bool = False
    foreign: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    distances: np.ndarray = field(default_factory=lambda: np.empty(0))


def observe(chunks: Iterable[tuple[np.ndarray, np.ndarray]], space: FeatureSpace) -> Sample:
    """The sample of all pictures in ``chunks``: uint8 images (n, C, H, W) and labels (n,), at least one
    chunk."""
    parts = [
        Sample(space.vectors([Batch.of(*chunk).images]), statistics_of(chunk[0]), chunk[1])
        for chunk in chunks
    ]
    statistics = {
        name: np.concatenate([part.statistics[name] for part in parts]) for name in parts[0].statistics
    }
    return Sample(
        np.concatenate([part.features for part in parts]),
        statistics,
        np.concatenate([part.labels for part in parts]),
    )


def statistics_of(images: np.ndarray) -> dict[str, np.ndarray]:
    """Each (N,), of uint8 images (N, C, H, W) as [0, 1]: mean, deviation, mean absolute second difference; in
    colour, red minus blue."""
    pixels = images.astype(np.float64) / 255
    second = [np.abs(np.diff(pixels, 2, axis=axis)).mean(axis=(1, 2, 3)) for axis in (2, 3)]
    found = {
        "brightness": pixels.mean(axis=(1, 2, 3)),
        "contrast": pixels.std(axis=(1, 2, 3)),
        "sharpness": second[0] + second[1],
    }
    return found | (
        {"warmth": (pixels[:, 0] - pixels[:, 2]).mean(axis=(1, 2))} if images.shape[1] == 3 else {}
    )


@threadpool_limits.wrap(limits=1)  # sums in another order round differently
def measure(
    reference: Sample, fresh: Sample, settings: DriftSettings, seed: int, class_names: Sequence[str]
) -> Drift:
    """Compare ``fresh`` with ``reference``; the same samples and seed give the same answer. Raises
    ``BadInput`` for features that are not finite. Classes that the reference lacks, and the label -1 of a
    class without a name, count in the class mix alone."""
    for what, sample in (("new", fresh), ("reference", reference)):
        if len(sample.labels) < MINIMUM:
            return Drift(f"not measured: {len(sample.labels)} {what} pictures, at least {MINIMUM} are needed")
        if not np.isfinite(sample.features).all():
            raise BadInput(
                f"features of {what} pictures are not finite",
                where="drift",
                remedy="train the classifier again",
            )
    names = [*class_names, "no known class"]
    reference, fresh = (replace(sample, labels=sample.labels % len(names)) for sample in (reference, fresh))
    random, count = np.random.default_rng(seed), settings.num_permutations
    known = reference.rows(subset(len(reference.labels), settings.max_samples, seed, "reference"))
    new = fresh.rows(subset(len(fresh.labels), settings.max_samples, seed, "fresh"))
    new = new.rows(np.flatnonzero(np.bincount(known.labels, minlength=len(names))[new.labels] > 1))
    tests = _within_classes(known, new, count, random) if len(new.labels) >= MINIMUM else []
    tests.append(_class_mix(reference.labels, fresh.labels, count, names, random))
    for test, adjusted in zip(tests, holm(np.array([test.p_value for test in tests])).tolist(), strict=True):
        test.adjusted_p_value, test.alarm = (
            adjusted,
            adjusted <= settings.level and test.effect >= settings.minimum_effect,
        )
        verdict = (
            "drift"
            if test.alarm
            else "within chance"
            if adjusted > settings.level
            else "significant, but small"
        )
        test.sentence = f"{verdict}: {test.sentence}; {100 * test.effect:.0f} % apart, p {adjusted:.2g} corrected for {len(tests)} tests"
    alarms = [test.name for test in tests if test.alarm]
    sentence = (
        f"drift in {', '.join(alarms)}"
        if alarms
        else f"no drift in {len(tests)} tests of {len(fresh.labels):,} new pictures"
    )
    neighbours = NearestNeighbors(n_neighbors=NEIGHBOURS, algorithm="brute").fit(known.features)
    usual, distances = (
        neighbours.kneighbors(vectors)[0][:, -1] for vectors in (None, fresh.features)
    )  # None: itself left out
    foreign = np.argsort(-distances, kind="stable")[: settings.num_shown]
    return Drift(sentence, tests, bool(alarms), foreign, distances[foreign] / (np.median(usual) or 1.0))


def holm(p_values: np.ndarray) -> np.ndarray:
    """Holm's step-down adjustment of p-values (K,): the least level of the whole family at which each is
    rejected."""
    order, count = np.argsort(p_values, kind="stable"), len(p_values)
    adjusted = np.empty(count)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(p_values[order] * np.arange(count, 0, -1)))
    return adjusted


def discrepancy(kernel: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Squared MMD (B,) from the kernel matrix (N, N) and B columns of signed ``weights`` (N, B): one set's
    positive with sum 1, the other's negative with sum -1. Its bias is the same for every permutation, so
    p-values need no correction for it."""
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

    def draw(
        columns: int,
    ) -> np.ndarray:  # (N, columns): new pictures change places with the reference's of their class
        members = np.repeat(is_fresh[:, None], columns, axis=1)
        for label in np.unique(labels):
            members[labels == label] = random.permuted(members[labels == label], axis=0)
        return np.where(members, 1 / len(fresh.labels), -counterweight[:, None])

    def distances(weights: np.ndarray) -> np.ndarray:  # (tests, columns)
        return np.stack(
            [
                discrepancy(kernel, weights),
                *(np.abs(_gaps(values, weights)).max(axis=0) for values in pools.values()),
            ]
        )

    weights = np.where(is_fresh, 1 / len(fresh.labels), -counterweight)[:, None]
    observed = distances(weights)
    drawn = np.hstack([distances(draw(min(BLOCK, count - start))) for start in range(0, count, BLOCK)])
    p_values = (
        (1 + (drawn >= observed - 1e-12).sum(axis=1)) / (1 + count)
    ).tolist()  # equal but for rounding is equal
    new, old = np.maximum(weights, 0), np.maximum(-weights, 0)
    near_new, near_old = (
        kernel @ new,
        kernel @ old,
    )  # how much each picture resembles either set, itself left out below
    witness = np.where(
        weights > 0, (near_new - new) / (1 - new) - near_old, near_new - (near_old - old) / (1 - old)
    )
    said = f"squared distance of features {observed[0, 0]:.2g}, {drawn[0].mean():.2g} by chance"
    tests = [Test("features", p_values[0], max(0.0, float(-_gaps(witness[:, 0], weights).min())), said)]
    for (name, values), p_value, effect in zip(
        pools.items(), p_values[1:], observed[1:, 0].tolist(), strict=True
    ):
        tests.append(
            Test(
                name,
                p_value,
                effect,
                f"{name} {values @ new[:, 0]:.3g} on average, {values @ old[:, 0]:.3g} in the reference",
            )
        )
    return tests


def _class_mix(
    reference: np.ndarray, fresh: np.ndarray, count: int, names: Sequence[str], random: np.random.Generator
) -> Test:
    before, now = (np.bincount(labels, minlength=len(names)) for labels in (reference, fresh))
    expected = (before + now) * (len(fresh) / (len(reference) + len(fresh)))
    draws = np.vstack([now, random.multivariate_hypergeometric(before + now, len(fresh), count)])
    values = ((draws - expected) ** 2 / np.maximum(expected, 1e-300)).sum(
        axis=1
    )  # the reference's part is a constant times this
    there, here = before / len(reference), now / len(fresh)
    most = int(np.abs(here - there).argmax())
    said = f"'{names[most]}' is {100 * here[most]:.0f} % of the new pictures, {100 * there[most]:.0f} % of the reference"
    p_value = (1 + int((values[1:] >= values[0] - 1e-12).sum())) / (1 + count)
    return Test("class mix", p_value, float(np.abs(here - there).sum() / 2), said)


def _gaps(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """F(v) - G(v), new minus reference, at each distinct value v, for each column of weights."""
    order = np.argsort(values, kind="stable")
    return np.cumsum(weights[order], axis=0)[np.append(np.diff(values[order]) > 0, True)]
