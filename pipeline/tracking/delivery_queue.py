"""The run records on disk. A record is deleted when the final status of its run is delivered to MLflow."""

import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

from pipeline.environment import Environment
from pipeline.files import digest_of, read_json, write_json
from pipeline.tracking import lineage

TAGS_LOCK = Lock()


@dataclass
class RunRecord:
    """What MLflow should show of one run. Times are ms since the epoch."""

    address: str  # digest of the tracking address that the record is for
    stage: str  # stage and fingerprint identify the training
    fingerprint: str
    started: int
    owner: dict[str, Any]  # lineage.Process
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    dataset: dict[str, str] = field(default_factory=dict)  # name, digest, source
    name: str = ""  # of the run
    group: str = ""  # identifies the parent run
    parent: dict[str, Any] = field(default_factory=dict)  # its name, params and note; or stage, fingerprint
    folder: str = ""  # of metrics.jsonl, system.jsonl and samples/
    model: dict[str, str] = field(default_factory=dict)  # restored.model_of, waits, version if registered
    results: dict[str, dict[str, Any]] = field(default_factory=dict)  # by model: as restored.results_of
    artifacts: list[list[str]] = field(default_factory=list)  # file or folder, folder within the run
    num_artifacts: int = 0  # that were sent
    status: str = "RUNNING"
    ended: int = 0
    run_id: str = ""
    parent_id: str = ""
    repeated: bool = False  # the run is FINISHED or of another process: only add what it lacks
    adopted: bool = False  # another process has written to the run: compare before sending
    offsets: dict[str, int] = field(default_factory=dict)  # bytes that were sent, by file

    def path(self, environment: Environment) -> Path:
        """The JSON file of the record."""
        return records_folder(environment) / f"{self.stage}-{self.fingerprint[:16]}-{self.started}.json"

    def save(self, environment: Environment) -> None:
        """Write the record, atomically."""
        write_json(self.path(environment), asdict(self))

    def artifacts_folder(self, environment: Environment) -> Path:
        """Copies of the artifacts, kept until they are delivered: the originals may change before that."""
        return self.path(environment).with_suffix("")

    def tag(self, tags: dict[str, str]) -> None:
        """Add tags. Thread-safe."""
        with TAGS_LOCK:
            self.tags = {**self.tags, **tags}

    @property
    def process(self) -> lineage.Process:
        """The process that writes the run."""
        return lineage.Process(**self.owner)


def records_folder(environment: Environment) -> Path:
    """The folder of the records."""
    return environment.storage / "tracking"


def _load(environment: Environment) -> list[RunRecord]:
    """The records for any tracking address, oldest first; unreadable files are skipped."""
    found = []
    for path in records_folder(environment).glob("*.json"):
        with suppress(OSError, ValueError, TypeError):
            values, known = read_json(path), RunRecord.__dataclass_fields__
            found.append(RunRecord(**{key: values[key] for key in values if key in known}))
    return sorted(found, key=lambda record: record.started)


def load_all(environment: Environment) -> list[RunRecord]:
    """The records for this tracking address, oldest first."""
    own = address(environment)
    return [record for record in _load(environment) if record.address == own]


def undelivered_folders(environment: Environment) -> set[Path]:
    """The folders of trainings that are not yet fully delivered, for any tracking address."""
    return {Path(record.folder) for record in _load(environment)}


def address(environment: Environment) -> str:
    """An identifier of the tracking address that contains no credentials."""
    return digest_of(lineage.redact(environment.tracking_uri))[:16]


def now() -> int:
    """Ms since the epoch."""
    return time.time_ns() // 1_000_000
