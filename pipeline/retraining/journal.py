"""The state of a retraining on disk, written before each step: a killed retraining continues from it."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, field_validator

from pipeline.files import read_json, remove, write_json
from pipeline.process import exclusive


class Verdict(BaseModel):
    """What was decided about one model."""

    model: str
    version: str  # of the challenger
    before: str  # version of the champion; '' if there was none
    promoted: bool = False
    reason: str = ""
    gates: list[dict[str, Any]] = []  # empty if this version is the champion already
    numbers: dict[str, Any] = {}  # JSON of its estimates by quantity
    before_numbers: dict[str, Any] = {}  # those of the champion

    @property
    def refused(self) -> bool:
        """Whether the version was compared and not promoted."""
        return bool(self.gates) and not self.promoted

    @property
    def promote_command(self) -> str:
        """The command that promotes a refused version by hand."""
        return f"darkroom promote {self.model}/{self.version} --reason '...'"


class RetrainingRun(BaseModel):
    """One retraining: its reasons, its data and its result. Lists and mappings hold JSON."""

    key: str  # digest of data, code and settings; there is one decision for each key
    base: str  # the commit that it starts from
    began: str  # UTC
    reasons: list[str]
    fresh: list[list[str]] = []  # name and key of each new picture that was kept
    quarantined: dict[str, str] = {}  # reasons by key
    quality: list[dict[str, Any]] = []
    drift: dict[str, Any] = {}
    attempts: int = 0
    decision: str = ""  # 'promoted', 'refused' or not yet made
    explanation: str = ""
    verdicts: list[Verdict] = []
    commit: str = ""
    published: str = ""  # the branch of the commit
    ended: str = ""  # UTC

    @field_validator("drift", mode="before")
    @classmethod
    def _rename(cls, drift: dict[str, Any]) -> dict[str, Any]:
        """``sentence`` was called ``said`` before."""
        return {"sentence" if key == "said" else key: value for key, value in drift.items()}

    @property
    def refusal(self) -> str:
        """The text that marks the pictures of this retraining if it is refused, for `--readmit`."""
        return f"refused on {self.began} UTC"

    @property
    def name(self) -> str:
        """A name from start time and key, for files: 20261121T023000Z-1a2b3c4d."""
        return f"{self.began.replace('-', '').replace(':', '')[:15]}Z-{self.key[:8]}"


class Journal:
    """The folder .darkroom/retraining of a project."""

    def __init__(self, root: Path) -> None:
        self.folder = root / ".darkroom/retraining"
        self.ended = self.folder / "ended"  # the past retrainings, their reports and pictures
        self.downloads = self.folder / "fetched"  # removed at the end of a call
        self._current, self._quarantine = self.folder / "current.json", self.folder / "quarantine.json"
        for path, former in (
            (self.ended, "occasions"),
            (self._current, "occasion.json"),
            (self._quarantine, "aside.json"),
        ):
            if not path.exists():
                with suppress(FileNotFoundError):
                    (self.folder / former).rename(path)

    def lock(self) -> AbstractContextManager[None]:
        """Hold the lock of the project's retraining. If another process holds it, that ends with 75."""
        return exclusive(self.folder / "retrain.lock", "another `darkroom retrain` runs here")

    def current(self) -> RetrainingRun | None:
        """The retraining that has not ended."""
        return RetrainingRun(**read_json(self._current)) if self._current.is_file() else None

    def save(self, run: RetrainingRun) -> None:
        """Write ``run`` as the current one, atomically."""
        write_json(self._current, run.model_dump())

    def close(self, run: RetrainingRun) -> None:
        """Mark ``run`` as ended and move it to the past ones."""
        run.ended = run.ended or now()
        self.save(run)
        self.ended.mkdir(exist_ok=True)
        for left in self.ended.glob(f".{run.name}.*"):  # unfinished, by a process that was killed
            remove(left)
        self._current.replace(self.ended / f"{run.name}.json")

    def abandon(self) -> None:
        """Delete the current one."""
        self._current.unlink(missing_ok=True)

    def past(self) -> list[RetrainingRun]:
        """The retrainings that ended, oldest first."""
        return [RetrainingRun(**read_json(path)) for path in sorted(self.ended.glob("*.json"))]

    def quarantined(self) -> dict[str, str]:
        """The quarantined pictures: reasons by key (SHA-256/class)."""
        return read_json(self._quarantine) if self._quarantine.is_file() else {}

    def quarantine(self, pictures: Mapping[str, str]) -> None:
        """Add pictures (reasons by key) to the quarantine. A picture that is in it keeps its reason."""
        if pictures:
            write_json(self._quarantine, {**pictures, **self.quarantined()})

    def readmit(self, text: str, dry_run: bool = False) -> dict[str, str]:
        """The quarantined pictures without ``text`` in reason or key. The others are removed, but not in a
        ``dry_run``.
        """
        kept = {key: reason for key, reason in self.quarantined().items() if text not in f"{reason}\n{key}"}
        if not dry_run:
            write_json(self._quarantine, kept)
        return kept


def now() -> str:
    """The time in UTC, to the second: 2026-11-21T02:30:00."""
    return f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S}"
