"""Averages of per-example values, summed over a split and divided once, with 95 % intervals."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

Z = 1.959963984540054  # the 97.5 % quantile of the standard normal distribution


@dataclass(frozen=True)
class Estimate:
    """A number, the ends of its 95 % interval, and its floor: what real images or a trivial rule score under the same protocol."""

    value: float
    low: float
    high: float
    floor: float | None = None

    def beside(self, floor: float) -> "Estimate":
        """The same estimate with a floor."""
        return replace(self, floor=float(floor))

    def flat(self, name: str) -> dict[str, float]:
        """``name``, ``name_low``, ``name_high`` and, where there is one, ``name_floor``."""
        numbers = {
            name: self.value,
            f"{name}_low": self.low,
            f"{name}_high": self.high,
            f"{name}_floor": self.floor,
        }
        return {key: float(number) for key, number in numbers.items() if number is not None}


def normal(value: float, error: float, least: float = -math.inf) -> Estimate:
    """``value`` with the normal interval of its standard ``error``, cut at the ``least`` possible value."""
    return Estimate(value, max(least, value - Z * error), value + Z * error)


def mean(batches: Sequence[np.ndarray], least: float = -math.inf) -> Estimate:
    """The mean of all examples in ``batches``, however unequal the batches; the interval is the central limit theorem's,
    cut at the ``least`` possible value."""
    values = np.concatenate([np.asarray(batch, np.float64).ravel() for batch in batches])
    error = values.std(ddof=1) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return normal(float(values.sum() / len(values)), float(error), least)


def proportion(hits: np.ndarray) -> Estimate:
    """The share of true ones with Wilson's (1927) score interval, which stays within [0, 1] and holds near both ends."""
    count = len(hits)
    share = int(np.count_nonzero(hits)) / count
    centre = (share + Z**2 / (2 * count)) / (1 + Z**2 / count)
    half = Z / (1 + Z**2 / count) * math.sqrt(share * (1 - share) / count + Z**2 / (4 * count**2))
    return Estimate(share, max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half)))
