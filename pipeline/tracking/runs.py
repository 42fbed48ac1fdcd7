"""One training = one MLflow run, from its first start to its true end, however often it was killed.

The truth is local (metrics.jsonl, samples/, the record in the outbox); MLflow is fed from it by one thread at a time. A
dead or slow server costs a training at most ``BUDGET_SECONDS`` of waiting; what it missed is sent at a later start.
"""

import getpass
import json
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from threading import Event, Thread
from types import TracebackType
from typing import Any

from filelock import FileLock, Timeout

from pipeline import environment as surroundings
from pipeline.environment import Environment
from pipeline.tracking import lineage, outbox, registry
from pipeline.tracking.outbox import Record, now

BUDGET_SECONDS = 4.0  # that a training waits, in all, for a server which does not answer
RETRY_SECONDS = 30.0
PATIENCE = {"open": 60.0, "follow": 1.0, "register": 60.0, "close": 60.0}  # seconds, for a database file or a server that answers
MAX_VALUE = 6000  # characters of a param; MLflow's own limit


@dataclass(frozen=True)
class Description:
    """What a run is a run of. ``params`` may be nested: their keys are joined by dots."""

    stage: str  # the DVC stage, which is also the source that MLflow shows
    fingerprint: str  # one logical training: the same fingerprint continues the same run until it is FINISHED
    params: Mapping[str, Any] = field(default_factory=dict)
    data_name: str = ""
    data_digest: str = ""  # SHA-256, hex
    data_source: str = ""  # the folder, relative to the project
    tags: Mapping[str, Any] = field(default_factory=dict)  # num_workers, device, threads ...: shown as darkroom.<key>


class Run:
    """One MLflow run. Its methods neither raise for a server's sake nor wait long for it."""

    def __init__(self, environment: Environment, record: Record) -> None:
        self._environment, self._record = environment, record
        self._client: Any = None
        self._experiment = ""
        self._thread: Thread | None = None
        self._delivered = Event()
        self._failure: Exception | None = None
        self._announced = self._swept = self._warned = False
        self._wasted = 0.0  # seconds waited in vain
        self._failed_at = float("-inf")
        self._seen: tuple[int, int] = (-1, -1)

    @property
    def id(self) -> str:
        """MLflow's run id; empty while no server has answered."""
        return self._record.run_id

    def follow(self, folder: Path) -> None:
        """Send what is new in ``folder``: whole lines of metrics.jsonl and pictures in samples/. Cheap to call every second."""
        metrics, samples = folder / "metrics.jsonl", folder / "samples"
        seen = (metrics.stat().st_size if metrics.exists() else 0, samples.stat().st_mtime_ns if samples.exists() else 0)
        if self._record.folder != str(folder.resolve()):
            self._record.folder, self._seen = str(folder.resolve()), (-1, -1)
            self._record.save(self._environment)
        if (seen != self._seen or self._failure) and self._push("follow"):
            self._seen = seen

    def register(self, folder: Path, name: str, ability: str = "") -> str:
        """Log the model in ``folder`` and register it as ``name``; its version, empty where that has to wait for a server.

        ``ability`` is what it is served for (see served.py). Raises ``BadInput`` for a folder that holds no servable model.
        """
        card, ability = registry.check(folder, ability)
        self._record.model = {"folder": str(folder.resolve()), "name": name, "ability": ability, "sha256": card["sha256"]}
        self._record.save(self._environment)
        return self._record.model.get("version", "") if self._push("register") else ""

    def log_results(self, results: Mapping[str, Mapping[str, float]], sha256: Mapping[str, str] | None = None) -> None:
        """Log ``results`` (by model, by metric) here as ``<model>/<metric>``.

        ``sha256`` names the weights that were measured, by model: the run that trained and registered them gets ``<metric>``.
        """
        digests = sha256 or {}
        self._record.results = {
            name: {"metrics": dict(metrics), "sha256": digests.get(name, ""), "time": now()} for name, metrics in results.items()
        }
        self._record.tag({f"darkroom.sha256.{name}": digest for name, digest in digests.items()})
        self._record.save(self._environment)
        self._push("register")

    def log_artifact(self, path: Path, folder: str = "") -> None:
        """Copy a file or folder into ``folder`` of the run; at the latest when the run ends."""
        self._record.artifacts.append([str(path.resolve()), folder])

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        record = self._record
        record.ended = now()
        if kind is None:
            record.tag(_md5_tags(self._environment, record.stage))
            record.status = "FINISHED"
        else:
            record.status = "KILLED" if issubclass(kind, SystemExit | KeyboardInterrupt) else "FAILED"
            record.tag({"darkroom.failure": lineage.redact(f"{kind.__name__}: {error}")[:2000]})
        record.save(self._environment)
        self._push("close")

    def _push(self, occasion: str) -> bool:
        """Start a delivery and wait for it as long as ``occasion`` allows; whether it succeeded."""
        if self._failure and occasion == "follow" and time.monotonic() - self._failed_at < RETRY_SECONDS:
            return False
        begun, limit, delivered = time.monotonic(), self._limit(occasion), False
        if self._thread is not None:
            self._thread.join(limit)
        if self._thread is None or not self._thread.is_alive():
            self._delivered.clear()
            self._thread = Thread(target=self._work, name="tracking", daemon=True)
            self._thread.start()
            delivered = self._delivered.wait(max(begun + limit - time.monotonic(), 0))
        if delivered and self._failure is None:
            return True
        if not delivered and occasion != "follow":
            self._offline(TimeoutError("no answer in time"))
        self._wasted += time.monotonic() - begun
        return False

    def _limit(self, occasion: str) -> float:
        """Seconds to wait now: patience with a database file and a server that answers, the rest of the budget otherwise."""
        if outbox.is_local(self._environment) or (self._announced and not self._failure):
            return PATIENCE[occasion]
        return max(min(PATIENCE[occasion], BUDGET_SECONDS / 2, BUDGET_SECONDS - self._wasted), 0)

    def _work(self) -> None:
        """One delivery, and once what earlier runs left behind; runs in its own thread, since a call can hang."""
        try:
            if self._client is None:
                self._client, self._experiment = outbox.connect(self._environment)
            outbox.deliver(self._client, self._experiment, self._record, self._environment, reopen=not self._announced)
            self._announced, self._failure = True, None
        except Exception as error:
            self._offline(error)
        self._delivered.set()
        if self._failure is None and not self._swept:
            self._swept = True
            sync(self._environment, besides=self._record)

    def _offline(self, error: Exception) -> None:
        self._failure, self._failed_at = error, time.monotonic()
        if self._warned:
            return
        self._warned = True
        reason = lineage.redact(str(error) or type(error).__name__).splitlines()[0][:200]
        where = lineage.redact(self._environment.tracking_uri)
        kept = self._record.path(self._environment)
        remedy = "check MLFLOW_TRACKING_URI and the server; the next stage sends what it missed"
        print(f"warning: tracking is offline at {where} ({reason}); work goes on, kept in {kept} -> {remedy}", file=sys.stderr, flush=True)


