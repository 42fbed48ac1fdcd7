"""What a retraining has decided so far, on disk before it is done: a killed one is gone on with, and nothing is done twice."""

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
    gates: list[dict[str, Any]] = field(default_factory=list)
    numbers: dict[str, float] = field(default_factory=dict)
    before_numbers: dict[str, float] = field(default_factory=dict)


@dataclass
class Occasion:
    """One retraining: why, with what, and what became of it. Lists and mappings hold JSON."""

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
    def name(self) -> str:
        """When and what, as a file's name: 20261121T023000Z-1a2b3c4d."""
        return f"{self.began.replace('-', '').replace(':', '')[:15]}Z-{self.key[:8]}"


class Journal:
    """The folder .darkroom/retraining of a project."""

    def __init__(self, root: Path) -> None:
        self.folder = root / ".darkroom/retraining"
        self._open, self._aside = self.folder / "occasion.json", self.folder / "aside.json"

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the project's retraining for this process. Raises ``DarkroomError`` with exit code 75 where another holds it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(self.folder / "retrain.lock", timeout=0):
                yield
        except Timeout:
            error = DarkroomError("another `darkroom retrain` runs here", where=str(self.folder), remedy="wait for it, or end it")
            error.exit_code = EXIT_BUSY
            raise error from None

    def current(self) -> Occasion | None:
        """The one that was begun and not ended."""
        return _read(self._open) if self._open.is_file() else None

    def save(self, occasion: Occasion) -> None:
        """Write it down, whole."""
        write_json(self._open, asdict(occasion))

    def close(self, occasion: Occasion) -> None:
        """It is done: from here on it is history."""
        occasion.ended = occasion.ended or now()
        self.save(occasion)
        (self.folder / "occasions").mkdir(exist_ok=True)
        os.replace(self._open, self.folder / f"occasions/{occasion.name}.json")

    def abandon(self) -> None:
        """Forget the one that was begun: what it started from is no more."""
        self._open.unlink(missing_ok=True)

    def past(self) -> list[Occasion]:
        """Those that ended, oldest first."""
        return [_read(path) for path in sorted((self.folder / "occasions").glob("*.json"))]

    def aside(self) -> dict[str, str]:
        """Pictures that are not to be used, by key (SHA-256/class), with the reason."""
        return read_json(self._aside) if self._aside.is_file() else {}

    def set_aside(self, pictures: Mapping[str, str]) -> None:
        """Add pictures (key -> reason) to those that are not to be used."""
        if pictures:
            write_json(self._aside, {**pictures, **self.aside()})

    def readmit(self, text: str) -> int:
        """Let pictures whose reason or SHA-256 contains ``text`` be looked at again; how many."""
        kept = {sha256: reason for sha256, reason in self.aside().items() if text not in reason and text not in sha256}
        count = len(self.aside()) - len(kept)
        write_json(self._aside, kept)
        return count


def now() -> str:
    """The time in UTC, to the second: 2026-11-21T02:30:00."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S")


def _read(path: Path) -> Occasion:
    values = read_json(path)
    return Occasion(**{**values, "verdicts": [Verdict(**verdict) for verdict in values["verdicts"]]})
