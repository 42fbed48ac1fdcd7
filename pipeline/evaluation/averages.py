"""Averages of per-example values, summed over a split and divided once, with 95 % intervals."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

Z = 1.959963984540054  # the 97.5 % quantile of the standard normal distribution


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval and its floor."""

    value: float
    low: float
    high: float
    floor: float | None = None  # the value for real images or a trivial rule under the same protocol

    def with_floor(self, floor: float) -> "Estimate":
        """The same estimate with a floor."""
        return replace(self, floor=float(floor))

    def flat(self, name: str) -> dict[str, float]:
        """``name``, ``name_low``, ``name_high`` and, if there is a floor, ``name_floor``."""
        numbers = {"": self.value, "_low": self.low, "_high": self.high, "_floor": self.floor}
        return {f"{name}{part}": float(number) for part, number in numbers.items() if number is not None}


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
    count = len(hits)
    share = int(np.count_nonzero(hits)) / count
    centre = (share + Z**2 / (2 * count)) / (1 + Z**2 / count)
    half = Z / (1 + Z**2 / count) * math.sqrt(share * (1 - share) / count + Z**2 / (4 * count**2))
    return Estimate(share, max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half)))
