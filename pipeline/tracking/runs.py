"""One training = one MLflow run, from its first start to its final status, however often it was killed.

The local files (metrics.jsonl, samples/, the run record) are sent to MLflow by one thread at a time. A server
that is down or slow delays a training by at most ``BUDGET_SECONDS``; a later stage sends what it missed.
"""

import itertools
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, wait
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

from filelock import FileLock, Timeout

from pipeline.environment import Environment
from pipeline.environment import group as retraining_group
from pipeline.errors import DarkroomError, TrainingStopped
from pipeline.files import atomic_copy, remove, write_json
from pipeline.process import in_thread
from pipeline.tracking import connection, delivery, delivery_queue, identity, lineage, restored
from pipeline.tracking.delivery_queue import RunRecord, now
from pipeline.tracking.run_description import Description, describe, md5_tags, prefixed

BUDGET_SECONDS = 4.0  # the total time that a training waits for a server that does not answer
DATABASE_SECONDS = 60.0  # the time that it waits for a local database, each time
FOLLOW_SECONDS, RETRY_SECONDS = 10.0, 30.0  # between two deliveries during a training; after a failure
STARTING_SECONDS = 20.0  # in which Ray's workers need all cores for their imports
HEARTBEAT_TIMEOUT_MS = 24 * 3600 * 1000  # after which a run of another host counts as dead


