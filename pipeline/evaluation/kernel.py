"""The kernel distance between two sets of feature vectors: Binkowski et al. 2018, "Demystifying MMD GANs".

Squared maximum mean discrepancy with k(x, y) = (x.y / D + 1)^3, as the unbiased U-statistic over all pairs.
Unlike the Fréchet distance, its expectation does not depend on the number of samples. It may be negative.
"""

import numpy as np

from pipeline.estimate import Estimate
from pipeline.evaluation import averages
from pipeline.evaluation.threads import blocks, in_threads


def kernel_distance(samples: np.ndarray, reference: np.ndarray, within_reference: np.ndarray) -> Estimate:
    """KID of two sets (N, D) and (M, D), float64, each of at least three vectors.

    ``within_reference`` is ``kernel_sums(reference)``. The interval is that of the two-sample jackknife,
    which leaves out each vector once.
    """
    rows, columns = _cross_sums(samples, reference)
    value, variance = -2 * rows.sum() / (len(samples) * len(reference)), 0.0
    within_samples, both = kernel_sums(samples), len(samples) + len(reference)
    for within, cross in ((within_samples, rows), (within_reference, columns)):
        count = len(within)
        value += within.sum() / (count * (count - 1))
        # The terms that change without x_i. It appears once as a row and once as a column.
        without = (within.sum() - 2 * within) / ((count - 1) * (count - 2))
        without -= 2 * (cross.sum() - cross) / ((count - 1) * (both - count))
        variance += (count - 1) * np.var(without)  # (n-1)/n sum (t_i - t)^2
    return averages.normal(float(value), float(np.sqrt(variance)))


def kernel_sums(vectors: np.ndarray) -> np.ndarray:
    """The sum (N,) of k(x_i, x_j) over all j but i, for each of the vectors (N, D)."""
    sums = -(((vectors**2).sum(axis=1) / vectors.shape[1] + 1) ** 3)  # k(x_i, x_i), which the rows include
    scaled, parts = _scaled(vectors), blocks(len(vectors), len(vectors))

    def upper(rows: slice) -> tuple[np.ndarray, np.ndarray]:  # the matrix is symmetric
        cubes = _cubes(scaled[rows], scaled[rows.start :])
        return cubes.sum(axis=1), cubes[:, len(cubes) :].sum(axis=0)

    results = in_threads(upper, parts, "kernel distance, within a set: blocks of images", len(parts))
    for rows, (of_rows, of_columns) in zip(parts, results, strict=True):
        sums[rows] += of_rows
        sums[rows.stop :] += of_columns
    return sums


def _cross_sums(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The sums of the kernel matrix of two sets by row and by column."""
    left, right = _scaled(first), _scaled(second)
    parts = blocks(len(first), len(second))

    def both(rows: slice) -> tuple[np.ndarray, np.ndarray]:
        cubes = _cubes(left[rows], right)
        return cubes.sum(axis=1), cubes.sum(axis=0)

    found = in_threads(both, parts, "kernel distance, between two sets: blocks of images", len(parts))
    of_rows, columns = [], np.zeros(len(second))
    for of_block, of_columns in found:
        of_rows.append(of_block)
        columns += of_columns
    return np.concatenate(of_rows), columns


def _scaled(vectors: np.ndarray) -> np.ndarray:
    """Vectors (N, D + 1) whose scalar products are x.y / D + 1."""
    return np.hstack([vectors / np.sqrt(vectors.shape[1]), np.ones((len(vectors), 1))])


def _cubes(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    products = first @ second.T
    cubes = products * products  # a power would take twenty times as long
    cubes *= products
    return cubes
