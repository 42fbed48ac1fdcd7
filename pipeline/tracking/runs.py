"""One training = one MLflow run, from its first start to its true end, however often it was killed.

The truth is local (metrics.jsonl, samples/, the record in the outbox); MLflow is fed from it by one thread at a time. A
dead or slow server costs a training at most ``BUDGET_SECONDS`` of waiting; what it missed is sent at a later start.
"""

import getpass
import json
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from threading import Event, Thread
from types import TracebackType
from typing import Any

from filelock import FileLock, Timeout

from pipeline import environment as surroundings
from pipeline.core import model_files
from pipeline.environment import Environment
from pipeline.errors import DarkroomError
from pipeline.files import atomic_copy, digest_of, write_json
from pipeline.params import PARAMS
from pipeline.tracking import lineage, outbox, rerun, restored
from pipeline.tracking.outbox import Record, now

BUDGET_SECONDS = 4.0  # that a training waits, in all, for a server which does not answer
RETRY_SECONDS = 30.0
FOLLOW_SECONDS = (
    10.0  # between two deliveries of a training that goes on; each takes some hundredths of a second
)
STARTING_SECONDS = 20.0  # in which Ray's workers need all cores for their imports
PATIENCE = {
    "open": 60.0,
    "follow": 1.0,
    "register": 60.0,
    "close": 60.0,
}  # seconds, for a database file or a server that answers
MAX_VALUE = 6000  # characters of a param; MLflow's own limit
MAX_NAME = 250  # characters of a run's name; the database's limit
HEARTBEAT = "system/cpu_utilization_percentage"
SILENT_MS = 24 * 3600 * 1000  # without a heartbeat, after which a run of another host counts as dead
COMMIT = "mlflow.source.git.commit"


@dataclass(frozen=True)
class Description:
    """What a run is a run of. ``params`` may be nested: their keys are joined by dots."""

    stage: str  # the DVC stage, which is also the source that MLflow shows
    fingerprint: str  # one logical training: the same fingerprint continues the same run until it is FINISHED
    params: Mapping[str, Any] = field(default_factory=dict)
    data_name: str = ""
    data_digest: str = ""  # SHA-256, hex
    data_source: str = ""  # the folder, relative to the project
    tags: Mapping[str, Any] = field(
        default_factory=dict
    )  # num_workers, device, threads ...: shown as darkroom.<key>


