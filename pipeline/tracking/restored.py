"""Runs whose stage did not run here: DVC restored its outputs, and run.json in them describes the run."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline.core import metrics_log, model_files
from pipeline.environment import Environment
from pipeline.errors import BadInput
from pipeline.estimate import Estimate
from pipeline.files import read_json
from pipeline.tracking import connection, delivery_queue, identity, lineage
from pipeline.tracking.delivery_queue import RunRecord

RUN_FILE = "run.json"
# What a run shows of times.json, as tags.
RESOURCES = ("workers", "threads", "mode", "device", "total", "processor", "steps", "last_step")
DETAILS, REPORT = Path("metrics/details.json"), Path("reports")
NOT_MODELS = ("protocol", "warnings")  # keys of DETAILS
UNREADABLE = (OSError, ValueError, TypeError)


def missing_records(environment: Environment, client: Any, experiment: str) -> Iterator[RunRecord]:
    """A finished record for each training in history/ and for an evaluation in reports/ that MLflow lacks."""
    address, owner = delivery_queue.address(environment), asdict(lineage.Process.current())
    for folder in [*sorted(Path("history").glob("[!.]*")), REPORT]:
        try:
            record = RunRecord(address, owner=owner, status="FINISHED", **read_json(folder / RUN_FILE))
        except UNREADABLE:
            continue
        run = connection.find_run(client, experiment, record.stage, record.fingerprint)
        is_there = run is not None and run.info.status in ("FINISHED", "RUNNING")
        if not is_there and (folder != REPORT or DETAILS.is_file()):
            record.ended = record.started
            md5s = {f"dvc.md5.{path}": md5 for path, md5 in lineage.dvc_md5s(Path(), record.stage).items()}
            record.tag({"darkroom.restored": "true", **md5s})
            (_add_evaluation if folder == REPORT else _add_training)(record, folder)
            yield record


def _add_training(record: RunRecord, folder: Path) -> None:
    model, record.folder = Path("models", folder.name), str(folder.resolve())
    for line in metrics_log.read(folder / "metrics.jsonl"):
        record.ended = max(record.ended, line["time"])
    with suppress(*UNREADABLE):
        resources = read_json(folder / "times.json")
        shown = [key for key in RESOURCES if key in resources]
        record.tag({f"darkroom.{key}": str(resources[key]) for key in shown})
    with suppress(BadInput):  # the run is sent without its model; ``darkroom verify`` reports it
        record.model = model_of(model, model.name)


def model_of(folder: Path, name: str) -> dict[str, str]:
    """The model in ``folder``, to be registered as ``name``, as a record stores it."""
    known = identity.of_card(model_files.read_card(folder))
    return {"folder": str(folder.resolve()), "name": name, **known}


def _add_evaluation(record: RunRecord, folder: Path) -> None:
    numbers = {name: values for name, values in read_json(DETAILS).items() if name not in NOT_MODELS}
    record.results = results_of(numbers, record.tags, record.started)
    logged = (Path("metrics/evaluation.json"), DETAILS, folder / "index.html", Path("plots/pictures"))
    record.artifacts = [[str(path.resolve()), ""] for path in logged if path.exists()]


def results_of(
    results: Mapping[str, Mapping[str, Any]], tags: Mapping[str, str], time: int
) -> dict[str, dict[str, Any]]:
    """The results by model, as a record stores them. ``tags``: name weights and protocol; ``time``: ms.

    Those that an earlier version of Darkroom wrote in another form are left out.
    """
    return {
        name: {
            "metrics": {quantity: estimate.to_json() for quantity, estimate in found.items()},
            **identity.of_tags(tags, name),
            "protocol": tags.get(f"darkroom.protocol.{name}", ""),
            "time": time,
        }
        for name, measured in results.items()
        if (found := Estimate.read(measured))
    }
