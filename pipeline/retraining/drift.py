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

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.spatial.distance import pdist, squareform
from scipy.stats import MonteCarloMethod, chi2_contingency
from sklearn.neighbors import NearestNeighbors
from threadpoolctl import threadpool_limits

from pipeline.core import model_files
from pipeline.core.dataset import Dataset
from pipeline.data.decoding import Decoder
from pipeline.errors import BadInput
from pipeline.evaluation import figures
from pipeline.evaluation.distances import BATCH, subset
from pipeline.evaluation.features import FeatureSpace
from pipeline.retraining.champion_challenger import Champion, Expected, load
from pipeline.retraining.incoming import Picture
from pipeline.retraining.settings import MINIMUM, DriftSettings

NEIGHBOURS = 5
BLOCK = 500  # permutations at a time: bounded memory


@dataclass(frozen=True)
class Sample:
    """The values of N pictures that are compared."""

    features: np.ndarray  # (N, D), float64
    statistics: pd.DataFrame  # N rows
    labels: np.ndarray  # (N,), int64

    def rows(self, chosen: np.ndarray) -> "Sample":
        """The pictures at the indices ``chosen``."""
        return Sample(self.features[chosen], self.statistics.iloc[chosen], self.labels[chosen])


@dataclass
class Test:
    """One test of a batch."""

    name: str
    p_value: float
    effect: float  # a share of the pictures, see DriftSettings
    sentence: str
    adjusted_p_value: float = 1.0  # Holm's
    alarm: bool = False


@dataclass(frozen=True)
class Drift:
    """The result of all tests of a batch."""

    sentence: str
    tests: Sequence[Test] = ()  # empty if nothing was measured
    alarm: bool = False
    # Indices of the pictures with the most distant fifth neighbour in the reference, the farthest first.
    foreign: Sequence[int] = ()


def measure_drift(
    place: Path,
    fresh: Sequence[Picture],
    settings: DriftSettings,
    processed: Path,
    champion: Champion | None,
    device: str,
    page: Path,
) -> dict[str, Any]:
    """Drift of the ``fresh`` pictures in ``place`` from the validation and test pictures in ``processed``.

    Returns JSON. The most unusual new pictures are drawn in the PNG ``page``.
    """
    task = None
    if champion and (processed / "manifest.json").is_file():
        known = Dataset.open(processed)
        expected = Expected.of_spec(known.spec, known.class_names)
        task = load(champion, expected, device)
    if champion is None or task is None:
        why = "there is no champion that knows these classes and sizes"
        return {"sentence": f"not measured: {why}", "alarm": False, "tests": []}
    space = FeatureSpace.of_classifier(champion.name, task, model_files.digest(champion.folder))
    chosen = [fresh[index] for index in subset(len(fresh), settings.max_samples, 0, "drift")]
    fit = known.manifest["settings"].get("fit", "crop")
    bits = known.manifest.get("bit_depth", 16)
    decode = Decoder(place, known.spec.channels, known.spec.size, fit, bits)
    labels = {name: number for number, name in enumerate(known.class_names)}

    def chunks() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for start in range(0, len(chosen), BATCH):
            part = chosen[start : start + BATCH]
            images = decode([picture.name for picture in part])[0]
            yield images, np.array([labels.get(picture.label, -1) for picture in part])

    chunks_of = lambda split: ((rows["image"], rows["label"]) for rows in split.chunks(BATCH))
    held_out = itertools.chain(chunks_of(known.test), chunks_of(known.validation))
    with torch.inference_mode():
        reference, new = observe(held_out, space), observe(chunks(), space)
    found = measure(reference, new, settings, 0, known.class_names)
    foreign = [chosen[index].name for index in found.foreign]
    if foreign:
        images = np.stack([decode([name])[0] for name in foreign], axis=1)  # (1, K, C, H, W)
        figures.save_grid(torch.from_numpy(images).float() / 255, page)
    tests = [asdict(test) for test in found.tests]
    return {"sentence": found.sentence, "alarm": found.alarm, "tests": tests, "foreign": foreign}


