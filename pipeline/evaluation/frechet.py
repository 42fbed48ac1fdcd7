"""The Fréchet distance between two sets of feature vectors: Heusel et al. 2017, "GANs Trained by a Two Time-Scale Update Rule".

Between Gaussians it is |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)). The eigenvalues of C1 C2 are those of the symmetric
C1^(1/2) C2 C1^(1/2), so no root of a non-symmetric matrix, complex in its rounding errors, is taken.
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

    The interval is the estimate plus and minus 1.96 bootstrap standard errors, both sets resampled. It is not the
    bootstrap's percentiles: resampling adds the bias of small sets a second time, and they would lie above the estimate.
    """
    first, second = (
        samples - reference.mean(axis=0),
        reference - reference.mean(axis=0),
    )  # small numbers, small rounding errors
    random = generator(seed, "bootstrap")
    resampled = [
        distance(moments(first, _counts(len(first), random)), moments(second, _counts(len(second), random)))
        for _ in progress.track(range(rounds), "bootstrap of the Fréchet distance: rounds", rounds)
    ]
    return averages.normal(
        distance(moments(first), moments(second)), float(np.std(resampled, ddof=1)), least=0.0
    )


def distance(first: Moments, second: Moments) -> float:
    """The Fréchet distance between the Gaussians of two means and covariances."""
    (mean1, covariance1), (mean2, covariance2) = first, second
    values, vectors = np.linalg.eigh(covariance1)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T  # C1^(1/2)
    product = root @ covariance2 @ root
    shared = np.sqrt(np.maximum(np.linalg.eigvalsh((product + product.T) / 2), 0)).sum()  # tr (C1 C2)^(1/2)
    return max(
        0.0, float(((mean1 - mean2) ** 2).sum() + np.trace(covariance1) + np.trace(covariance2) - 2 * shared)
    )


def moments(vectors: np.ndarray, counts: np.ndarray | None = None) -> Moments:
    """Mean and unbiased covariance of vectors (N, D), each taken ``counts`` times (N in all)."""
    total = len(vectors)
    weighted = vectors if counts is None else vectors * counts[:, None]
    mean = weighted.sum(axis=0) / total
    return mean, (weighted.T @ vectors - total * np.outer(mean, mean)) / (total - 1)


def _counts(total: int, random: torch.Generator) -> np.ndarray:
    return np.bincount(torch.randint(total, (total,), generator=random).numpy(), minlength=total).astype(
        np.float64
    )
