"""Fidelity, diversity and copying, by nearest neighbours among feature vectors.

Precision and recall: Kynkäänniemi et al. 2019, "Improved Precision and Recall Metric".
Density and coverage: Naeem et al. 2020, "Reliable Fidelity and Diversity Metrics".
The ball of a vector reaches to its k-th nearest neighbour in its own set. The intervals are over examples,
with fixed balls.
"""

import numpy as np

from pipeline.estimate import Estimate
from pipeline.evaluation import averages
from pipeline.evaluation.threads import blocks, in_threads

BLOCKS = "nearest neighbours{}: blocks of images"


def radii(vectors: np.ndarray, k: int) -> np.ndarray:
    """The squared distance (N,) of each vector to its k-th nearest neighbour among the others. N > k."""
    left, right = _factors(vectors, vectors)
    parts = blocks(len(vectors), len(vectors))

    def of_rows(rows: slice) -> np.ndarray:
        squares = left[rows] @ right.T
        squares[np.arange(len(squares)), np.arange(rows.start, rows.stop)] = -np.inf  # the vector itself
        squares.partition(k, axis=1)
        return squares[:, k].copy()

    found = in_threads(of_rows, parts, BLOCKS.format(" within a set"), len(parts))
    return np.maximum(np.concatenate(list(found)), 0.0)


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
    left, right = _factors(samples, reference)
    parts = blocks(len(samples), len(reference))

    def of_rows(rows: slice) -> tuple[np.ndarray, ...]:
        squares = np.maximum(left[rows] @ right.T, 0.0)
        inside = squares <= reference_radii  # a sample in a reference image's ball
        reached = squares <= sample_radii[rows, None]  # a reference image in a sample's ball
        return inside.sum(axis=1), squares.min(axis=1), inside.any(axis=0), reached.any(axis=0)

    found = in_threads(of_rows, parts, BLOCKS.format(" between two sets"), len(parts))
    balls, nearest = [], []
    covered, recalled = np.zeros(len(reference), bool), np.zeros(len(reference), bool)
    for of_block, smallest, inside, reached in found:
        balls.append(of_block)
        nearest.append(smallest)
        covered |= inside
        recalled |= reached
    counts = np.concatenate(balls)
    measured = {
        "precision": averages.proportion(counts > 0),
        "recall": averages.proportion(recalled),
        "density": averages.mean([counts / k]),
        "coverage": averages.proportion(covered),
    }
    return measured, np.sqrt(np.concatenate(nearest))


def _factors(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Vectors (N, D + 2) and (M, D + 2) whose scalar products are the squared distances, but for rounding.

    |x - y|^2 = (-2 x, |x|^2, 1) . (y, 1, |y|^2)
    """
    centre = second.mean(axis=0)  # subtracted, because small numbers have small rounding errors
    first, second = first - centre, second - centre
    norms1, norms2 = (np.square(each).sum(axis=1, keepdims=True) for each in (first, second))
    left = np.hstack([-2 * first, norms1, np.ones_like(norms1)])
    return left, np.hstack([second, np.ones_like(norms2), norms2])