class Run:
    """One MLflow run. Its methods neither raise for a server's sake nor wait long for it."""

    def __init__(self, environment: Environment, record: Record) -> None:
        self._environment, self._record = environment, record
        self._client: Any = None
        self._experiment = ""
        self._thread: Thread | None = None
        self._sweeping: Thread | None = None
        self._delivered = Event()
        self._failure: Exception | None = None
        self._announced = self._swept = self._warned = False
        self._wasted = 0.0  # seconds waited
        self._failed_at = float("-inf")
        self._seen: tuple[int, int] = (-1, -1)
        self._followed = float("-inf")

    @property
    def id(self) -> str:
        """MLflow's run id; empty while no server has answered."""
        return self._record.run_id

    def tell(self, folder: Path) -> None:
        """Leave in ``folder`` what this is a run of (run.json), so that it can be told wherever DVC carries the folder.

        What lies there stands: it is of the process that made the rest of the folder.
        """
        if (folder / restored.TOLD).exists():
            return
        record = self._record
        shared = {key: value for key, value in record.tags.items() if key not in restored.OWN_TAGS}
        told = {
            "stage": record.stage,
            "fingerprint": record.fingerprint,
            "started": record.started,
            "name": record.name,
        }
        told |= {
            "group": record.group,
            "parent": record.parent,
            "params": record.params,
            "dataset": record.dataset,
        }
        write_json(folder / restored.TOLD, {**told, "tags": shared})

    def tag(self, tags: Mapping[str, Any]) -> None:
        """Add tags, shown as ``darkroom.<key>``."""
        self._record.tag(_prefixed(tags))

    def follow(self, folder: Path) -> None:
        """Send what is new in ``folder``, every ten seconds: whole lines of metrics.jsonl and system.jsonl, and samples/."""
        metrics, samples = folder / "metrics.jsonl", folder / "samples"
        seen = (
            metrics.stat().st_size if metrics.exists() else 0,
            samples.stat().st_mtime_ns if samples.exists() else 0,
        )
        if self._record.folder != str(folder.resolve()):
            self._record.folder, self._seen = str(folder.resolve()), (-1, -1)
            self._record.save(self._environment)
            self.tell(folder)
        due = time.monotonic() - self._followed >= FOLLOW_SECONDS
        if due and (seen != self._seen or self._failure) and self._push("follow"):
            self._seen, self._followed = seen, time.monotonic()

    def register(self, folder: Path, name: str) -> str:
        """Log the model in ``folder`` and register it as ``name``; its version, empty where that has to wait for a server.

        The folder should stay until then (``outbox.awaited``). Raises ``BadInput`` for a folder that holds no model.
        """
        sha256, waits = model_files.read_card(folder)["sha256"], "yes" if surroundings.group() else ""
        self._record.model = {"folder": str(folder.resolve()), "name": name, "sha256": sha256, "waits": waits}
        self._record.save(self._environment)
        return self._record.model.get("version", "") if self._push("register") else ""

    def log_results(
        self,
        results: Mapping[str, Mapping[str, Any]],
        sha256: Mapping[str, str],
        protocols: Mapping[str, str] | None = None,
    ) -> None:
        """Log ``results`` (by model, by metric) here and at the runs that trained and registered the weights ``sha256`` (by model).

        ``protocols`` (by model) are digests of how they were measured: only results of one protocol can be compared.
        """
        marks = {f"darkroom.sha256.{name}": digest for name, digest in sha256.items()}
        marks["mlflow.runType"] = (
            "evaluation"  # which also makes the UI open the group's parent at first sight
        )
        self._record.tag(
            marks | {f"darkroom.protocol.{name}": digest for name, digest in (protocols or {}).items()}
        )
        self._record.results = restored.results_of(results, self._record.tags, now())
        self._record.save(self._environment)
        self._push("register")

    def log_artifact(self, path: Path, folder: str = "") -> None:
        """Copy a file or folder, as it is now, into ``folder`` of the run."""
        kept = self._record.files(self._environment) / str(len(self._record.artifacts)) / path.name
        (shutil.copytree if path.is_dir() else atomic_copy)(path, kept)
        self._record.artifacts.append([str(kept), folder])

    def __enter__(self) -> "Run":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        record = self._record
        record.ended = now()
        if kind is None:
            record.tag(_md5_tags(record.stage))
            record.status = "FINISHED"
        else:
            record.status = "KILLED" if issubclass(kind, SystemExit | KeyboardInterrupt) else "FAILED"
            record.tag({"darkroom.failure": lineage.redact(f"{kind.__name__}: {error}")[:2000]})
        record.save(self._environment)
        self._push("close")
        if self._sweeping is not None:
            self._sweeping.join(self._limit("close"))

    def _push(self, occasion: str) -> bool:
        """Start a delivery and wait for it as long as ``occasion`` allows; whether it succeeded."""
        if self._failure and occasion == "follow" and time.monotonic() - self._failed_at < RETRY_SECONDS:
            return False
        if occasion != "follow":
            import mlflow  # noqa: F401 - here, so that its import counts as no server's delay
        begun, limit, delivered = time.monotonic(), self._limit(occasion), False
        if self._thread is not None:
            self._thread.join(limit)
        if self._thread is None or not self._thread.is_alive():
            self._delivered.clear()
            self._thread = Thread(target=self._work, name="tracking", daemon=True)
            self._thread.start()
            delivered = self._delivered.wait(max(begun + limit - time.monotonic(), 0))
        if occasion != "follow":
            self._wasted += time.monotonic() - begun
        if delivered and self._failure is None:
            return True
        if not delivered and occasion != "follow":
            self._offline(TimeoutError("no answer in time"))
        return False

    def _limit(self, occasion: str) -> float:
        """Seconds to wait now: patience with a database file, the rest of the budget for a server, whether it is slow or away."""
        if outbox.is_local(self._environment):
            return PATIENCE[occasion]
        most = BUDGET_SECONDS / 2 if occasion == "open" or self._failure else BUDGET_SECONDS
        return max(min(PATIENCE[occasion], most, BUDGET_SECONDS - self._wasted), 0)

    def _work(self) -> None:
        """One delivery, and once what earlier runs left behind; runs in its own thread, since a call can hang."""
        try:
            if self._client is None:
                self._client, self._experiment = outbox.connect(self._environment)
            outbox.deliver(
                self._client, self._experiment, self._record, self._environment, announce=not self._announced
            )
            self._announced, self._failure = True, None
        except Exception as error:
            self._offline(error)
        if self._failure is None and not self._swept:
            self._swept = True
            sweeping = Thread(target=self._sweep, name="tracking of earlier runs", daemon=True)
            sweeping.start()
            self._sweeping = sweeping  # whoever waits for the delivery finds it at work
        self._delivered.set()

    def _sweep(self) -> None:
        try:
            sync(self._environment, self._record, (self._client, self._experiment))
        except DarkroomError as error:
            print(f"warning: {error.what}", file=sys.stderr, flush=True)

    def _offline(self, error: Exception) -> None:
        self._failure, self._failed_at = error, time.monotonic()
        if self._warned:
            return
        self._warned = True
        reason = lineage.redact(str(error) or type(error).__name__).splitlines()[0][:200]
        where = lineage.redact(self._environment.tracking_uri)
        kept = self._record.path(self._environment)
        remedy = "check MLFLOW_TRACKING_URI and the server; the next stage sends what it missed"
        print(
            f"warning: tracking is offline at {where} ({reason}); work goes on, kept in {kept} -> {remedy}",
            file=sys.stderr,
            flush=True,
        )


