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
    rows, columns = _sums(samples, reference)
    value, variance = -2 * rows.sum() / (len(samples) * len(reference)), 0.0
    for vectors, cross, others in ((samples, rows, len(reference)), (reference, columns, len(samples))):
        count = len(vectors)
        itself = ((vectors**2).sum(axis=1) / vectors.shape[1] + 1) ** 3
        within = _sums(vectors, vectors)[0] - itself  # sum_{j != i} k(x_i, x_j)
        value += within.sum() / (count * (count - 1))
        # The terms that change without x_i. It appears once as a row and once as a column.
        without = (within.sum() - 2 * within) / ((count - 1) * (count - 2))
        without -= 2 * (cross.sum() - cross) / ((count - 1) * others)
        variance += (count - 1) * np.var(without)  # (n-1)/n sum (t_i - t)^2
    return averages.normal(float(value), float(np.sqrt(variance)))


def _sums(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The sums of the kernel matrix by row and by column, computed for a chunk of rows at a time."""
    rows, columns = np.empty(len(first)), np.zeros(len(second))
    starts = range(0, len(first), CHUNK)
    for start in PROGRESS.track(starts, "kernel distance: blocks of images", len(starts)):
        block = first[start : start + CHUNK] @ second.T
        block /= first.shape[1]
        block += 1
        cube = block * block * block  # a power would take twenty times as long
        rows[start : start + CHUNK] = cube.sum(axis=1)
        columns += cube.sum(axis=0)
    return rows, columns
