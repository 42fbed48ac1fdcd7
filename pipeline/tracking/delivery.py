"""Sending a run record to MLflow. It can stop at any point and be repeated.

A repetition adds nothing twice: MLflow identifies a metric by (key, step, timestamp, value), and the rest is
compared with what MLflow has. One training (a stage and a fingerprint) is one run; repeating it adds what the
run lacks. Runs of one commit and params.yaml, or of one DVC experiment, are children of one parent run.
"""

import json
import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.core import metrics_log, model_files
from pipeline.environment import Environment
from pipeline.errors import BadInput, DarkroomError
from pipeline.estimate import Estimate
from pipeline.tracking import connection, identity, lineage, registry
from pipeline.tracking.connection import log_batches, set_tags
from pipeline.tracking.delivery_queue import RunRecord, now

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

EXPERIMENT_TAG = "darkroom.experiment"  # the DVC experiment
OWNER = ("darkroom.host", "darkroom.pid", "darkroom.process_started")  # tags: the process that writes the run
LAST_HEARTBEAT = (
    "darkroom.last_heartbeat"  # a tag: when that process last sent something, in ms since the epoch
)
SAMPLES_KEY = "train/samples"  # MLflow shows the sample grids with the curves of ``train``


def deliver(
    client: "MlflowClient", experiment: str, record: RunRecord, environment: Environment, *, announce: bool
) -> None:
    """Bring MLflow up to date with ``record``. ``announce``: create or reopen the run first."""
    status = record.status  # read once: if it changes during the delivery, more has to be sent
    if announce:
        _announce(client, experiment, record)
        record.save(environment)
    if record.folder:
        for name in ("metrics.jsonl", "system.jsonl"):
            _send_metrics(client, record, name)
        _send_samples(client, record)
    for name, result in record.results.items():
        _send_results(client, experiment, record, name, result)
    for path, folder in record.artifacts[record.num_artifacts :]:
        send = client.log_artifacts if os.path.isdir(path) else client.log_artifact
        send(record.run_id, path, folder or None)
        record.num_artifacts += 1
    if record.model and "version" not in record.model:
        _register(client, record)
    if status == "RUNNING":
        client.set_tag(record.run_id, LAST_HEARTBEAT, str(now()))
        record.save(environment)
        return
    connection.record_artifacts(client, record.run_id, _names(record.artifacts))
    if not record.repeated:
        set_tags(client, record.run_id, record.tags)
        client.set_terminated(record.run_id, status, record.ended)
    if record.parent_id:
        client.set_terminated(record.parent_id, status, record.ended)
    record.path(environment).unlink(missing_ok=True)
    shutil.rmtree(record.artifacts_folder(environment), ignore_errors=True)


def _names(artifacts: list[list[str]]) -> set[str]:
    """The names of the files of ``artifacts`` within the run."""
    names = set[str]()
    for path, folder in artifacts:
        place = Path(path)
        files, base = (place.rglob("*"), place) if place.is_dir() else ([place], place.parent)
        names |= {Path(folder, file.relative_to(base)).as_posix() for file in files}
    return names


def _announce(client: "MlflowClient", experiment: str, record: RunRecord) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    run = connection.find_run(client, experiment, record.stage, record.fingerprint)
    if run is None or run.info.run_id != record.run_id:
        record.offsets = {}  # a new run, or another one than before: send everything
    if run is None:
        name = record.name or record.stage
        run = client.create_run(experiment, record.started, record.tags, run_name=name)
    record.run_id, record.parent_id, known = run.info.run_id, "", run.data.tags
    record.adopted = any(known.get(key) != record.tags.get(key) for key in OWNER)
    # a record left by a dead process, whose training another process has continued
    superseded = record.adopted and record.process != lineage.Process.current()
    record.repeated = run.info.status == "FINISHED" or superseded
    if record.repeated:
        tags = {key: value for key, value in record.tags.items() if key not in known}
    else:
        client.update_run(record.run_id, status="RUNNING")
        tags = dict(record.tags)
        if record.group:
            record.parent_id = tags["mlflow.parentRunId"] = _announce_parent(client, experiment, record)
        elif record.parent:
            tags["mlflow.parentRunId"] = _search_run(client, experiment, record)
        if "darkroom.failure" in known:  # of an earlier attempt
            client.delete_tag(record.run_id, "darkroom.failure")
    set_tags(client, record.run_id, tags)
    _add_params(client, run, record.params)
    if record.dataset and not (run.inputs and run.inputs.dataset_inputs):
        source = json.dumps({"uri": record.dataset["source"]})
        data = Dataset(record.dataset["name"], record.dataset["digest"][:36], "local", source)
        client.log_inputs(record.run_id, [DatasetInput(data, [InputTag("mlflow.data.context", "training")])])


def _announce_parent(client: "MlflowClient", experiment: str, record: RunRecord) -> str:
    """Create or reopen the parent run of the record's group; its id."""
    shared = (*OWNER, "mlflow.source.git.commit", "darkroom.data")
    tags = {key: record.tags[key] for key in shared if key in record.tags}
    tags |= {"mlflow.source.name": "dvc repro", LAST_HEARTBEAT: str(now())}
    new = {**tags, "mlflow.note.content": record.parent.get("note", "")}
    name = record.parent.get("name", "")
    parent = connection.parent_run(client, experiment, record.group, record.started, new, name)
    _add_params(client, parent, record.parent.get("params", {}))
    set_tags(client, parent.info.run_id, tags)
    client.update_run(parent.info.run_id, status="RUNNING")
    return parent.info.run_id


