"""The trials of a search, the best first, and whether they differ by more than the noise between seeds."""

import statistics
from dataclasses import dataclass
from typing import Any

import pandas as pd
from optuna.trial import TrialState
from scipy import stats

from pipeline.errors import DarkroomError
from pipeline.search import study as studies
from pipeline.search.search import Search
from pipeline.search.study import FAILURE, FINGERPRINTS, SECONDS, SETTINGS, VALUES
from pipeline.tracking.rerun import as_text

LEVEL = 0.95


@dataclass(frozen=True)
class Ranked:
    """One trial. ``values``: the metric of each seed; empty if it has no result."""

    number: int
    state: str
    settings: dict[str, Any]
    values: list[float]
    seconds: float
    failure: str
    fingerprints: list[str]

    @property
    def mean(self) -> float:
        """The mean over the seeds."""
        return statistics.fmean(self.values)

    @property
    def result(self) -> str:
        """Mean and standard deviation, or why there is none."""
        if self.state != "complete":
            return f"{self.state}{': ' if self.failure else ''}{self.failure}"
        deviation = f" ± {statistics.stdev(self.values):.2g}" if len(self.values) > 1 else ""
        return f"{self.mean:.5g}{deviation}"


@dataclass(frozen=True)
class Ranking:
    """All trials, the best first. ``noise``: the smallest difference that is not noise; None if unknown."""

    search: Search
    trials: list[Ranked]
    noise: float | None

    @classmethod
    def of(cls, search: Search) -> "Ranking":
        """The ranking of the recorded trials. Raises ``DarkroomError`` if none has a result."""
        trials = list[Ranked]()
        for trial in studies.first_trials(search.study):
            attributes, is_complete = trial.user_attrs, trial.state == TrialState.COMPLETE
            trials.append(
                Ranked(
                    trial.number,
                    trial.state.name.lower(),
                    attributes[SETTINGS],
                    attributes[VALUES] if is_complete else [],
                    attributes.get(SECONDS, 0.0),
                    attributes.get(FAILURE, ""),
                    attributes.get(FINGERPRINTS, []),
                )
            )
        if not any(trial.values for trial in trials):
            reasons = "; ".join({trial.failure: None for trial in trials if trial.failure})
            what = f"no trial has a result{': ' * bool(reasons)}{reasons}"[:1000]
            raise DarkroomError(what, where=f"search.{search.name}", remedy="allow more trials or more time")
        sign = -1 if search.search.mode == "max" else 1
        trials.sort(key=lambda trial: (not trial.values, sign * trial.mean if trial.values else trial.number))
        return cls(search, trials, noise_of([trial.values for trial in trials if trial.values]))

    @property
    def equal(self) -> list[Ranked]:
        """The trials whose difference from the best is within the noise."""
        best, *others = [trial for trial in self.trials if trial.values]
        return [each for each in others if self.noise and abs(each.mean - best.mean) <= self.noise]

    @property
    def note(self) -> str:
        """What the ranking can say."""
        if self.search.num_seeds == 1:
            return "Each trial has one seed: the noise between seeds is unknown. --seeds 3 measures it."
        if self.noise is None:
            return "The noise between seeds is unknown: no trial has a result of several seeds."
        names = ", ".join(str(trial.number) for trial in self.equal)
        equal = f"not different from the best by more than that: {names}" if names else "the best is ahead"
        return f"Between seeds, means differ by up to {self.noise:.2g} by chance (95 %); {equal}."

    def table(self, most: int | None = None) -> pd.DataFrame:
        """A row for each trial."""
        rows = [
            {
                "trial": trial.number,
                self.search.search.metric: trial.result,
                **{
                    name: as_text(trial.settings[name]) if name in trial.settings else "-"
                    for name in self.search.search.settings
                },
                "seconds": f"{trial.seconds:.1f}",
            }
            for trial in self.trials[:most]
        ]
        return pd.DataFrame(rows)


def noise_of(values: list[list[float]]) -> float | None:
    """The difference of two trials' means that chance exceeds in one of twenty cases (Student's t).

    ``values``: of each trial, one for each seed. The variance between seeds is that of all trials together.
    None if no trial has two seeds.
    """
    several = [each for each in values if len(each) > 1]
    if not several:
        return None
    freedom = sum(len(each) - 1 for each in several)
    variance = sum(statistics.variance(each) * (len(each) - 1) for each in several) / freedom
    quantile = float(stats.t.ppf((1 + LEVEL) / 2, freedom))
    return quantile * (variance * 2 / len(several[0])) ** 0.5