class Run:
    """One MLflow run. Its methods do not raise if the server fails, and wait within the budget."""

    def __init__(self, environment: Environment, record: RunRecord, delay_seconds: float = 0.0) -> None:
        self._environment, self._record = environment, record
        self._connected: tuple[Any, str] | None = None  # a client and the experiment's id
        self._deliveries: list[Future[None]] = []  # the last one of this record
        self._syncs: list[Future[None]] = []  # the one of earlier runs
        self._failure: Exception | None = None
        self._announced = self._warned = False
        self._waited = 0.0  # seconds
        self._follow_at = time.monotonic() + delay_seconds

    @property
    def id(self) -> str:
        """MLflow's run id; empty until a server has answered."""
        return self._record.run_id

    def write_run_file(self, folder: Path) -> None:
        """Write run.json into ``folder``, from which the run is restored if DVC restores the folder.

        An existing file is kept: it describes the run that made the folder.
        """
        if (folder / restored.RUN_FILE).exists():
            return
        keys = ("stage", "fingerprint", "started", "name", "group", "parent", "params", "dataset")
        described = {key: getattr(self._record, key) for key in keys}
        tags = {key: value for key, value in self._record.tags.items() if key not in delivery.OWNER}
        write_json(folder / restored.RUN_FILE, {**described, "tags": tags})

    def tag(self, tags: Mapping[str, Any]) -> None:
        """Add tags, shown as ``darkroom.<key>``."""
        self._record.tag(prefixed(tags))

    def follow(self, folder: Path) -> None:
        """Every ``FOLLOW_SECONDS``, send what is new in ``folder``: metrics.jsonl, system.jsonl, samples/."""
        if self._record.folder != (path := str(folder.resolve())):
            self.write_run_file(folder)  # first: after a kill a recorded folder is not described again
            self._record.folder = path
            self._record.save(self._environment)
        if time.monotonic() >= self._follow_at:
            self._deliver(1.0)
            self._follow_at = time.monotonic() + (RETRY_SECONDS if self._failure else FOLLOW_SECONDS)

    def register(self, folder: Path, name: str) -> str:
        """Log the model in ``folder`` and register it as ``name``; its version, empty if no server answered.

        Keep the folder until then (``delivery_queue.undelivered_folders``). Raises ``BadInput`` if it holds
        no model.
        """
        waits = "yes" if retraining_group() else ""  # a retraining decides whether it becomes the champion
        self._record.model = {**restored.model_of(folder, name), "waits": waits}
        return self._record.model.get("version", "") if self._save_and_deliver() else ""

    def log_results(
        self,
        results: Mapping[str, Mapping[str, Any]],
        cards: Mapping[str, Mapping[str, Any]],
        protocols: Mapping[str, str] | None = None,
    ) -> None:
        """Log ``results`` (by model, by metric) here and at the runs that trained the models.

        ``cards``: the model.json of each model. ``protocols``: the digest of how each model was measured;
        only results of one protocol can be compared.
        """
        tags = {f"darkroom.protocol.{name}": digest for name, digest in (protocols or {}).items()}
        for name, card in cards.items():
            tags |= identity.tags(card, name)
        tags["mlflow.runType"] = "evaluation"  # this also makes the UI show the parent run expanded
        self._record.tag(tags)
        self._record.results = restored.results_of(results, self._record.tags, now())
        self._save_and_deliver()

    def log_artifact(self, path: Path, folder: str = "") -> None:
        """Copy a file or folder, as it is now, into ``folder`` of the run."""
        number = len(self._record.artifacts)
        kept = self._record.artifacts_folder(self._environment) / str(number) / path.name
        remove(kept)  # of a killed process that made this run
        (shutil.copytree if path.is_dir() else atomic_copy)(path, kept)
        self._record.artifacts.append([str(kept), folder])
        self._record.save(self._environment)

    def __enter__(self) -> "Run":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        record = self._record
        record.ended = now()
        if kind is None:
            record.tag(md5_tags(record.stage))
            record.status = "FINISHED"
        else:
            ended = issubclass(kind, SystemExit | KeyboardInterrupt | TrainingStopped)
            record.status = "KILLED" if ended else "FAILED"
            record.tag({"darkroom.failure": lineage.redact(f"{kind.__name__}: {error}")[:2000]})
        self._save_and_deliver()
        wait(self._syncs, self._limit())

    def _limit(self) -> float:
        """Seconds to wait for a delivery: for a server, at most the rest of the budget."""
        if connection.is_local(self._environment):
            return DATABASE_SECONDS
        share = BUDGET_SECONDS if self._announced and not self._failure else BUDGET_SECONDS / 2
        return max(min(share, BUDGET_SECONDS - self._waited), 0)

    def _save_and_deliver(self) -> bool:
        """Save the record and send it; whether MLflow has all of it."""
        import mlflow  # noqa: F401 - imported here, so that the import does not count as waiting

        self._record.save(self._environment)
        start = time.monotonic()
        ended = self._deliver(self._limit())
        self._waited += time.monotonic() - start
        if not ended:
            self._report_offline(TimeoutError("no answer in time"))
        return ended and self._failure is None

    def _deliver(self, seconds: float) -> bool:
        """Start a delivery in a thread, because a server may not answer; whether it has ended in time."""
        end = time.monotonic() + seconds
        if wait(self._deliveries, seconds).not_done:
            return False
        self._deliveries = [in_thread(self._work)]
        return not wait(self._deliveries, max(end - time.monotonic(), 0)).not_done

    def _work(self) -> None:
        try:
            self._connected = self._connected or connection.connect(self._environment)
            client, experiment = self._connected
            announce = not self._announced
            delivery.deliver(client, experiment, self._record, self._environment, announce=announce)
            self._announced, self._failure = True, None
        except Exception as error:
            self._report_offline(error)
            return
        if announce:
            self._syncs = [in_thread(self._sync)]

    def _sync(self) -> None:
        try:
            sync(self._environment, self._record, self._connected)
        except DarkroomError as error:
            _warn(error.what)

    def _report_offline(self, error: Exception) -> None:
        self._failure = error
        if self._warned:
            return
        self._warned = True
        address, path = lineage.redact(self._environment.tracking_uri), self._record.path(self._environment)
        _warn(
            f"tracking is offline at {address} ({_reason(error)}); the run continues, recorded in {path} -> "
            "check MLFLOW_TRACKING_URI and the server; the next stage or `darkroom sync` sends the rest"
        )


