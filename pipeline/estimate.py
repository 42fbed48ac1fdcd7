"""A measured value with its 95 % interval and its floor, and how it is written."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

TRIVIAL, OF_REAL_IMAGES = ("accuracy", "balanced_accuracy", "psnr"), ("recall", "coverage")  # kinds of floors
LEAST_SHARE = 0.05  # of the values of real images


@dataclass(frozen=True)
class Estimate:
    """``low`` and ``high`` are the ends of the 95 % interval; what is not known is None."""

    value: float
    low: float | None = None
    high: float | None = None
    floor: float | None = None  # the value for real images or a trivial rule under the same protocol

    @classmethod
    def read(cls, numbers: Mapping[str, Any]) -> dict[str, "Estimate"]:
        """The estimates in JSON, by quantity.

        Numbers in the form of an earlier version of Darkroom are left out: they cannot be compared.
        """
        known = {part.name for part in fields(cls)}
        return {
            quantity: cls(**parts)
            for quantity, parts in numbers.items()
            if isinstance(parts, dict) and "value" in parts and set(parts) <= known
        }

    def to_json(self) -> dict[str, float]:
        """The known parts: ``{"value": .., "low": .., "high": .., "floor": ..}``."""
        return {part: float(number) for part, number in vars(self).items() if number is not None}

    def metrics(self, name: str) -> dict[str, float]:
        """MLflow's metrics for this quantity: ``name``, ``name_low``, ``name_high`` and ``name_floor``."""
        return {
            name if part == "value" else f"{name}_{part}": number for part, number in self.to_json().items()
        }

    def with_floor(self, floor: float) -> "Estimate":
        """The same estimate with a floor."""
        return replace(self, floor=float(floor))

    @property
    def least(self) -> float:
        """The lower end of the interval; the value if it is not known."""
        return self.value if self.low is None else self.low

    @property
    def half_width(self) -> float:
        """Half the width of the interval; 0 if it is not known."""
        return 0.0 if self.low is None or self.high is None else (self.high - self.low) / 2


def missed_floor(numbers: Mapping[str, Estimate]) -> str:
    """Why a model with these measures is of no use; '' if it is.

    It is no better than a trivial rule, or what it generates has next to nothing in common with real images.
    """
    for name in TRIVIAL:
        if (found := numbers.get(name)) and found.floor is not None and found.value <= found.floor:
            return f"{name} {found.value:.3g} is not above {found.floor:.3g}, which needs no training"
    known = [numbers[name] for name in OF_REAL_IMAGES if name in numbers and numbers[name].floor]
    if known and all(each.value < LEAST_SHARE * (each.floor or 0) for each in known):
        return f"{' and '.join(OF_REAL_IMAGES)} are under {LEAST_SHARE:.0%} of those of real images"
    return ""
