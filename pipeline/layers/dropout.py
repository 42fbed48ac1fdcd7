"""Dropout whose random numbers come from the noise of the step."""

from torch import Tensor

from pipeline.core.noise import Noise


def dropout(values: Tensor, rate: float, noise: Noise | None, name: str) -> Tensor:
    """Drop each value with probability ``rate`` and scale the rest by 1 / (1 - rate).

    Without ``noise`` (evaluation) the values are returned unchanged.
    """
    if noise is None or rate == 0:
        return values
    kept = noise.uniform(name, *values.shape[1:]) >= rate
    return values * kept / (1 - rate)