def open_run(environment: Environment, description: Description, at_once: bool = True) -> Run:
    """The run of this training: a new one, or the one of the same stage and fingerprint. Use it in a ``with``.

    Where MLflow is not told ``at_once``, it is imported and told beside the caller's work, once that has had time to start; the run
    has no ``id`` until then.
    """
    owner = asdict(lineage.Process.current())
    record = Record(outbox.address(environment), description.stage, description.fingerprint, now(), owner)
    for left in outbox.load_all(environment):  # of an earlier attempt at this training
        if (left.stage, left.fingerprint) == (record.stage, record.fingerprint):
            record.started, record.run_id, record.offsets, record.dropped = (
                left.started,
                left.run_id,
                left.offsets,
                left.dropped,
            )
            record.folder = left.folder
    record.params = flatten(description.params)
    git, changed = lineage.git_tags(Path.cwd()), rerun.changes(Path.cwd())
    record.tags = _tags(description, owner, git, changed)
    record.name = _name(description, changed)
    own = f"repro-{digest_of([record.tags[COMMIT], _text(PARAMS)])[:8]}"
    record.group = surroundings.dvc_experiment() or surroundings.group() or own
    record.parent = _parent(record.group, own, git, changed)
    if description.data_digest:
        source = lineage.redact(description.data_source)
        record.dataset = {
            "name": description.data_name,
            "digest": description.data_digest[:36],
            "source": source,
        }
    record.save(environment)
    run = Run(environment, record)
    if at_once:
        run._push("open")
    else:
        run._followed = time.monotonic() + STARTING_SECONDS - FOLLOW_SECONDS
    return run


def sync(
    environment: Environment, besides: Record | None = None, known: tuple[Any, str] | None = None
) -> tuple[int, int]:
    """Settle and send what ended processes left behind and what DVC restored; how many were sent, how many remain.

    One process does it at a time. ``known`` is a client with its experiment's id, where there is one already. Raises
    ``DarkroomError`` where the tracking server does not answer.
    """
    outbox.records(environment).mkdir(parents=True, exist_ok=True)
    sent, failures = 0, list[Exception]()
    try:
        with FileLock(outbox.records(environment) / "sync.lock", timeout=0):
            client, experiment = known or outbox.connect(environment)

            def is_missing(stage: str, fingerprint: str) -> bool:
                found = outbox.find_run(client, experiment, stage, fingerprint)
                return found is None or found.info.status not in ("FINISHED", "RUNNING")

            for record in [*_left(environment, besides), *restored.records(environment, is_missing)]:
                try:  # one that cannot be sent is not to hold up the others
                    outbox.deliver(client, experiment, record, environment, announce=True)
                    sent += 1
                except Exception as error:
                    failures.append(error)
            settle(client, experiment)
    except Timeout:
        pass
    except Exception as error:
        failures.append(error)
    if failures:
        reason = lineage.redact(str(failures[0]) or type(failures[0]).__name__).splitlines()[0][:200]
        where, remedy = (
            lineage.redact(environment.tracking_uri),
            "check MLFLOW_TRACKING_URI and the server, then: darkroom sync",
        )
        raise DarkroomError(
            f"tracking could not send earlier runs: {reason}", where=where, remedy=remedy
        ) from failures[0]
    return sent, len(outbox.load_all(environment)) - (besides is not None)


def _left(environment: Environment, besides: Record | None) -> Iterator[Record]:
    """The records of processes that have ended; one that could not say how was killed."""
    for record in outbox.load_all(environment):
        path = record.path(environment)
        if besides is not None and path == besides.path(environment):
            continue
        process, silent = record.process, now() - path.stat().st_mtime * 1000 > SILENT_MS
        if (
            process.is_dead()
            or silent
            or (record.status != "RUNNING" and process == lineage.Process.current())
        ):
            if record.status == "RUNNING":
                record.status, record.ended = "KILLED", now()
            yield record


