"""How quantities are shown and explained."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from pipeline.estimate import Estimate


@dataclass(frozen=True)
class Measure:
    """One quantity."""

    title: str
    better: str = ""  # "higher", "lower" or empty
    floor: str = ""  # a sentence about the floor, with {} for its value
    explanation: str = ""
    unit: str = ""
    percent: bool = False
    headline: bool = False  # shown in the report's summary and in `dvc metrics show`, which has room for few
    explained_by: str = ""  # the quantity whose explanation also explains this one

    @property
    def arrow(self) -> str:
        """The direction of improvement."""
        return {"higher": "↑", "lower": "↓"}.get(self.better, "")

    def show(self, value: float) -> str:
        """The number with three digits and its unit."""
        return self._digits(value) + self._suffix

    def interval(self, estimate: Estimate) -> str:
        """The 95 % interval; empty if it is not known."""
        if estimate.low is None or estimate.high is None:
            return ""
        return f"{self._digits(estimate.low)} – {self.show(estimate.high)}"

    def spread(self, mean: float, deviation: float) -> str:
        """Mean and standard deviation."""
        return f"{self._digits(mean)} ± {self.show(deviation)}"

    @property
    def _suffix(self) -> str:
        return " %" if self.percent else f" {self.unit}" if self.unit else ""

    def _digits(self, value: float) -> str:
        if self.percent:
            digits = f"{100 * value:.1f}"
        else:
            digits = f"{value:.0f}" if abs(value) >= 100 else f"{value:#.3g}"
        return digits.replace("-", "−")


def of_other_images(measures: Mapping[str, Measure], prefix: str, addition: str) -> dict[str, Measure]:
    """The same ``measures`` of other images: ``fid`` becomes ``<prefix>fid``, and no headline."""
    return {
        prefix + name: replace(each, title=f"{each.title} {addition}", headline=False, explained_by=name)
        for name, each in measures.items()
    }
