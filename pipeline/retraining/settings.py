"""What ``darkroom retrain`` looks at and how far it may go: the section ``retrain`` of params.yaml. No stage depends on it."""

from typing import Literal

from pydantic import Field

from pipeline.params import Section
from pipeline.retraining.drift import DriftSettings
from pipeline.retraining.quality import QualitySettings


class RetrainSettings(Section):
    """New pictures come from ``watch`` and, where they are good, into ``data.folder``, which DVC tracks."""

    watch: str = ""  # a folder or zip that grows, relative to the project's root, or the https address of a zip; '': nothing is watched
    repository: str = ""  # a DVC repository (its git address), if ``watch`` is a path in it
    settle_seconds: float = Field(60, ge=0)  # a picture changed more recently may still be on its way: it is left for the next time
    quality: QualitySettings = QualitySettings()
    drift: DriftSettings = DriftSettings()
    commit: Literal["branch", "in place"] = "branch"  # dvc.lock: on the branch 'retraining', or fast-forward onto the current one
    push: bool = False  # to DVC's default remote, before anything is promoted
    deadline_hours: float = Field(12, gt=0)  # of one call; the next one goes on from the last checkpoint
    max_attempts: int = Field(3, ge=1)  # of a training that fails, before its pictures are set aside
