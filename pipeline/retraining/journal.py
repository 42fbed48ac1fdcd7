"""The state of a retraining on disk, written before each step: a killed retraining continues, and no step is
done twice."""

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
    version: str  # the challenger's
    before: str  # the champion's; '' where there was none
    promoted: bool
    reason: str
    gates: list[dict[str, Any]] = field(default_factory=list)  # empty if this version is the champion already
    numbers: dict[str, float] = field(default_factory=dict)
    before_numbers: dict[str, float] = field(default_factory=dict)

    @property
    def refused(self) -> bool:
        """Whether the version was judged and not promoted."""
        return bool(self.gates) and not self.promoted

    @property
    def promote_command(self) -> str:
        """The command that lets a refused version serve in spite of its gates."""
        return f"darkroom promote {self.model}/{self.version} --reason '...'"


@dataclass
class RetrainingRun:
    """One retraining: its reasons, its data and its result. Lists and mappings hold JSON."""

    key: str  # names the data, the code and the settings: one decision for each
    base: str  # the commit that it starts from
    began: str  # UTC
    reasons: list[str]
    fresh: list[list[str]] = field(default_factory=list)  # name and key of each new picture that was kept
    quarantined: dict[str, str] = field(default_factory=dict)  # key -> why
    quality: list[dict[str, Any]] = field(default_factory=list)
    drift: dict[str, Any] = field(default_factory=dict)
    attempts: int = 0
    decision: str = ""  # 'promoted' or 'refused', once it is taken
    explanation: str = ""
    verdicts: list[Verdict] = field(default_factory=list)
    commit: str = ""
    published: str = ""  # where the commit is
    ended: str = ""  # UTC

    @property
    def refusal(self) -> str:
        """How the pictures of this retraining are marked if it is refused; `--readmit` takes this text."""
        return f"refused on {self.began} UTC"

    @property
    def name(self) -> str:
        """A name from start time and key, as for a file: 20261121T023000Z-1a2b3c4d."""
        return f"{self.began.replace('-', '').replace(':', '')[:15]}Z-{self.key[:8]}"


class Journal:
    """The folder .darkroom/retraining of a project."""

    def __init__(self, root: Path) -> None:
        self.folder = root / ".darkroom/retraining"
        self._open, self._aside = self.folder / "occasion.json", self.folder / "aside.json"

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the lock of the project's retraining. Raises ``DarkroomError`` with exit code 75 if another
        process has it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(self.folder / "retrain.lock", timeout=0):
                yield
        except Timeout:
            error = DarkroomError(
                "another `darkroom retrain` runs here",
                where=str(self.folder),
                remedy="wait for it, or end it",
            )
            error.exit_code = EXIT_BUSY
            raise error from None

    def current(self) -> RetrainingRun | None:
        """The retraining that was started and has not ended."""
        return _read(self._open) if self._open.is_file() else None

    def save(self, run: RetrainingRun) -> None:
        """Write ``run`` as the current one, atomically."""
        write_json(self._open, asdict(run))

    def close(self, run: RetrainingRun) -> None:
        """Mark ``run`` as ended and move it to the past ones."""
        run.ended = run.ended or now()
        self.save(run)
        (self.folder / "occasions").mkdir(exist_ok=True)
        os.replace(self._open, self.folder / f"occasions/{run.name}.json")

    def abandon(self) -> None:
        """Drop the current one, because the commit that it started from is no longer the one to start
        from."""
        self._open.unlink(missing_ok=True)

    def past(self) -> list[RetrainingRun]:
        """The retrainings that ended, oldest first."""
        return [_read(path) for path in sorted((self.folder / "occasions").glob("*.json"))]

    def aside(self) -> dict[str, str]:
        """The quarantined pictures: reasons by key (SHA-256/class)."""
        return read_json(self._aside) if self._aside.is_file() else {}

    def set_aside(self, pictures: Mapping[str, str]) -> None:
        """Quarantine pictures (key -> reason)."""
        if pictures:
            write_json(self._aside, {**pictures, **self.aside()})

    def aside_without(self, text: str) -> dict[str, str]:
        """The quarantined pictures but for those whose reason or key contains ``text``."""
        return {key: reason for key, reason in self.aside().items() if text not in reason and text not in key}

    def readmit(self, text: str) -> None:
        """Release the quarantined pictures whose reason or key contains ``text``, so that they are checked
        again."""
        write_json(self._aside, self.aside_without(text))


def now() -> str:
    """The time in UTC, to the second: 2026-11-21T02:30:00."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S")


def _read(path: Path) -> RetrainingRun:
    values = read_json(path)
    return RetrainingRun(**{**values, "verdicts": [Verdict(**verdict) for verdict in values["verdicts"]]})