def open_run(environment: Environment, description: Description, delay_seconds: float | None = None) -> Run:
    """The run of this training, new or of the same stage and fingerprint. Use it in a ``with``.

    With ``delay_seconds`` it is created by the first ``follow`` after that time; it has no ``id`` until then.
    """
    owner = asdict(lineage.Process.current())
    address = delivery_queue.address(environment)
    record = RunRecord(address, description.stage, description.fingerprint, now(), owner)
    for left in delivery_queue.load_all(environment):
        if (left.stage, left.fingerprint) == (record.stage, record.fingerprint):  # an earlier attempt
            record.started, record.run_id, record.folder = left.started, left.run_id, left.folder
            record.offsets = left.offsets
            # sent again: the kill may have left half a file there, or a whole one without its hash
            record.artifacts = [each for each in left.artifacts if Path(each[0]).exists()]
    describe(record, description)
    run = Run(environment, record, delay_seconds or 0.0)
    if delay_seconds is None:
        run._save_and_deliver()
    else:
        record.save(environment)
    return run


def sync(
    environment: Environment, current: RunRecord | None = None, connected: tuple[Any, str] | None = None
) -> tuple[int, int]:
    """Send what ended processes left and what DVC restored; the numbers of sent and remaining records.

    ``current``: a record that is being delivered already. ``connected``: a client and the experiment's id.
    Only one process syncs at a time. Raises ``DarkroomError`` if the tracking server does not answer.
    """
    folder = delivery_queue.records_folder(environment)
    folder.mkdir(parents=True, exist_ok=True)
    sent, failures = 0, list[Exception]()
    try:
        with FileLock(folder / "sync.lock", timeout=0):
            client, experiment = connected or connection.connect(environment)
            left = list(_left_records(environment, current))
            missing = restored.missing_records(
                environment, client, experiment
            )  # asks MLflow after those are sent
            for record in itertools.chain(left, missing):
                try:  # one that cannot be sent does not stop the others
                    delivery.deliver(client, experiment, record, environment, announce=True)
                    sent += 1
                except Exception as error:
                    failures.append(error)
            end_dead_runs(client, experiment)
    except Timeout:
        pass
    except Exception as error:
        failures.append(error)
    if failures:
        raise DarkroomError(
            f"could not send earlier runs to MLflow: {_reason(failures[0])}",
            where=lineage.redact(environment.tracking_uri),
            remedy="check MLFLOW_TRACKING_URI and the server, then: darkroom sync",
        ) from failures[0]
    return sent, len(delivery_queue.load_all(environment)) - (current is not None)


def _left_records(environment: Environment, current: RunRecord | None) -> Iterator[RunRecord]:
    """The records of processes that have ended; a record without a final status is of a killed one."""
    for record in delivery_queue.load_all(environment):
        if current is not None and record.path(environment) == current.path(environment):
            continue
        own_ended = record.status != "RUNNING" and record.process == lineage.Process.current()
        silent = now() - record.path(environment).stat().st_mtime * 1000 > HEARTBEAT_TIMEOUT_MS
        if record.process.is_dead() or silent or own_ended:
            if record.status == "RUNNING":
                record.status, record.ended = "KILLED", now()
            yield record


def end_dead_runs(client: Any, experiment: str) -> None:
    """Mark RUNNING runs of dead processes as KILLED; of other hosts after ``HEARTBEAT_TIMEOUT_MS``."""
    for run in connection.search(client, experiment, "attributes.status = 'RUNNING'"):
        host, pid, started = (run.data.tags.get(key, "0") for key in delivery.OWNER)
        tags = run.data.tags
        heartbeat = int(
            tags.get(delivery.LAST_HEARTBEAT) or tags.get("darkroom.heard") or 0
        )  # its former name
        last = max(run.info.start_time, heartbeat)
        is_dead = (
            lineage.Process(host, int(pid), float(started)).is_dead() or now() - last > HEARTBEAT_TIMEOUT_MS
        )
        if is_dead and pid != "0":
            client.set_terminated(run.info.run_id, "KILLED")


def _warn(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr, flush=True)


def _reason(error: Exception) -> str:
    return lineage.redact(str(error) or type(error).__name__).splitlines()[0][:200]
