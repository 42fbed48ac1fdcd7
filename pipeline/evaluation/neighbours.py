"""Fidelity, diversity and copying, by nearest neighbours among feature vectors.

Precision and recall: Kynkäänniemi et al. 2019, "Improved Precision and Recall Metric".
Density and coverage: Naeem et al. 2020, "Reliable Fidelity and Diversity Metrics".
The ball of a vector reaches to its k-th nearest neighbour in its own set. The intervals are over examples,
with fixed balls.
"""

from collections.abc import Iterator

import numpy as np

from pipeline.estimate import Estimate
from pipeline.evaluation import averages
from pipeline.evaluation.progress import PROGRESS

CHUNK = 1000


def radii(vectors: np.ndarray, k: int) -> np.ndarray:
    """The squared distance (N,) of each vector to its k-th nearest neighbour among the others. N > k."""
    parts = []
    for rows, squares in _squares(vectors, vectors):
        squares[np.arange(len(squares)), np.arange(rows.start, rows.stop)] = 0.0  # without rounding errors
        parts.append(np.partition(squares, k, axis=1)[:, k].copy())  # [:, 0] is the vector itself
    return np.concatenate(parts)


def neighbourhoods(
    samples: np.ndarray,
    reference: np.ndarray,
    reference_radii: np.ndarray,
    k: int,
) -> tuple[dict[str, Estimate], np.ndarray]:
    """Precision, recall, density and coverage of ``samples`` (N, D) against ``reference`` (M, D).

    Also returns the distance (N,) of each sample to its nearest neighbour in the reference.
    """
    sample_radii = radii(samples, k)
    balls, nearest = np.empty(len(samples)), np.empty(len(samples))
    recalled, covered = np.zeros(len(reference), bool), np.zeros(len(reference), bool)
    for rows, squares in _squares(samples, reference):
        inside = squares <= reference_radii  # a sample in a reference image's ball
        balls[rows] = inside.sum(axis=1)
        covered |= inside.any(axis=0)
        recalled |= (squares <= sample_radii[rows, None]).any(axis=0)  # a reference image in a sample's ball
        nearest[rows] = np.sqrt(squares.min(axis=1))
    measured = {
        "precision": averages.proportion(balls > 0),
        "recall": averages.proportion(recalled),
        "density": averages.mean([balls / k]),
        "coverage": averages.proportion(covered),
    }
    return measured, nearest


def memorisation(nearest: np.ndarray, unseen: np.ndarray) -> Estimate:
    """The probability that a generated image is nearer to a training image than an unseen real image is.

    This is an AUROC, with the interval of DeLong et al. 1988. At 0.5 both are equally near. Near 1 the
    samples are copies, or all close to the average. ``nearest`` and ``unseen`` are distances to the nearest
    training image.
    """
    farther = 1 - _rank(unseen, nearest)  # for each sample, the share of unseen images that are farther
    nearer = _rank(nearest, unseen)  # for each unseen image, the share of samples that are nearer
    error = np.sqrt(farther.var(ddof=1) / len(farther) + nearer.var(ddof=1) / len(nearer))
    value, reach = float(farther.mean()), averages.Z * float(error)
    return Estimate(value, max(0.0, value - reach), min(1.0, value + reach), floor=0.5)


def _rank(values: np.ndarray, at: np.ndarray) -> np.ndarray:
    ordered = np.sort(values)
    ranks = np.searchsorted(ordered, at, "left") + np.searchsorted(ordered, at, "right")
    return ranks / (2 * len(values))  # ties count half


def _squares(first: np.ndarray, second: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Squared distances (rows, M) for one chunk of rows of ``first`` at a time."""
    from sklearn.metrics.pairwise import euclidean_distances  # imported here because it takes a second

    centre = second.mean(axis=0)  # subtracted, because small numbers have small rounding errors
    first, second = first - centre, second - centre
    norms = np.square(second).sum(axis=1)
    starts = range(0, len(first), CHUNK)
    for start in PROGRESS.track(starts, "nearest neighbours: blocks of images", len(starts)):
        block = first[start : start + CHUNK]
        squares = euclidean_distances(block, second, Y_norm_squared=norms, squared=True)
        yield slice(start, start + len(block)), squares
