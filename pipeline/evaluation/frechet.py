"""The Fréchet distance between two sets of feature vectors.

Heusel et al. 2017, "GANs Trained by a Two Time-Scale Update Rule". Between Gaussians it is
|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)). C1 C2 has the eigenvalues of the symmetric matrix
C1^(1/2) C2 C1^(1/2), which avoids the complex rounding errors in the root of a non-symmetric matrix.
"""

import numpy as np
import torch

from pipeline.core.noise import generator
from pipeline.evaluation import averages
from pipeline.evaluation.averages import Estimate
from pipeline.evaluation.progress import SILENT, Progress

Moments = tuple[np.ndarray, np.ndarray]  # mean (D,), covariance (D, D)


def frechet(
    samples: np.ndarray,
    reference: np.ndarray,
    rounds: int,
    seed: int,
    progress: Progress = SILENT,
) -> Estimate:
    """The distance between two sets (N, D) and (M, D), float64, each N > 1.

    The interval is the estimate plus and minus 1.96 bootstrap standard errors, with both sets resampled. The
    percentiles of the bootstrap would be too high, because resampling adds the bias of small sets again.
    """
    centre = reference.mean(axis=0)  # subtracted, because small numbers have small rounding errors
    first, second = samples - centre, reference - centre
    random = generator(seed, "bootstrap")
    resampled = [
        distance(moments(first, _counts(len(first), random)), moments(second, _counts(len(second), random)))
        for _ in progress.track(range(rounds), "bootstrap of the Fréchet distance: rounds", rounds)
    ]
    error = float(np.std(resampled, ddof=1))
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


def _counts(total: int, random: torch.Generator) -> np.ndarray:
    drawn = torch.randint(total, (total,), generator=random).numpy()
    return np.bincount(drawn, minlength=total).astype(np.float64)