def settle(client: Any, experiment: str) -> None:
    """Mark as KILLED the runs that say RUNNING while their process, on this host, has ended; of another host, after a silent day."""
    for run in client.search_runs([experiment], "attributes.status = 'RUNNING'"):
        tags = run.data.tags
        if "darkroom.pid" not in tags:
            continue
        owner = lineage.Process(
            tags["darkroom.host"], int(tags["darkroom.pid"]), float(tags["darkroom.process_started"])
        )
        heard = [point.timestamp for point in client.get_metric_history(run.info.run_id, HEARTBEAT)]
        if (
            owner.is_dead()
            or now() - max([run.info.start_time, int(tags.get(outbox.HEARD, 0)), *heard]) > SILENT_MS
        ):
            client.set_terminated(run.info.run_id, "KILLED")


def flatten(params: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested params as text by dotted key; lists and other values as JSON. Secrets in URLs are left out."""
    flat: dict[str, str] = {}
    for key, value in params.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = lineage.redact(value if isinstance(value, str) else json.dumps(value))[
                :MAX_VALUE
            ]
    return flat


def _tags(
    description: Description, owner: Mapping[str, Any], git: Mapping[str, str], changed: list[rerun.Change]
) -> dict[str, str]:
    """Git, DVC and machine of this working directory: the project, or DVC's copy of it for an experiment."""
    tags = {
        "mlflow.source.name": description.stage,
        "mlflow.source.type": "LOCAL",
        "mlflow.user": getpass.getuser(),
        "mlflow.note.content": _note(description, git, changed),
        outbox.EXPERIMENT_TAG: surroundings.dvc_experiment(),
        "darkroom.stage": description.stage,
        "darkroom.fingerprint": description.fingerprint,
        "darkroom.data": description.data_digest,
        "darkroom.command": " && ".join(rerun.commands(description.stage, git, changed)),
        "darkroom.params.changed": ", ".join(change.override for change in changed),
        "darkroom.host": owner["host"],
        "darkroom.pid": owner["pid"],
        "darkroom.process_started": owner["started"],
        **git,
        **lineage.version_tags(),
        **_prefixed(description.tags),
        **_md5_tags(description.stage),
    }
    return {key: lineage.redact(str(value))[:5000] for key, value in tags.items() if value != ""}


def _note(description: Description, git: Mapping[str, str], changed: list[rerun.Change]) -> str:
    data = (
        f" on `{description.data_name}` (`{description.data_digest[:12]}`)" if description.data_digest else ""
    )
    again = rerun.note(description.stage, git, changed)
    return f"**{description.stage}**{data}. {again}\n\nWhere it comes from: `darkroom trace <run id>`."


def _name(description: Description, changed: list[rerun.Change]) -> str:
    """The stage, its params that are not as committed, and its seed if it has one."""
    seed = flatten(description.params).get("training.seed")
    own = [
        one
        for one in rerun.of_stage(changed, description.stage)
        if not (seed and one.key.endswith(".training.seed"))
    ]
    parts = [
        description.stage,
        lineage.redact(rerun.title(own, description.stage)),
        f"seed {seed}" if seed else "",
    ]
    return ", ".join(filter(None, parts))[:MAX_NAME]


def _parent(group: str, own: str, git: Mapping[str, str], changed: list[rerun.Change]) -> dict[str, Any]:
    """What the parent of a group's runs shows: its name, all params of params.yaml, and how all of it can be made again."""
    known = git[COMMIT] != "unknown"
    name = f"repro {git[COMMIT][:7]}" if group == own and known else group
    shown = lineage.redact(rerun.title(changed))
    params = flatten(rerun.read_params(Path.cwd()))
    note = lineage.redact(rerun.note("", git, changed))[:5000]
    return {"name": (f"{name}: {shown}" if shown else name)[:MAX_NAME], "params": params, "note": note}


def _prefixed(tags: Mapping[str, Any]) -> dict[str, str]:
    return {f"darkroom.{key}": str(value) for key, value in tags.items()}


def _md5_tags(stage: str) -> dict[str, str]:
    """DVC's md5s, while DVC runs the stage: at other times dvc.lock may tell of other files."""
    if surroundings.dvc_stage() != stage:
        return {}
    return {f"dvc.md5.{path}": md5 for path, md5 in lineage.dvc_md5s(Path.cwd(), stage).items()}


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""
