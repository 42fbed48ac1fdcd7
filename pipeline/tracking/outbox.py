"""The local record of a run, and its delivery to MLflow.

The record says what MLflow should show; delivering it brings MLflow there. Delivery may stop anywhere and be repeated: a
metric is (key, step, timestamp, value), so a replay adds nothing, and what is there already is asked for where it matters.
A record stays on disk until its final status is delivered; what a dead server missed is delivered at a later start.

One training (a stage and a fingerprint) is one run for ever: a repetition finds it and adds what it lacks. Runs of one commit and
one params.yaml, or of one DVC experiment, are children of one parent run, which the UI shows as a group.
"""

import json
import math
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from pipeline.core import model_files
from pipeline.environment import Environment
from pipeline.errors import BadInput
from pipeline.files import digest_of, read_json, write_json
from pipeline.tracking import lineage, moved, registry

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

EXPERIMENT = moved.EXPERIMENT
SQLITE = "sqlite:///"
PARENT, PARENT_TAG = "repro", "mlflow.parentRunId"
EXPERIMENT_TAG = "darkroom.experiment"
MAX_METRICS = 1000  # in one call; MLflow's own limit
MAX_PARAMS = 100  # and tags
OWNER = (
    "darkroom.host",
    "darkroom.pid",
    "darkroom.process_started",
)  # tags of the process that makes the run
HEARD = "darkroom.heard"  # a tag: when that process last said that it works on the run, in ms
LOCK_SECONDS = 60
TAGGING = Lock()
PICTURE = re.compile(r"step-(\d+)\.png")
PICTURES = "train/samples"  # MLflow's key of the sample grids: it shows them with the curves of ``train``


@dataclass
class Record:
    """What MLflow should show of one run. Times are ms since the epoch; ``stage`` and ``fingerprint`` name the training."""

    address: str  # digest of the tracking address: a record is delivered where it belongs
    stage: str
    fingerprint: str
    started: int
    owner: dict[str, Any]  # lineage.Process
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    dataset: dict[str, str] = field(default_factory=dict)  # name, digest, source
    name: str = ""  # of the run
    group: str = ""  # names the parent
    parent: dict[str, Any] = field(default_factory=dict)  # name, params and note of the parent
    folder: str = ""  # of metrics.jsonl, system.jsonl and samples/
    model: dict[str, str] = field(
        default_factory=dict
    )  # folder, name, sha256; version, once it is registered
    results: dict[str, dict[str, Any]] = field(
        default_factory=dict
    )  # by model: sha256, protocol, metrics, time
    artifacts: list[list[str]] = field(default_factory=list)  # file or folder, folder within the run
    num_artifacts: int = 0  # of them MLflow has
    status: str = "RUNNING"
    ended: int = 0
    run_id: str = ""
    parent_id: str = ""
    repeated: bool = False  # the run is FINISHED, or another process's by now: only what it lacks is added
    adopted: bool = False  # somebody else has written to the run: what is sent is compared with what is there
    offsets: dict[str, int] = field(default_factory=dict)  # bytes that MLflow has, by file
    dropped: dict[str, int] = field(
        default_factory=dict
    )  # metrics that were not finite, with the first such step

    def path(self, environment: Environment) -> Path:
        """The record's own file."""
        return records(environment) / f"{self.stage}-{self.fingerprint[:16]}-{self.started}.json"

    def save(self, environment: Environment) -> None:
        """Write the record whole."""
        write_json(self.path(environment), asdict(self))

    def files(self, environment: Environment) -> Path:
        """The folder of the artifacts, kept until they are delivered: their originals may be other ones by then."""
        return self.path(environment).with_suffix("")

    def tag(self, tags: dict[str, str]) -> None:
        """Add tags; the delivering thread may do so at the same time."""
        with TAGGING:
            self.tags = {**self.tags, **tags}

    @property
    def process(self) -> lineage.Process:
        """The process that makes the run."""
        return lineage.Process(**self.owner)


def records(environment: Environment) -> Path:
    """The folder of the records that are not delivered to the end."""
    return environment.storage / "tracking"


def load_all(environment: Environment) -> list[Record]:
    """The records for this tracking address, oldest first; unreadable ones are left alone."""
    found = []
    for path in records(environment).glob("*.json"):
        try:
            record = Record(**read_json(path))
        except (OSError, ValueError, TypeError):
            continue
        if record.address == address(environment):
            found.append(record)
    return sorted(found, key=lambda record: record.started)


