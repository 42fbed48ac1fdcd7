"""The section ``retrain`` of params.yaml. No stage depends on it.

This module imports no scikit-learn, so that every stage can validate the section quickly.
"""

import math
from typing import Literal

from pydantic import Field, model_validator

from pipeline.params import Section

MINIMUM = 20  # pictures on either side of a drift test; with fewer, only strong drift can be found


class QualitySettings(Section):
    """Requirements for new pictures. Fractions are of the new pictures, from 0 to 1."""

    minimum_new: int = Field(1, ge=1)  # usable new pictures that start a training; fewer wait for more
    minimum_side_pixels: int = Field(8, ge=1)  # of a picture's shorter side, as delivered
    minimum_contrast: float = Field(0.01, ge=0, le=0.5)  # standard deviation of the grey values in [0, 1]
    max_bad_fraction: float = Field(0.1, ge=0, le=1)  # of unusable pictures; with more, all are refused
    max_class_imbalance: float | None = Field(0.5, ge=0, le=1)  # allowed shift of the class shares; null: any
    new_classes: bool = False  # whether a new folder may add a class
    confidence: float = Field(0.9, ge=0, le=1)  # probability from which the champion contradicts a label
    max_label_disagreement: float = Field(0.5, ge=0, le=1)  # of labels that the champion may contradict


class DriftSettings(Section):
    """When a batch counts as drifted.

    An effect is a lower bound of the total variation distance between the two distributions, from 0 to 1: the
    smallest share of pictures by which they differ. All tests share this unit, so one threshold fits all.
    """

    level: float = Field(0.01, gt=0, lt=1)  # false alarm rate of one batch, over all tests together
    minimum_effect: float = Field(0.1, ge=0, le=1)  # smaller effects raise no alarm (see benchmarks/drift.py)
    num_permutations: int = Field(2000, ge=99, le=1_000_000)
    max_samples: int = Field(2000, ge=MINIMUM, le=20_000)  # of either side; memory is quadratic
    num_shown: int = Field(16, ge=0, le=1000)  # new pictures to show, the most unusual first

    @model_validator(mode="after")
    def _can_alarm(self) -> "DriftSettings":
        if self.num_permutations < (needed := math.ceil(12 / self.level)):  # six tests, p twice as small
            what = f"for an alarm at level {self.level:g} num_permutations must be at least {needed:,}"
            raise ValueError(what)
        return self


class RetrainSettings(Section):
    """Where new pictures come from, and what a retraining may do. Good pictures are added to
    ``data.folder``."""

    watch: str = ""  # a folder or zip, relative to the project, or the https address of a zip; '': none
    repository: str = ""  # the git address of a DVC repository, if ``watch`` is a path in it
    settle_seconds: float = Field(60, ge=0)  # files changed more recently wait: they may be incomplete
    quality: QualitySettings = QualitySettings()
    drift: DriftSettings = DriftSettings()
    commit: Literal["branch", "in place"] = "branch"  # the branch 'retraining', or the current one
    push: bool = False  # dvc push to the default remote before a promotion
    deadline_hours: float = Field(12, gt=0)  # of one call; the next call continues from the last checkpoint
    max_attempts: int = Field(3, ge=1)  # failures of one training before it is refused
