"""The kernel distance between two sets of feature vectors: Binkowski et al. 2018, "Demystifying MMD GANs".

Squared maximum mean discrepancy with k(x, y) = (x.y / D + 1)^3, as the unbiased U-statistic over all pairs.
Unlike the Fréchet distance, its expectation does not depend on the number of samples. It may be negative.
"""

import numpy as np

from pipeline.estimate import Estimate
from pipeline.evaluation import averages
from pipeline.evaluation.progress import PROGRESS

CHUNK = 1000


def kernel_distance(samples: np.ndarray, reference: np.ndarray) -> Estimate:
    """KID of two sets (N, D) and (M, D), float64, each of at least three vectors.

    The interval is that of the two-sample jackknife, which leaves out each vector once.
    """
    count, others = len(samples), len(reference)
    within, between = _without_self(samples), _sums(samples, reference)
    within_reference, from_reference = _without_self(reference), between[1]
    first, second, cross = _pairs(within), _pairs(within_reference), between[0].sum() / (count * others)
    without_sample = (
        _pairs_without(within) + second - 2 * (between[0].sum() - between[0]) / ((count - 1) * others)
    )
    without_reference = (
        first
        + _pairs_without(within_reference)
        - 2 * (from_reference.sum() - from_reference) / (count * (others - 1))
    )
    # (n-1)/n sum (t_i - t)^2
    variance = sum((len(each) - 1) * float(np.var(each)) for each in (without_sample, without_reference))
    return averages.normal(float(first + second - 2 * cross), float(np.sqrt(variance)))


def _sums(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The sums of the kernel matrix by row and by column, computed for a chunk of rows at a time."""
    rows, columns = np.empty(len(first)), np.zeros(len(second))
    starts = range(0, len(first), CHUNK)
    for start in PROGRESS.track(starts, "kernel distance: blocks of images", len(starts)):
        block = first[start : start + CHUNK] @ second.T
        block /= first.shape[1]
        block += 1
        cube = block * block
        cube *= block
        rows[start : start + CHUNK] = cube.sum(axis=1)
        columns += cube.sum(axis=0)
    return rows, columns


def _without_self(vectors: np.ndarray) -> np.ndarray:
    itself = ((vectors**2).sum(axis=1) / vectors.shape[1] + 1) ** 3
    return _sums(vectors, vectors)[0] - itself  # sum_{j != i} k(x_i, x_j)


def _pairs(rows: np.ndarray) -> float:
    return rows.sum() / (len(rows) * (len(rows) - 1))


def _pairs_without(rows: np.ndarray) -> np.ndarray:
    pairs = (len(rows) - 1) * (len(rows) - 2)
    return (rows.sum() - 2 * rows) / pairs  # i appears once as a row and once as a column