def awaited(environment: Environment) -> set[Path]:
    """The folders of trainings that some tracking server has not been told to the end."""
    found = set()
    for path in records(environment).glob("*.json"):
        with suppress(OSError, ValueError, TypeError, KeyError):
            found.add(Path(read_json(path)["folder"]))
    return found


def address(environment: Environment) -> str:
    """A name for the tracking address that shows no credentials."""
    return digest_of(lineage.redact(environment.tracking_uri))[:16]


def is_local(environment: Environment) -> bool:
    """Whether tracking goes to a database file rather than to a server."""
    return environment.tracking_uri.startswith(SQLITE)


def connect(environment: Environment) -> tuple["MlflowClient", str]:
    """A client and the id of the experiment; makes what is missing. A new database appears whole: processes may race, or be killed."""
    from mlflow import MlflowClient

    uri = environment.tracking_uri
    if not is_local(environment):
        client = MlflowClient(uri)
        return client, _experiment(client, None)
    database = Path(uri.removeprefix(SQLITE))
    database.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{database}.lock", timeout=LOCK_SECONDS):
        if not database.exists():
            beside = database.with_name(f"{database.name}.new")
            beside.unlink(missing_ok=True)
            MlflowClient(f"{SQLITE}{beside}").search_experiments(max_results=1)
            os.replace(beside, database)
        follow_move(environment)
        client = MlflowClient(uri)
        return client, _experiment(
            client, Path(environment.artifacts).resolve().as_uri() if environment.artifacts else None
        )


def follow_move(environment: Environment) -> None:
    """Correct the locations in MLflow's local database and in the records where the project's folder was moved."""
    if former := moved.moved_from(environment):
        before = address(replace(environment, tracking_uri=moved.default_uri(Path(former))))
        moved.follow(environment, former, records(environment), (before, address(environment)))


def deliver(
    client: "MlflowClient", experiment: str, record: Record, environment: Environment, *, announce: bool
) -> None:
    """Bring MLflow to what ``record`` says. ``announce`` makes or reopens the run first."""
    ending = record.status  # it may change meanwhile, and there is more to be sent then
    if announce:
        _announce(client, experiment, record)
        record.save(environment)
    if record.folder:
        for name in ("metrics.jsonl", "system.jsonl"):
            _send_metrics(client, record, name)
        _send_pictures(client, record)
    for name, result in record.results.items():
        _send_results(client, record, name, result)
    for path, folder in record.artifacts[record.num_artifacts :]:
        send = client.log_artifacts if os.path.isdir(path) else client.log_artifact
        send(record.run_id, path, folder or None)
        record.num_artifacts += 1
    if record.model and "version" not in record.model:
        _register(client, record)
    if ending == "RUNNING":
        record.save(environment)
        return
    if not record.repeated:
        set_tags(client, record.run_id, record.tags)
        client.set_terminated(record.run_id, ending, record.ended)
    if record.parent_id:
        client.set_terminated(record.parent_id, ending, record.ended)
    record.path(environment).unlink(missing_ok=True)
    shutil.rmtree(record.files(environment), ignore_errors=True)


def find_run(client: "MlflowClient", experiment: str, stage: str, fingerprint: str) -> "Run | None":
    """The run of a training, the FINISHED one where there are several; None where there is none."""
    query = f"tags.`darkroom.fingerprint` = '{fingerprint}' and tags.`darkroom.stage` = '{stage}'"
    found = client.search_runs([experiment], query, order_by=["attributes.start_time ASC"])
    return min(found, key=lambda run: run.info.status != "FINISHED", default=None)


def exists(client: "MlflowClient", run_id: str) -> bool:
    """Whether MLflow knows this run, and nobody has deleted it; an empty id it never knows."""
    from mlflow.exceptions import MlflowException

    try:
        return bool(run_id) and client.get_run(run_id).info.lifecycle_stage == "active"
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return False


