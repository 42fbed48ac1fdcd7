"""Moving the alias ``champion``: by promotion and rollback, each written down as a run, with its reason."""

import json
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.environment import Environment
from pipeline.errors import BadInput
from pipeline.tracking import outbox, registry
from pipeline.tracking.lineage import redact
from pipeline.tracking.registry import CHAMPION

if TYPE_CHECKING:
    from mlflow import MlflowClient

PREVIOUS = "darkroom.previous_champion"  # a version's tag: whose place it took


def find(client: "MlflowClient", thing: str) -> Any:
    """The version that ``NAME@ALIAS`` or ``NAME/VERSION`` names. Raises ``BadInput`` with what there is."""
    from mlflow.exceptions import MlflowException

    name, mark, wanted = thing.partition("@") if "@" in thing else thing.partition("/")
    try:
        return (
            client.get_model_version_by_alias(name, wanted)
            if mark == "@"
            else client.get_model_version(name, wanted)
        )
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
    models = client.search_registered_models(max_results=1000)
    if any(model.name == name for model in models):
        found = client.search_model_versions(
            f"name = '{name}'", order_by=["version_number DESC"], max_results=10
        )
        serves = champion(client, name)
        known = [
            f"{name}/{one.version}" + " (the champion)" * (one.version == getattr(serves, "version", None))
            for one in found
        ]
        what = f"no version of {name} has the alias '{wanted}'" if mark == "@" else "no such version"
        raise BadInput(what, where=thing, remedy=f"name a version, newest first: {', '.join(known)}")
    there = [
        f"{model.name} (versions 1 to {max(int(one.version) for one in model.latest_versions)}; {', '.join(model.aliases) or 'no alias'})"
        for model in models
        if model.latest_versions
    ]
    raise BadInput(
        "no such registered model",
        where=thing,
        remedy=f"name it NAME@ALIAS or NAME/VERSION; there is: {', '.join(there) or 'none'}",
    )


def fetch(environment: Environment, thing: str, beside: Path) -> Path:
    """The folder with the model files of the version that ``NAME@ALIAS`` or ``NAME/VERSION`` names.

    They are downloaded into ``beside`` where MLflow does not keep them in a local folder. Raises ``BadInput`` for an unknown one.
    """
    client, _ = outbox.connect(environment)
    return registry.weights(client, find(client, thing), beside)


def champion(client: "MlflowClient", name: str) -> Any | None:
    """The version that serves, or None."""
    alias = dict(client.get_registered_model(name).aliases).get(CHAMPION)
    return client.get_model_version(name, str(alias)) if alias else None


def promote(
    environment: Environment, version: Any, reason: str, gates: list[dict[str, Any]], occasion: str = ""
) -> None:
    """Make ``version`` the champion and write down why; the one before can be brought back with ``rollback``.

    A promotion that names its ``occasion`` happens once, however often it is asked for, and whatever was rolled back since.
    """
    client, experiment = outbox.connect(environment)
    before = champion(client, version.name)
    begun = _begun(client, experiment, version.name, occasion) if occasion else None
    rolled_back = occasion and registry.UNWANTED in version.tags
    if (
        begun is not None and rolled_back and begun.info.status == "RUNNING"
    ):  # it was killed before it could say that it was done
        client.set_terminated(begun.info.run_id, "FINISHED")
    if rolled_back or (begun is not None and begun.info.status == "FINISHED"):
        return
    if before is not None and str(before.version) != str(version.version):
        client.set_model_version_tag(version.name, version.version, PREVIOUS, str(before.version))
    _move(client, experiment, "promote", version, before, reason, gates, occasion, begun)


def rollback(environment: Environment, name: str, reason: str) -> tuple[str, str]:
    """Make the champion before this one the champion again; the versions (from, to). Raises ``BadInput`` where there is none."""
    client, experiment = outbox.connect(environment)
    now = find(client, f"{name}@{CHAMPION}")
    if PREVIOUS not in now.tags:
        raise BadInput(
            "there is no champion before this one",
            where=f"{name}@{CHAMPION} (version {now.version})",
            remedy="darkroom promote",
        )
    registry.withdraw(client, name, str(now.version), f"rolled back: {reason}")
    _move(client, experiment, "rollback", client.get_model_version(name, now.tags[PREVIOUS]), now, reason, [])
    return str(now.version), str(now.tags[PREVIOUS])


def deeds(client: "MlflowClient", experiment: str) -> list[dict[str, str]]:
    """What came to serve when: first versions, promotions, rollbacks, oldest first: time (UTC), deed, model, from, to, reason, occasion."""
    firsts = [
        client.search_model_versions(
            f"name = '{model.name}'", order_by=["creation_timestamp ASC"], max_results=1
        )
        for model in client.search_registered_models(max_results=1000)
    ]
    query = "attributes.status = 'FINISHED' and tags.`darkroom.deed` = 'yes'"
    runs = client.search_runs([experiment], query, max_results=1000, order_by=["attributes.start_time ASC"])
    begun = {run.data.tags.get("darkroom.model") for run in runs if not run.data.tags.get("darkroom.from")}
    found = [
        {
            "time": _utc(first.creation_timestamp),
            "deed": "first",
            "model": first.name,
            "from": "",
            "to": str(first.version),
        }
        | {"reason": "there was no champion", "occasion": ""}
        for versions in firsts
        for first in versions
        if first.name not in begun
    ]
    keys = {
        "deed": "stage",
        "model": "model",
        "from": "from",
        "to": "to",
        "reason": "reason",
        "occasion": "occasion",
    }
    for run in runs:
        found.append(
            {"time": _utc(run.info.start_time)}
            | {key: run.data.tags.get(f"darkroom.{tag}", "") for key, tag in keys.items()}
        )
    return sorted(found, key=lambda deed: deed["time"])


def _utc(milliseconds: int) -> str:
    return f"{datetime.fromtimestamp(milliseconds / 1000, UTC):%Y-%m-%dT%H:%M:%S}"


def _begun(client: "MlflowClient", experiment: str, name: str, occasion: str) -> Any | None:
    query = f"tags.`darkroom.occasion` = '{occasion}' and tags.`darkroom.stage` = 'promote' and tags.`darkroom.model` = '{name}'"
    return next(iter(client.search_runs([experiment], query, max_results=1)), None)


def _move(
    client: "MlflowClient",
    experiment: str,
    deed: str,
    to: Any,
    before: Any | None,
    reason: str,
    gates: list[dict[str, Any]],
    occasion: str = "",
    begun: Any | None = None,
) -> None:
    """Write the deed down, move the alias, and say that it is done; a kill between leaves a run that says it is not."""
    began = time.time_ns() // 1_000_000
    tags = {
        "darkroom.stage": deed,
        "darkroom.deed": "yes",
        "darkroom.occasion": occasion,
        "darkroom.model": to.name,
        "darkroom.from": str(before.version) if before else "",
        "darkroom.to": str(to.version),
        "darkroom.sha256": to.tags.get("darkroom.sha256", ""),
        "darkroom.reason": redact(reason),
        "darkroom.gates": json.dumps(gates),
        "mlflow.source.name": f"darkroom {deed}",
    }
    run = begun or client.create_run(experiment, began, tags, run_name=f"{deed}-{to.name}-{to.version}")
    client.set_registered_model_alias(to.name, CHAMPION, str(to.version))
    registry.withdraw(client, to.name, str(to.version))
    if deed == "promote" and registry.UNWANTED in to.tags:  # somebody wants it after all
        client.delete_model_version_tag(to.name, str(to.version), registry.UNWANTED)
    client.set_terminated(run.info.run_id, "FINISHED")
