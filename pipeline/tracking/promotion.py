"""Moving the alias ``champion`` by promotion and rollback. Each is recorded as a run with its reason."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.environment import Environment
from pipeline.errors import BadInput
from pipeline.tracking import connection, registry
from pipeline.tracking.delivery_queue import now
from pipeline.tracking.lineage import redact
from pipeline.tracking.registry import CHAMPION

if TYPE_CHECKING:
    from mlflow import MlflowClient

PREVIOUS = "darkroom.previous_champion"  # a version's tag: the champions before it, the last one first
NONE = "-"  # ends them
FIELDS = ("model", "from", "to", "reason", "retraining")  # of an entry of the history; tags darkroom.<field>


def find(client: "MlflowClient", thing: str) -> Any:
    """The version ``NAME@ALIAS`` or ``NAME/VERSION``. Raises ``BadInput`` with the known ones."""
    from mlflow.exceptions import MlflowException

    name, separator, wanted = thing.partition("@" if "@" in thing else "/")
    try:
        get = client.get_model_version_by_alias if separator == "@" else client.get_model_version
        return get(name, wanted)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
    known, models = list[str](), client.search_registered_models(max_results=1000)
    if name in [model.name for model in models]:
        query, newest_first = f"name = '{name}'", ["version_number DESC"]
        serving = getattr(champion(client, name), "version", None)
        for version in client.search_model_versions(query, order_by=newest_first, max_results=10):
            known.append(f"{name}/{version.version}{' (the champion)' * (version.version == serving)}")
        what = f"no version of {name} has the alias '{wanted}'" if separator == "@" else "no such version"
        raise BadInput(what, where=thing, remedy=f"name a version, newest first: {', '.join(known)}")
    for model in models:
        if numbers := [int(version.version) for version in model.latest_versions]:
            aliases = ", ".join(model.aliases) or "no alias"
            known.append(f"{model.name} (versions 1 to {max(numbers)}; {aliases})")
    remedy = f"name NAME@ALIAS or NAME/VERSION; registered: {', '.join(known) or 'none'}"
    raise BadInput("no such registered model", where=thing, remedy=remedy)


def fetch(environment: Environment, thing: str, folder: Path) -> Path:
    """The files of a version, as ``registry.weights``. Raises ``BadInput`` if it is unknown."""
    client, _ = connection.connect(environment)
    return registry.weights(client, find(client, thing), folder)


def champion(client: "MlflowClient", name: str) -> Any | None:
    """The version with the alias ``champion``, or None."""
    version = dict(client.get_registered_model(name).aliases).get(CHAMPION)
    return client.get_model_version(name, str(version)) if version else None


def promote(
    environment: Environment, version: Any, reason: str, gates: list[dict[str, Any]], retraining: str = ""
) -> None:
    """Make ``version`` the champion and record why. ``rollback`` undoes it.

    A promotion by a ``retraining`` (its name) happens once, even if repeated, and not after a rollback.
    """
    client, experiment = connection.connect(environment)
    name, number, before = version.name, str(version.version), champion(client, version.name)
    run = None  # the record of an earlier attempt
    if retraining:
        for found in connection.search(client, experiment, stage="promote", model=name):
            run = found if _entry(found)["retraining"] == retraining else run
    rolled_back = retraining and registry.UNWANTED in version.tags
    if rolled_back and run is not None and run.info.status == "RUNNING":
        client.set_terminated(run.info.run_id, "FINISHED")  # it was killed after moving the alias
    if rolled_back or (run is not None and run.info.status == "FINISHED"):
        return
    if before is not None and str(before.version) != number:
        chain = f"{before.version} {before.tags.get(PREVIOUS, NONE)}"
        client.set_model_version_tag(name, number, PREVIOUS, chain)
    if run is None:
        tags = {"reason": redact(reason), "gates": json.dumps(gates), "retraining": retraining}
        run = _start_run(client, experiment, "promote", version, before, tags)
    for tag in {registry.UNWANTED, registry.FIRST} & version.tags.keys():
        client.delete_model_version_tag(name, number, tag)
    _move_alias(client, version, run)


def rollback(environment: Environment, name: str, reason: str) -> tuple[str, str]:
    """Restore the previous champion; the versions (from, to). Raises ``BadInput`` if there is none."""
    client, experiment = connection.connect(environment)
    current = find(client, f"{name}@{CHAMPION}")
    replaced = current.tags.get(PREVIOUS, NONE).split()
    if replaced[0] == NONE:
        where = f"{name}@{CHAMPION} (version {current.version})"
        raise BadInput("there is no previous champion", where=where, remedy="darkroom promote")
    previous = client.get_model_version(name, replaced[0])
    registry.withdraw(client, name, str(current.version), f"rolled back: {reason}")
    tags = {"reason": redact(reason), "gates": "[]", "retraining": ""}
    if replaced[1:]:  # an earlier version of Darkroom wrote one number
        client.set_model_version_tag(name, replaced[0], PREVIOUS, " ".join(replaced[1:]))
    _move_alias(client, previous, _start_run(client, experiment, "rollback", previous, current, tags))
    return str(current.version), str(previous.version)


def alias_history(client: "MlflowClient", experiment: str) -> list[dict[str, str]]:
    """First versions, promotions and rollbacks (``event``), oldest first: time (UTC), event, ``FIELDS``."""
    history = list[tuple[int, dict[str, str]]]()  # with the time in milliseconds
    for event in ("promote", "rollback"):
        for run in connection.search(client, experiment, "attributes.status = 'FINISHED'", stage=event):
            history.append((run.info.start_time, {"event": event, **_entry(run)}))
    promoted_first = {entry["model"] for _, entry in history if not entry["from"]}
    for model in client.search_registered_models(max_results=1000):
        if model.name not in promoted_first:  # its oldest version became the champion at its registration
            query, oldest_first = f"name = '{model.name}'", ["creation_timestamp ASC"]
            for version in client.search_model_versions(query, order_by=oldest_first, max_results=1):
                values = (model.name, "", str(version.version), "there was no champion", "")
                history.append((version.creation_timestamp, {"event": "first", **dict(zip(FIELDS, values))}))
    history.sort(key=lambda dated: (dated[0], dated[1]["event"] != "first"))
    return [{"time": _utc(milliseconds), **entry} for milliseconds, entry in history]


def _entry(run: Any) -> dict[str, str]:
    """The ``FIELDS`` of a run that records a promotion or rollback."""
    tags = run.data.tags
    entry = {key: tags.get(f"darkroom.{key}", "") for key in FIELDS}
    return entry | {"retraining": entry["retraining"] or tags.get("darkroom.occasion", "")}  # its former name


def _utc(milliseconds: int) -> str:
    return f"{datetime.fromtimestamp(milliseconds / 1000, UTC):%Y-%m-%dT%H:%M:%S}"


def _start_run(
    client: "MlflowClient", experiment: str, action: str, version: Any, before: Any, tags: dict[str, str]
) -> Any:
    """The run that records a promotion or rollback. It is RUNNING until the alias has been moved."""
    tags |= {
        "stage": action,
        "model": version.name,
        "from": str(before.version) if before else "",
        "to": str(version.version),
        "sha256": version.tags.get("darkroom.sha256", ""),
    }
    tags = {f"darkroom.{key}": value for key, value in tags.items()}
    tags["mlflow.source.name"] = f"darkroom {action}"
    name = f"{action}-{version.name}-{version.version}"
    return client.create_run(experiment, now(), tags, run_name=name)


def _move_alias(client: "MlflowClient", version: Any, run: Any) -> None:
    client.set_registered_model_alias(version.name, CHAMPION, str(version.version))
    registry.withdraw(client, version.name, str(version.version))
    client.set_terminated(run.info.run_id, "FINISHED")