def observe(chunks: Iterable[tuple[np.ndarray, np.ndarray]], space: FeatureSpace) -> Sample:
    """The sample of all pictures in ``chunks`` (one or more): uint8 images (n, C, H, W) and labels (n,)."""
    features, statistics, labels = zip(
        *(
            (space.vectors([torch.from_numpy(images).float() / 255]), statistics_of(images), labels)
            for images, labels in chunks
        )
    )
    return Sample(np.concatenate(features), pd.concat(statistics), np.concatenate(labels))


def statistics_of(images: np.ndarray) -> pd.DataFrame:
    """N rows: statistics of uint8 images (N, C, H, W), scaled to [0, 1]. "warmth" is red minus blue."""
    pixels = images.astype(np.float64) / 255
    second = [np.abs(np.diff(pixels, 2, axis=axis)).mean(axis=(1, 2, 3)) for axis in (2, 3)]
    found = pd.DataFrame(
        {
            "brightness": pixels.mean(axis=(1, 2, 3)),
            "contrast": pixels.std(axis=(1, 2, 3)),
            "sharpness": second[0] + second[1],
        }
    )
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
        verdict = "drift" if test.alarm else "significant, but small" if is_significant else "within chance"
        numbers = f"{100 * test.effect:.0f} % apart, p {adjusted:.2g} corrected for {len(tests)} tests"
        test.sentence = f"{verdict}: {test.sentence}; {numbers}"
    alarms = ", ".join(test.name for test in tests if test.alarm)
    sentence = f"no drift in {len(tests)} tests of {len(fresh.labels):,} new pictures"
    neighbours = NearestNeighbors(n_neighbors=NEIGHBOURS, algorithm="brute").fit(known.features)
    distances = neighbours.kneighbors(fresh.features)[0][:, -1]
    foreign = np.argsort(-distances, kind="stable")[: settings.num_shown].tolist()
    return Drift(f"drift in {alarms}" if alarms else sentence, tests, bool(alarms), foreign)


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
    pools = pd.concat([reference.statistics, fresh.statistics])

    def draw(columns: int) -> np.ndarray:
        """Weights (N, columns) of permutations within each class."""
        members = np.repeat(is_fresh[:, None], columns, axis=1)
        for label in np.unique(labels):
            members[labels == label] = random.permuted(members[labels == label], axis=0)
        return np.where(members, 1 / len(fresh.labels), -counterweight[:, None])

    def distances(weights: np.ndarray) -> np.ndarray:  # (tests, columns)
        largest_gaps = [np.abs(_gaps(values, weights)).max(axis=0) for values in pools.to_numpy().T]
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
    for row, name in enumerate(pools, 1):
        then, now = (float(pools[name] @ side[:, 0]) for side in (old, new))
        sentence = f"{name} {now:.3g} on average, {then:.3g} in the reference"
        tests.append(Test(str(name), p_values[row], float(observed[row, 0]), sentence))
    return tests


def _class_mix(
    reference: np.ndarray, fresh: np.ndarray, count: int, names: Sequence[str], random: np.random.Generator
) -> Test:
    counts = np.stack([np.bincount(labels, minlength=len(names)) for labels in (reference, fresh)])
    draws = MonteCarloMethod(n_resamples=count, rng=random)
    p_value = float(chi2_contingency(counts[:, counts.any(axis=0)], correction=False, method=draws).pvalue)
    there, here = counts / counts.sum(axis=1, keepdims=True)
    most = int(np.abs(here - there).argmax())
    shares = f"{100 * here[most]:.0f} % of the new pictures, {100 * there[most]:.0f} % of the reference"
    return Test("class mix", p_value, float(np.abs(here - there).sum() / 2), f"'{names[most]}' is {shares}")


def _gaps(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """F(v) - G(v), new minus reference, at each distinct value v, for each column of weights."""
    order = np.argsort(values, kind="stable")
    return np.cumsum(weights[order], axis=0)[np.append(np.diff(values[order]) > 0, True)]
