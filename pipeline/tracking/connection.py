"""The MLflow client and the experiment; creates the default database and experiment if they are missing."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from pipeline.environment import Environment
from pipeline.tracking import moved
from pipeline.tracking.moved import EXPERIMENT

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

SQLITE = "sqlite:///"
PARENT = "repro"  # the ``darkroom.stage`` of parent runs
LIMITS = {"metrics": 1000, "params": 100, "tags": 100}  # in one call; MLflow's own
LOCK_SECONDS = 60


def is_local(environment: Environment) -> bool:
    """Whether the tracking address is a database file rather than a server."""
    return environment.tracking_uri.startswith(SQLITE)


def connect(environment: Environment) -> tuple["MlflowClient", str]:
    """A client and the id of the experiment. Safe to call from several processes, and to kill."""
    from mlflow import MlflowClient

    uri = environment.tracking_uri
    if not is_local(environment):
        client = MlflowClient(uri)
        return client, _experiment(client, None)
    database = Path(uri.removeprefix(SQLITE))
    database.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{database}.lock", timeout=LOCK_SECONDS):
        if not database.exists():
            temporary = database.with_name(f"{database.name}.new")
            temporary.unlink(missing_ok=True)
            MlflowClient(f"{SQLITE}{temporary}").search_experiments(max_results=1)  # creates the tables
            os.replace(temporary, database)
        moved.follow(environment)
        artifacts = Path(environment.artifacts).resolve().as_uri() if environment.artifacts else None
        client = MlflowClient(uri)
        return client, _experiment(client, artifacts)


def find_run(client: "MlflowClient", experiment: str, stage: str, fingerprint: str) -> "Run | None":
    """The run of a training, the FINISHED one if there are several; None if there is none."""
    query = f"tags.`darkroom.fingerprint` = '{fingerprint}' and tags.`darkroom.stage` = '{stage}'"
    found = client.search_runs([experiment], query, order_by=["attributes.start_time ASC"])
    return min(found, key=lambda run: run.info.status != "FINISHED", default=None)


def find_parents(client: "MlflowClient", experiment: str, group: str) -> list["Run"]:
    """The parent runs of ``group``: one, or none before its first run is delivered."""
    query = f"tags.`darkroom.group` = '{group}' and tags.`darkroom.stage` = '{PARENT}'"
    return client.search_runs([experiment], query)


def set_tags(client: "MlflowClient", run_id: str, tags: dict[str, str]) -> None:
    """Set any number of tags."""
    from mlflow.entities import RunTag

    log_batches(client, run_id, "tags", [RunTag(key, value) for key, value in sorted(tags.items())])


def log_batches(client: "MlflowClient", run_id: str, kind: str, entities: list[Any]) -> None:
    """Log any number of metrics, params or tags (``kind``)."""
    for start in range(0, len(entities), LIMITS[kind]):
        batch: Any = {kind: entities[start : start + LIMITS[kind]]}
        client.log_batch(run_id, **batch)


def _experiment(client: "MlflowClient", artifacts: str | None) -> str:
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(EXPERIMENT)
    if found is not None:
        if found.lifecycle_stage == "deleted":
            client.restore_experiment(found.experiment_id)
        return found.experiment_id
    try:
        return client.create_experiment(EXPERIMENT, artifact_location=artifacts)
    except MlflowException as error:  # another machine may have created it in the meantime
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
        return client.get_experiment_by_name(EXPERIMENT).experiment_id  # type: ignore[union-attr]