def open_run(environment: Environment, description: Description) -> Run:
    """The run of this training: a new one, or the unfinished one of the same stage and fingerprint. Use it in a ``with``."""
    import mlflow  # noqa: F401 - here, so that its import counts as no server's delay

    owner = asdict(lineage.Process.current())
    record = Record(outbox.address(environment), description.stage, description.fingerprint, now(), owner)
    for left in outbox.load_all(environment):  # of an earlier attempt at this training
        if (left.stage, left.fingerprint) == (record.stage, record.fingerprint) and left.status != "FINISHED":
            record.started, record.run_id, record.offset, record.dropped = left.started, left.run_id, left.offset, left.dropped
    record.params = flatten(description.params)
    record.tags = _tags(environment, description, owner)
    if description.data_digest:
        record.dataset = {
            "name": description.data_name,
            "digest": description.data_digest[:36],
            "source": lineage.redact(description.data_source),
        }
    record.save(environment)
    run = Run(environment, record)
    run._push("open")
    return run


def sync(environment: Environment, besides: Record | None = None) -> int:
    """Settle and send what ended processes left behind; the number of records that remain. One process does it at a time."""
    outbox.records(environment).mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(outbox.records(environment) / "sync.lock", timeout=0):
            client, experiment = outbox.connect(environment)
            for record in outbox.load_all(environment):
                if (besides is not None and record.path(environment) == besides.path(environment)) or not _ended(record):
                    continue
                if record.status == "RUNNING":
                    record.status, record.ended = "KILLED", now()
                outbox.deliver(client, experiment, record, environment, reopen=False)
            settle(client, experiment)
    except Timeout:
        pass
    except Exception as error:
        print(
            f"warning: tracking could not send earlier runs: {lineage.redact(str(error)).splitlines()[0][:200]}",
            file=sys.stderr,
            flush=True,
        )
    return len(outbox.load_all(environment)) - (besides is not None)


def settle(client: Any, experiment: str) -> None:
    """Mark as KILLED the runs that say RUNNING while their process, on this host, has ended."""
    host = lineage.Process.current().host
    for run in client.search_runs([experiment], f"attributes.status = 'RUNNING' and tags.`darkroom.host` = '{host}'"):
        tags = run.data.tags
        if lineage.Process(host, int(tags["darkroom.pid"]), float(tags["darkroom.process_started"])).is_dead():
            client.set_terminated(run.info.run_id, "KILLED")


def flatten(params: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested params as text by dotted key; lists and other values as JSON. Secrets in URLs are left out."""
    flat: dict[str, str] = {}
    for key, value in params.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = lineage.redact(value if isinstance(value, str) else json.dumps(value))[:MAX_VALUE]
    return flat


def _ended(record: Record) -> bool:
    process = record.process
    return process.is_dead() or (record.status != "RUNNING" and process == lineage.Process.current())


def _tags(environment: Environment, description: Description, owner: Mapping[str, Any]) -> dict[str, str]:
    tags = {
        "mlflow.source.name": description.stage,
        "mlflow.source.type": "LOCAL",
        "mlflow.user": getpass.getuser(),
        "darkroom.stage": description.stage,
        "darkroom.fingerprint": description.fingerprint,
        "darkroom.data": description.data_digest,
        "darkroom.command": f"dvc repro {description.stage}",
        "darkroom.host": owner["host"],
        "darkroom.pid": owner["pid"],
        "darkroom.process_started": owner["started"],
        **lineage.git_tags(environment.root),
        **lineage.version_tags(),
        **{f"darkroom.{key}": value for key, value in description.tags.items()},
        **_md5_tags(environment, description.stage),
    }
    return {key: lineage.redact(str(value))[:5000] for key, value in tags.items() if value != ""}


def _md5_tags(environment: Environment, stage: str) -> dict[str, str]:
    """DVC's md5s, while DVC runs the stage: at other times dvc.lock may tell of other files."""
    if surroundings.dvc_stage() != stage:
        return {}
    return {f"dvc.md5.{path}": md5 for path, md5 in lineage.dvc_md5s(environment.root, stage).items()}