def _search_run(client: "MlflowClient", experiment: str, record: RunRecord) -> str:
    """The id of the run with the stage and fingerprint in ``record.parent``, created if it is missing."""
    stage, fingerprint = record.parent["stage"], record.parent["fingerprint"]
    if run := connection.find_run(client, experiment, stage, fingerprint):
        return run.info.run_id
    tags = {"darkroom.stage": stage, "darkroom.fingerprint": fingerprint}
    return client.create_run(experiment, record.started, tags, run_name=stage).info.run_id


def _add_params(client: "MlflowClient", run: "Run", params: dict[str, str]) -> None:
    """Log the params that the run lacks: MLflow refuses to change the value of a param."""
    from mlflow.entities import Param

    missing = [Param(key, value) for key, value in sorted(params.items()) if key not in run.data.params]
    log_batches(client, run.info.run_id, "params", missing)


def _send_metrics(client: "MlflowClient", record: RunRecord, name: str) -> None:
    from mlflow.entities import Metric

    path, start = Path(record.folder, name), record.offsets.get(name, 0)
    if not path.is_file() or path.stat().st_size < start:
        start = 0
    lines, end = metrics_log.read_from(path, start)
    sent: dict[str, set[int]] = {}  # steps that the run has from an earlier attempt, by key
    metrics: list[Metric] = []
    for line in lines:
        for key, value in line["metrics"].items():
            if (start == 0 or record.adopted) and key not in sent:
                sent[key] = {point.step for point in client.get_metric_history(record.run_id, key)}
            if line["step"] not in sent.get(key, ()):
                metrics.append(Metric(key, value, line["time"], line["step"]))
    log_batches(client, record.run_id, "metrics", metrics)
    record.offsets = {**record.offsets, name: end}


def _send_samples(client: "MlflowClient", record: RunRecord) -> None:
    """Log the sample grids that the run lacks."""
    from PIL import Image

    samples = sorted(Path(record.folder, "samples").glob("step-*[0-9].png"))
    logged = [entry.path for entry in client.list_artifacts(record.run_id, "images")] if samples else []
    for path in samples:
        step = int(path.stem.removeprefix("step-"))
        if not any(f"samples+step+{step}+" in known for known in logged):
            with Image.open(path, formats=("PNG",)) as image:
                client.log_image(record.run_id, image, key=SAMPLES_KEY, step=step, synchronous=True)


def _send_results(
    client: "MlflowClient", experiment: str, record: RunRecord, name: str, result: dict[str, Any]
) -> None:
    """Log the results of a model to this run, its parent, the model's version and its training run.

    The training run gets ``test_<metric>``: MLflow shows metrics without a prefix last, after the curves.
    A DVC experiment does not overwrite the results of models that it did not train.
    """
    estimates = Estimate.read(result["metrics"])
    named = {
        f"test/{name}/{metric}": value
        for quantity, estimate in estimates.items()
        for metric, value in estimate.metrics(quantity).items()
    }
    for run_id in filter(None, (record.run_id, record.parent_id)):
        _send_changed(client, run_id, named, result["time"])
    if result["protocol"]:  # also in a run that has ended: a later version of the code may measure otherwise
        set_tags(client, record.run_id, {f"darkroom.protocol.{name}": result["protocol"]})
    version = registry.find_version(client, name, result) if result["sha256"] else None
    if version is None:
        return
    keep = EXPERIMENT_TAG in record.tags
    query = f"attributes.run_id = '{version.run_id}'"
    for trained in client.search_runs([experiment], query):  # none if it was deleted
        plain = {
            f"test_{quantity}": estimate.value
            for quantity, estimate in estimates.items()
            if not (keep and f"test_{quantity}" in trained.data.metrics)
        }
        _send_changed(client, version.run_id, plain, result["time"])
        registry.add_results(client, version, estimates, result["protocol"], keep_card=keep)


def _send_changed(client: "MlflowClient", run_id: str, metrics: dict[str, float], time: int) -> None:
    """Log the metrics that the run lacks or has with another value."""
    from mlflow.entities import Metric

    known = client.get_run(run_id).data.metrics
    changed = [Metric(key, value, time, 0) for key, value in metrics.items() if known.get(key) != value]
    log_batches(client, run_id, "metrics", changed)


def _register(client: "MlflowClient", record: RunRecord) -> None:
    """Register the record's model and tag the run with the version, or with why there is none."""
    folder, name = Path(record.model["folder"]), record.model["name"]
    card, kept = dict[str, Any](), False
    with suppress(BadInput):
        card = model_files.read_card(folder)
        known = identity.of_card(card)
        kept = known == {key: record.model.get(key, known[key]) for key in known}  # once without a digest
    version = "none: the weights were replaced or deleted before the server answered"
    if kept:
        keys = ("darkroom.fingerprint", "darkroom.data")
        tags = {key: record.tags[key] for key in keys if key in record.tags}
        undecided = bool(record.model.get("waits"))
        try:
            version = registry.register(client, record.run_id, folder, name, tags, undecided=undecided)
        except DarkroomError as error:  # the code was changed before the server answered
            version, kept = f"none: {error.what}", False
    record.model = {**record.model, "version": version}
    if kept or not record.repeated:
        tags = {"darkroom.model": name, "darkroom.version": version}
        tags |= identity.tags(card) if kept else {}
        record.tag(tags)
        set_tags(client, record.run_id, tags)
