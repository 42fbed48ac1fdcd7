"""The MLflow client and the experiment; creates the default database and experiment if they are missing."""

import atexit
import os
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlparse

from filelock import FileLock

from pipeline.environment import Environment
from pipeline.files import HASHES, atomic_write, hashes, read_json, sha256, write_json
from pipeline.tracking import integrity, moved
from pipeline.tracking.moved import EXPERIMENT

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

SQLITE = "sqlite:///"
PARENT = "repro"  # the ``darkroom.stage`` of parent runs
LIMITS = {"metrics": 1000, "params": 100, "tags": 100}  # in one call; MLflow's own
LOCK_SECONDS = 60
# A tag: the SHA-256 of sha256.json; of the old and the new one while that is written.
FILES = "darkroom.files"


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
        atexit.unregister(integrity.record_database)
        atexit.register(integrity.record_database, database)
        artifacts = Path(environment.artifacts).resolve().as_uri() if environment.artifacts else None
        client = MlflowClient(uri)
        return client, _experiment(client, artifacts)


def reader(environment: Environment) -> "MlflowClient | None":
    """A client for a check: it neither creates nor records the database; None if there is none."""
    from mlflow import MlflowClient

    uri = environment.tracking_uri
    exists = not is_local(environment) or Path(uri.removeprefix(SQLITE)).is_file()
    return MlflowClient(uri) if exists else None


def _experiment(client: "MlflowClient", artifacts: str | None) -> str:
    found = get_or_create(
        lambda: client.get_experiment_by_name(EXPERIMENT),
        lambda: client.get_experiment(client.create_experiment(EXPERIMENT, artifact_location=artifacts)),
    )
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    return found.experiment_id


def get_or_create(get: Callable[[], Any], create: Callable[[], Any]) -> Any:
    """The result of ``get``, or of ``create`` if that is None. Other processes may do the same."""
    from mlflow.exceptions import MlflowException

    if (found := get()) is not None:
        return found
    try:
        return create()
    except MlflowException:
        if (found := get()) is None:
            raise
        return found


def search(client: "MlflowClient", experiment: str, more: str = "", **tags: str) -> list["Run"]:
    """The runs with these values of ``darkroom.<tag>``, oldest first. ``more``: a further condition."""
    conditions = [f"tags.`darkroom.{key}` = '{value}'" for key, value in tags.items()] + [more] * bool(more)
    oldest_first = ["attributes.start_time ASC"]
    return client.search_runs([experiment], " and ".join(conditions), max_results=1000, order_by=oldest_first)


def find_run(client: "MlflowClient", experiment: str, stage: str, fingerprint: str) -> "Run | None":
    """The run of a training, the FINISHED one if there are several; None if there is none."""
    found = search(client, experiment, stage=stage, fingerprint=fingerprint)
    return min(found, key=lambda run: run.info.status != "FINISHED", default=None)


def parent_run(
    client: "MlflowClient", experiment: str, group: str, started: int, tags: dict[str, str], name: str = ""
) -> "Run":
    """The parent run of ``group``, created with these ``tags`` if it is missing. ``started``: in ms."""
    if found := search(client, experiment, group=group, stage=PARENT):
        return found[0]
    tags = tags | {"darkroom.group": group, "darkroom.stage": PARENT}
    return client.create_run(experiment, started, tags, run_name=name or group)


def artifacts_folder(run: "Run") -> Path | None:
    """The folder of a run's artifacts; None if it is not local."""
    address = urlparse(run.info.artifact_uri or "")
    return Path(unquote(address.path)) if address.scheme in ("", "file") else None


def record_artifacts(client: "MlflowClient", run_id: str, written: Collection[str]) -> None:
    """Write the hashes of a run's local artifacts next to them, and the hash of these as a tag.

    What is recorded already keeps its hash, except for the names ``written``: so damage is not recorded as
    right. It can be killed at any point: the tag fits the file that is there. Where it does not, since an
    earlier version of Darkroom was killed, the hashes count as recorded if they fit all other files.
    """
    run = client.get_run(run_id)
    folder, known = artifacts_folder(run), run.data.tags.get(FILES, "")
    if folder is None or not folder.is_dir():
        return
    for temporary in folder.glob(f".*{HASHES}.*"):  # of a process that was killed here
        temporary.unlink(missing_ok=True)
    recorded, before = hashes(folder), ""
    if known:
        try:
            before, earlier = sha256(folder / HASHES), dict[str, str](read_json(folder / HASHES))
        except (OSError, ValueError, TypeError):
            return  # ``darkroom verify`` names it
        kept = {name: digest for name, digest in earlier.items() if name not in written}
        if before not in known.split() and any(recorded.get(name) != kept[name] for name in kept):
            return  # it was changed
        recorded |= kept
    with atomic_write(folder / HASHES) as temporary:
        write_json(temporary, recorded)
        after = sha256(temporary)
        if before:
            client.set_tag(run_id, FILES, f"{before} {after}")
    client.set_tag(run_id, FILES, after)


def set_tags(client: "MlflowClient", run_id: str, tags: dict[str, str]) -> None:
    """Set any number of tags."""
    from mlflow.entities import RunTag

    log_batches(client, run_id, "tags", [RunTag(key, value) for key, value in sorted(tags.items())])


def log_batches(client: "MlflowClient", run_id: str, kind: str, entities: Sequence[Any]) -> None:
    """Log any number of metrics, params or tags (``kind``)."""
    for start in range(0, len(entities), LIMITS[kind]):
        batch: Any = {kind: entities[start : start + LIMITS[kind]]}
        client.log_batch(run_id, **batch)
