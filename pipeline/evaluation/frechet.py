"""The Fréchet distance between two sets of feature vectors.

Heusel et al. 2017, "GANs Trained by a Two Time-Scale Update Rule". Between Gaussians it is
|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)). C1 C2 has the eigenvalues of the symmetric matrix
C1^(1/2) C2 C1^(1/2), which avoids the complex rounding errors in the root of a non-symmetric matrix.
"""

import numpy as np

from pipeline.core.noise import generator
from pipeline.estimate import Estimate
from pipeline.evaluation import averages
from pipeline.evaluation.progress import PROGRESS

Moments = tuple[np.ndarray, np.ndarray]  # mean (D,), covariance (D, D)


def frechet(samples: np.ndarray, reference: np.ndarray, rounds: int, seed: int) -> Estimate:
    """The distance between two sets (N, D) and (M, D), float64, each N > 1.

    The interval is the estimate plus and minus 1.96 bootstrap standard errors, with both sets resampled. The
    percentiles of the bootstrap would be too high, because resampling adds the bias of small sets again.
    """
    centre = reference.mean(axis=0)  # subtracted, because small numbers have small rounding errors
    first, second = samples - centre, reference - centre
    random = generator(seed, "bootstrap")
    tracked = PROGRESS.track(range(rounds), "bootstrap of the Fréchet distance: rounds", rounds)
    drawn = [
        distance(*(moments(each, averages.resampled(len(each), random)) for each in (first, second)))
        for _ in tracked
    ]
    error = float(np.std(drawn, ddof=1))
    return averages.normal(distance(moments(first), moments(second)), error, least=0.0)


def distance(first: Moments, second: Moments) -> float:
    """The Fréchet distance between two Gaussians."""
    (mean1, covariance1), (mean2, covariance2) = first, second
    values, vectors = np.linalg.eigh(covariance1)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T  # C1^(1/2)
    product = root @ covariance2 @ root
    shared = np.sqrt(np.maximum(np.linalg.eigvalsh((product + product.T) / 2), 0)).sum()  # tr (C1 C2)^(1/2)
    traces = np.trace(covariance1) + np.trace(covariance2)
    return max(0.0, float(((mean1 - mean2) ** 2).sum() + traces - 2 * shared))


def moments(vectors: np.ndarray, counts: np.ndarray | None = None) -> Moments:
    """Mean and unbiased covariance of vectors (N, D), each repeated ``counts`` times (N in total)."""
    total = len(vectors)
    weighted = vectors if counts is None else vectors * counts[:, None]
    mean = weighted.sum(axis=0) / total
    return mean, (weighted.T @ vectors - total * np.outer(mean, mean)) / (total - 1)
