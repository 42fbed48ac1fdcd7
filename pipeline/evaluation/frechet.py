"""The Fréchet distance between two sets of feature vectors.

Heusel et al. 2017, "GANs Trained by a Two Time-Scale Update Rule". Between Gaussians it is
|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)). With a Cholesky factor,
C1 = R^T R, the product C1 C2 has the eigenvalues of the symmetric matrix R C2 R^T. They take a seventh of
the time of the root of a non-symmetric matrix, and have no complex rounding errors.
"""

import numpy as np

from pipeline.core.noise import generator
from pipeline.estimate import Estimate
from pipeline.evaluation import averages
from pipeline.evaluation.threads import in_threads

Moments = tuple[np.ndarray, np.ndarray]  # mean (D,), covariance (D, D)


def frechet(samples: np.ndarray, reference: np.ndarray, rounds: int, seed: int) -> Estimate:
    """The distance between two sets (N, D) and (M, D), float64, each N > 1.

    The interval is the estimate plus and minus 1.96 bootstrap standard errors, with both sets resampled. The
    percentiles of the bootstrap would be too high, because resampling adds the bias of small sets again.
    """
    centre = reference.mean(axis=0)  # subtracted, because small numbers have small rounding errors
    sets = (samples - centre, reference - centre)
    random = generator(seed, "bootstrap")
    counts = ([averages.resampled(len(each), random) for each in sets] for _ in range(rounds))
    drawn = in_threads(
        lambda drawn: distance(*map(moments, sets, drawn)),
        counts,
        "bootstrap of the Fréchet distance: rounds",
        rounds,
    )
    error = float(np.std(list(drawn), ddof=1))
    return averages.normal(distance(*map(moments, sets)), error, least=0.0)


def distance(first: Moments, second: Moments) -> float:
    """The Fréchet distance between two Gaussians."""
    from scipy.linalg.lapack import dpstrf  # imported here because it takes time

    (mean1, covariance1), (mean2, covariance2) = first, second
    factor, pivots, rank, _ = dpstrf(covariance1)  # with pivots, because the covariance may be singular
    upper, order = np.triu(factor)[:rank], pivots - 1  # upper^T upper is covariance1[order][:, order]
    product = upper @ covariance2[np.ix_(order, order)] @ upper.T
    shared = np.sqrt(np.maximum(np.linalg.eigvalsh((product + product.T) / 2), 0)).sum()  # tr (C1 C2)^(1/2)
    traces = np.trace(covariance1) + np.trace(covariance2)
    return max(0.0, float(((mean1 - mean2) ** 2).sum() + traces - 2 * shared))


def moments(vectors: np.ndarray, counts: np.ndarray | None = None) -> Moments:
    """Mean and unbiased covariance of vectors (N, D), each repeated ``counts`` times (N in total)."""
    total, roots = len(vectors), np.ones(len(vectors))
    if counts is not None:
        drawn = counts > 0
        roots = np.sqrt(counts[drawn])
        vectors = vectors[drawn] * roots[:, None]
    mean = roots @ vectors / total
    return mean, (vectors.T @ vectors - total * np.outer(mean, mean)) / (total - 1)