def _announce(client: "MlflowClient", experiment: str, record: Record) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    found = find_run(client, experiment, record.stage, record.fingerprint)
    if found is None or found.info.run_id != record.run_id:
        record.offsets = {}  # another run, or none: it is sent everything
    if found is None:
        name = record.name or record.stage
        found = client.create_run(
            experiment, record.started, {**record.tags, **_group(client, experiment, record)}, run_name=name
        )
    record.run_id, record.parent_id = found.info.run_id, ""
    known = client.get_run(record.run_id)
    others = [key for key in OWNER if known.data.tags.get(key) != record.tags.get(key)]
    record.adopted = bool(others)
    taken = (
        bool(others) and record.process != lineage.Process.current()
    )  # what is left of a process; another one goes on with the run
    record.repeated = found.info.status == "FINISHED" or taken
    if record.repeated:
        set_tags(
            client,
            record.run_id,
            {key: value for key, value in record.tags.items() if key not in known.data.tags},
        )
    else:
        client.update_run(record.run_id, status="RUNNING")
        set_tags(
            client, record.run_id, {**record.tags, HEARD: str(now()), **_group(client, experiment, record)}
        )
        if "darkroom.failure" in known.data.tags:  # of an earlier attempt
            client.delete_tag(record.run_id, "darkroom.failure")
    _add_params(client, known, record.params)
    if record.dataset and not (known.inputs and known.inputs.dataset_inputs):
        data = Dataset(
            record.dataset["name"],
            record.dataset["digest"][:36],
            "local",
            json.dumps({"uri": record.dataset["source"]}),
        )
        client.log_inputs(record.run_id, [DatasetInput(data, [InputTag("mlflow.data.context", "training")])])


def _group(client: "MlflowClient", experiment: str, record: Record) -> dict[str, str]:
    """The tag that makes the run a child of its group's parent, which is made if it is missing and shares the run's fate."""
    if not record.group:
        return {}
    if not record.parent_id:
        shared = {
            key: record.tags[key]
            for key in (*OWNER, "mlflow.source.git.commit", "darkroom.data")
            if key in record.tags
        }
        shared |= {
            "darkroom.stage": PARENT,
            "darkroom.group": record.group,
            "mlflow.source.name": "dvc repro",
            HEARD: str(now()),
        }
        found = client.search_runs(
            [experiment], f"tags.`darkroom.group` = '{record.group}' and tags.`darkroom.stage` = '{PARENT}'"
        )
        name, note = (
            record.parent.get("name") or record.group,
            {"mlflow.note.content": record.parent.get("note", "")},
        )
        made = found or [client.create_run(experiment, record.started, {**shared, **note}, run_name=name)]
        record.parent_id = made[-1].info.run_id
        _add_params(client, made[-1], record.parent.get("params", {}))
        set_tags(client, record.parent_id, shared)
        client.update_run(record.parent_id, status="RUNNING")
    return {PARENT_TAG: record.parent_id}


def _add_params(client: "MlflowClient", run: "Run", params: dict[str, str]) -> None:
    """Log the params that the run lacks: MLflow refuses another value for one that it has."""
    from mlflow.entities import Param

    missing = [Param(key, value) for key, value in sorted(params.items()) if key not in run.data.params]
    for start in range(0, len(missing), MAX_PARAMS):
        client.log_batch(run.info.run_id, params=missing[start : start + MAX_PARAMS])


def _send_metrics(client: "MlflowClient", record: Record, name: str) -> None:
    from mlflow.entities import Metric

    path, begun = Path(record.folder, name), record.offsets.get(name, 0)
    if not path.is_file():
        return
    if path.stat().st_size < begun:
        begun = 0
    known: dict[str, set[int]] = {}  # steps that the run has: sent by an earlier attempt whose record is gone
    dropped = dict(record.dropped)
    waiting: list[Metric] = []
    offset = begun
    for offset, line in lines(path, begun):  # noqa: B007 - where the last line ends
        for key, value in line["metrics"].items():
            if not isinstance(value, int | float) or not math.isfinite(value):
                dropped.setdefault(key, line["step"])
                continue
            if (begun == 0 or record.adopted) and key not in known:
                known[key] = {point.step for point in client.get_metric_history(record.run_id, key)}
            if line["step"] not in known.get(key, ()):
                waiting.append(Metric(key, float(value), line["time"], line["step"]))
    for start in range(0, len(waiting), MAX_METRICS):
        client.log_batch(record.run_id, metrics=waiting[start : start + MAX_METRICS])
    record.offsets = {**record.offsets, name: offset}
    if dropped != record.dropped:
        record.dropped = dropped
        record.tag(
            {
                "darkroom.not_finite": ", ".join(
                    f"{key} from step {step}" for key, step in sorted(dropped.items())
                )[:5000]
            }
        )
        set_tags(client, record.run_id, record.tags)


def lines(path: Path, offset: int = 0) -> Iterator[tuple[int, dict[str, Any]]]:
    """Each whole line from byte ``offset`` on, with the byte where it ends; a line of another form is passed over."""
    with open(path, "rb") as file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n"):
                return
            offset += len(line)
            try:
                value = json.loads(line)
                yield (
                    offset,
                    {
                        "step": int(value["step"]),
                        "time": int(value["time"]),
                        "metrics": dict(value["metrics"]),
                    },
                )
            except (ValueError, TypeError, KeyError):
                continue


