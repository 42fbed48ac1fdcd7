"""Time the parts of an evaluation on random features: python benchmarks/evaluation.py [images [dimensions]]

Also compares the Fréchet distance of 2048 features with the same distance by SciPy's matrix square root.
"""

import io
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from typing import TypeVar

import numpy as np
import torch
from scipy.linalg import sqrtm
from threadpoolctl import threadpool_limits

from pipeline.core.noise import generator
from pipeline.evaluation.evaluators.reconstruction import ssim
from pipeline.evaluation.frechet import Moments, distance, frechet, moments
from pipeline.evaluation.kernel import kernel_distance, kernel_sums
from pipeline.evaluation.neighbours import neighbourhoods, radii

T = TypeVar("T")
NUM_ROUNDS, NUM_NEIGHBOURS, INCEPTION_FEATURES = 200, 5, 2048


def timed(what: str, compute: Callable[[], T]) -> tuple[T, float]:
    """Call ``compute`` and print its time; return its result and processor seconds."""
    wall, processor = time.perf_counter(), time.process_time()
    with redirect_stdout(io.StringIO()):  # the lines of progress
        result = compute()
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    print(f"{what:50}{wall:8.2f} s, {processor:.2f} processor seconds", flush=True)
    return result, processor


def features(count: int, dimensions: int, seed: int) -> np.ndarray:
    """Correlated features, all positive as after a ReLU."""
    random = np.random.default_rng(seed)
    mixed = random.normal(size=(count, dimensions)) @ random.normal(size=(dimensions, dimensions))
    return np.maximum(mixed / np.sqrt(dimensions), 0)


def by_square_root(first: Moments, second: Moments) -> float:
    """The Fréchet distance as the reference implementations compute it."""
    (mean1, covariance1), (mean2, covariance2) = first, second
    shared = np.trace(np.real(sqrtm(covariance1 @ covariance2)))
    return float(((mean1 - mean2) ** 2).sum() + np.trace(covariance1) + np.trace(covariance2) - 2 * shared)


def main(images: int = 10_000, dimensions: int = 64) -> None:
    """Print the times."""
    print(f"{images:,} against {images:,} images, {torch.get_num_threads()} threads")
    samples, reference = features(images, dimensions, 0), features(images, dimensions, 1)
    with threadpool_limits(limits=1, user_api="blas"):  # as in an evaluation
        timed(f"FID, {NUM_ROUNDS} bootstrap rounds", lambda: frechet(samples, reference, NUM_ROUNDS, 0))
        sums, _ = timed("kernel distance, reference", lambda: kernel_sums(reference))
        timed("kernel distance", lambda: kernel_distance(samples, reference, sums))
        balls, _ = timed("neighbours, reference", lambda: radii(reference, NUM_NEIGHBOURS))
        timed("neighbours", lambda: neighbourhoods(samples, reference, balls, NUM_NEIGHBOURS))
        pictures = torch.rand(100, 3, 32, 32, generator=generator(0))
        timed(
            "SSIM of images of 3 x 32 x 32",
            lambda: [ssim(pictures, pictures.flip(0)) for _ in range(images // 100)],
        )
        first, second = (moments(features(10_000, INCEPTION_FEATURES, seed)) for seed in (2, 3))
        ours, short = timed("FID of 2048 features", lambda: distance(first, second))
        theirs, long = timed("FID of 2048 features, SciPy", lambda: by_square_root(first, second))
    print(f"SciPy takes {long / short:.1f} times as long; relative difference {abs(ours / theirs - 1):.1g}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
