"""Averages of per-example values, summed over a split and divided once, with 95 % intervals."""

import math
from collections.abc import Sequence

import numpy as np
import torch

from pipeline.core.noise import generator
from pipeline.estimate import Estimate

Z = 1.959963984540054  # the 97.5 % quantile of the standard normal distribution


def normal(value: float, error: float, least: float = -math.inf) -> Estimate:
    """``value`` with a normal interval from its standard ``error``. ``least``: lower bound of the value."""
    return Estimate(value, max(least, value - Z * error), value + Z * error)


def mean(batches: Sequence[np.ndarray], least: float = -math.inf) -> Estimate:
    """The mean of all examples in ``batches``, with a normal interval. ``least``: lower bound of the mean."""
    values = np.concatenate([np.asarray(batch, np.float64).ravel() for batch in batches])
    error = values.std(ddof=1) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return normal(float(values.sum() / len(values)), float(error), least)


def proportion(hits: np.ndarray) -> Estimate:
    """The share of true values with Wilson's score interval (1927), which is also valid near 0 and 1."""
    count, share = len(hits), float(np.mean(hits))
    squares = Z**2 / count  # scipy.stats has this interval too, but its import takes a second
    reach = Z * math.sqrt(share * (1 - share) / count + squares / (4 * count))
    low, high = ((share + squares / 2 + sign * reach) / (1 + squares) for sign in (-1, 1))
    return Estimate(share, low if share > 0 else 0.0, high if share < 1 else 1.0)


def auroc(lower: np.ndarray, higher: np.ndarray) -> Estimate:
    """The probability that one of the values ``higher`` is above one of ``lower``; ties count half.

    Both are (N,), with at least two values. The interval is that of DeLong et al. 1988.
    """
    above = 1 - _rank(higher, lower)  # for each of lower, the share of higher that is above it
    below = _rank(lower, higher)
    reach = Z * math.sqrt(above.var(ddof=1) / len(above) + below.var(ddof=1) / len(below))
    value = float(above.mean())
    return Estimate(value, max(0.0, value - reach), min(1.0, value + reach), floor=0.5)


def true_positive_rate(
    positives: np.ndarray, negatives: np.ndarray, false_positives: float, rounds: int, seed: int
) -> Estimate:
    """The share of ``positives`` (N,) above the threshold that a share ``false_positives`` of others exceeds.

    The others are ``negatives`` (M,); where the share is not of a whole number, fewer exceed it. The interval
    goes from the 2.5 % to the 97.5 % quantile of a bootstrap in which both are drawn again. The floor is what
    chance finds: of M + 1 values in random order, any is as often as another above the threshold.
    """
    random, exceeding = generator(seed, "bootstrap"), int(false_positives * len(negatives))

    def rate(found: np.ndarray, others: np.ndarray) -> float:
        threshold = np.sort(others)[-1 - exceeding]
        return float(np.mean(found > threshold))

    def drawn(values: np.ndarray) -> np.ndarray:
        return values[torch.randint(len(values), (len(values),), generator=random).numpy()]

    rates = [rate(drawn(positives), drawn(negatives)) for _ in range(rounds)]
    value = rate(positives, negatives)
    low, high = np.quantile([*rates, value], [0.025, 0.975])
    floor = (1 + exceeding) / (len(negatives) + 1)
    return Estimate(value, float(min(low, value)), float(max(high, value)), floor)


def _rank(values: np.ndarray, at: np.ndarray) -> np.ndarray:
    ordered = np.sort(values)
    ranks = np.searchsorted(ordered, at, "left") + np.searchsorted(ordered, at, "right")
    return ranks / (2 * len(values))  # ties count half


def ratio(numerators: np.ndarray, denominators: np.ndarray, rounds: int, seed: int) -> Estimate:
    """A ratio of sums over N examples; both arrays are (N, ...).

    Ratios of further dimensions, such as classes, are averaged where the denominator is positive. The
    interval is the estimate plus and minus 1.96 bootstrap standard errors, with the examples resampled.
    Rounds without a positive denominator are left out. NaN if no denominator is positive.
    """
    count, random = len(numerators), generator(seed, "bootstrap")
    parts = np.stack([numerators.reshape(count, -1), denominators.reshape(count, -1)])  # (2, N, K)

    def value(counts: np.ndarray) -> float:
        above, below = counts @ parts
        known = below > 0
        return float(np.mean(above[known] / below[known])) if known.any() else math.nan

    values = np.array([value(resampled(count, random)) for _ in range(rounds)])
    values = values[~np.isnan(values)]
    error = np.std(values, ddof=1) if len(values) > 1 else 0.0
    return normal(value(np.ones(count)), float(error))


def resampled(count: int, random: torch.Generator) -> np.ndarray:
    """How often each of ``count`` examples is drawn in one round of the bootstrap."""
    drawn = torch.randint(count, (count,), generator=random).numpy()
    return np.bincount(drawn, minlength=count)