def _send_pictures(client: "MlflowClient", record: Record) -> None:
    samples = {
        int(match[1]): path
        for path in Path(record.folder, "samples").glob("step-*.png")
        if (match := PICTURE.fullmatch(path.name))
    }
    if not samples:
        return
    from PIL import Image

    there = " ".join(entry.path for entry in client.list_artifacts(record.run_id, "images"))
    for step, path in sorted(samples.items()):
        if f"samples+step+{step}+" not in there:
            with Image.open(path, formats=("PNG",)) as picture:
                client.log_image(record.run_id, picture, key=PICTURES, step=step, synchronous=True)


def _send_results(client: "MlflowClient", record: Record, name: str, result: dict[str, Any]) -> None:
    """``test/<model>/<metric>`` to this run and its parent; all to the model's version; ``test_<metric>`` to the run that trained it.

    MLflow shows metrics without a prefix last, so that run's curves come first; it gets no intervals and floors. What an experiment
    measured in passing does not replace what is known.
    """
    aside = EXPERIMENT_TAG in record.tags
    named = {f"test/{name}/{metric}": value for metric, value in result["metrics"].items()}
    for run_id in filter(None, (record.run_id, record.parent_id)):
        _send_once(client, run_id, named, result["time"])
    version = registry.find_version(client, name, result["sha256"]) if result["sha256"] else None
    if version is not None and exists(client, version.run_id):
        known = client.get_run(version.run_id).data.metrics if aside else {}
        plain = {
            f"test_{metric}": value
            for metric, value in result["metrics"].items()
            if not metric.endswith(("_low", "_high", "_floor"))
        }
        _send_once(
            client,
            version.run_id,
            {key: value for key, value in plain.items() if key not in known},
            result["time"],
        )
        registry.describe(client, version, result["metrics"], result["protocol"], aside=aside)


def _register(client: "MlflowClient", record: Record) -> None:
    """Register what the record keeps of its model, unless the folder holds other weights by now; tag the run with what became of it."""
    folder, name = Path(record.model["folder"]), record.model["name"]
    try:
        kept = model_files.read_card(folder)["sha256"] == record.model["sha256"]
    except BadInput:
        kept = False
    version = "none: the weights were gone before a server answered"
    if kept:
        tags = {
            f"darkroom.{key}": record.tags[f"darkroom.{key}"]
            for key in ("fingerprint", "data")
            if f"darkroom.{key}" in record.tags
        }
        version = registry.register(
            client, record.run_id, folder, name, tags, waits=bool(record.model.get("waits"))
        )
    record.model = {**record.model, "version": version}
    if kept or not record.repeated:
        told = {"darkroom.model": name, "darkroom.version": version} | (
            {"darkroom.sha256": record.model["sha256"]} if kept else {}
        )
        record.tag(told)
        set_tags(client, record.run_id, told)


def _send_once(client: "MlflowClient", run_id: str, metrics: dict[str, float], at: int) -> None:
    from mlflow.entities import Metric

    known = client.get_run(run_id).data.metrics
    new = [Metric(key, value, at, 0) for key, value in metrics.items() if known.get(key) != value]
    for start in range(0, len(new), MAX_METRICS):
        client.log_batch(run_id, metrics=new[start : start + MAX_METRICS])


def set_tags(client: "MlflowClient", run_id: str, tags: dict[str, str]) -> None:
    """Set tags, as many in a call as MLflow takes."""
    from mlflow.entities import RunTag

    made = [RunTag(key, value) for key, value in sorted(tags.items())]
    for start in range(0, len(made), MAX_PARAMS):
        client.log_batch(run_id, tags=made[start : start + MAX_PARAMS])


def _experiment(client: "MlflowClient", artifacts: str | None) -> str:
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(EXPERIMENT)
    if found is not None:
        if found.lifecycle_stage == "deleted":
            client.restore_experiment(found.experiment_id)
        return found.experiment_id
    try:
        return client.create_experiment(EXPERIMENT, artifact_location=artifacts)
    except MlflowException as error:  # another machine was faster
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
        return client.get_experiment_by_name(EXPERIMENT).experiment_id  # type: ignore[union-attr]


def now() -> int:
    """Ms since the epoch."""
    return time.time_ns() // 1_000_000
