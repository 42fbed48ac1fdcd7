"""The state of a retraining on disk, written before each step: a killed retraining continues from it."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from pipeline.errors import EXIT_BUSY, DarkroomError
from pipeline.files import read_json, write_json


@dataclass
class Verdict:
    """What was decided about one model."""

    model: str
    version: str  # of the challenger
    before: str  # version of the champion; '' if there was none
    promoted: bool
    reason: str
    gates: list[dict[str, Any]] = field(default_factory=list)  # empty if this version is the champion already
    numbers: dict[str, Any] = field(default_factory=dict)  # JSON of its estimates by quantity
    before_numbers: dict[str, Any] = field(default_factory=dict)  # those of the champion

    @property
    def refused(self) -> bool:
        """Whether the version was compared and not promoted."""
        return bool(self.gates) and not self.promoted

    @property
    def promote_command(self) -> str:
        """The command that promotes a refused version by hand."""
        return f"darkroom promote {self.model}/{self.version} --reason '...'"


@dataclass
class RetrainingRun:
    """One retraining: its reasons, its data and its result. Lists and mappings hold JSON."""

    key: str  # digest of data, code and settings; there is one decision for each key
    base: str  # the commit that it starts from
    began: str  # UTC
    reasons: list[str]
    fresh: list[list[str]] = field(default_factory=list)  # name and key of each new picture that was kept
    quarantined: dict[str, str] = field(default_factory=dict)  # reasons by key
    quality: list[dict[str, Any]] = field(default_factory=list)
    drift: dict[str, Any] = field(default_factory=dict)
    attempts: int = 0
    decision: str = ""  # 'promoted', 'refused' or not yet made
    explanation: str = ""
    verdicts: list[Verdict] = field(default_factory=list)
    commit: str = ""
    published: str = ""  # the branch of the commit
    ended: str = ""  # UTC

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
        self._current, self._quarantine = self.folder / "occasion.json", self.folder / "aside.json"

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the lock of the project's retraining.

        If another process holds it, ``DarkroomError`` with exit code 75 is raised.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(self.folder / "retrain.lock", timeout=0):
                yield
        except Timeout:
            what, remedy = "another `darkroom retrain` runs here", "wait for it, or end it"
            error = DarkroomError(what, where=str(self.folder), remedy=remedy)
            error.exit_code = EXIT_BUSY
            raise error from None

    def current(self) -> RetrainingRun | None:
        """The retraining that has not ended."""
        return _read(self._current) if self._current.is_file() else None

    def save(self, run: RetrainingRun) -> None:
        """Write ``run`` as the current one, atomically."""
        write_json(self._current, asdict(run))

    def close(self, run: RetrainingRun) -> None:
        """Mark ``run`` as ended and move it to the past ones."""
        run.ended = run.ended or now()
        self.save(run)
        (self.folder / "occasions").mkdir(exist_ok=True)
        os.replace(self._current, self.folder / f"occasions/{run.name}.json")

    def abandon(self) -> None:
        """Delete the current one."""
        self._current.unlink(missing_ok=True)

    def past(self) -> list[RetrainingRun]:
        """The retrainings that ended, oldest first."""
        return [_read(path) for path in sorted((self.folder / "occasions").glob("*.json"))]

    def quarantined(self) -> dict[str, str]:
        """The quarantined pictures: reasons by key (SHA-256/class)."""
        return read_json(self._quarantine) if self._quarantine.is_file() else {}

    def quarantine(self, pictures: Mapping[str, str]) -> None:
        """Add pictures (reasons by key) to the quarantine. A picture that is in it keeps its reason."""
        if pictures:
            write_json(self._quarantine, {**pictures, **self.quarantined()})

    def quarantined_without(self, text: str) -> dict[str, str]:
        """The quarantined pictures without ``text`` in reason or key."""
        kept = self.quarantined()
        return {key: reason for key, reason in kept.items() if text not in reason and text not in key}

    def readmit(self, text: str) -> None:
        """Remove the pictures with ``text`` in reason or key from the quarantine."""
        write_json(self._quarantine, self.quarantined_without(text))


def now() -> str:
    """The time in UTC, to the second: 2026-11-21T02:30:00."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S")


def _read(path: Path) -> RetrainingRun:
    values = read_json(path)
    return RetrainingRun(**{**values, "verdicts": [Verdict(**verdict) for verdict in values["verdicts"]]})
