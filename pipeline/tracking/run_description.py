"""What MLflow shows of a run apart from its results: params, tags, name, note; and its parent run."""

import getpass
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.environment import dvc_experiment, dvc_stage, group
from pipeline.files import digest_of
from pipeline.params import PARAMS
from pipeline.tracking import delivery, lineage, rerun
from pipeline.tracking.delivery_queue import RunRecord

MAX_VALUE = 6000  # characters of a param; MLflow's limit
MAX_TAG = 5000
MAX_NAME = 250  # characters of a run's name; the database's limit
COMMIT = "mlflow.source.git.commit"


@dataclass(frozen=True)
class Description:
    """What a run is about. ``params`` may be nested: their keys are joined by dots."""

    stage: str  # the DVC stage; MLflow shows it as the source
    fingerprint: str  # identifies the training: the same fingerprint continues the same run
    params: Mapping[str, Any] = field(default_factory=dict)
    data_name: str = ""
    data_digest: str = ""  # SHA-256, hex
    data_source: str = ""  # the folder, relative to the project
    tags: Mapping[str, Any] = field(default_factory=dict)  # num_workers, device ...: shown as darkroom.<key>


def flatten(params: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested params as text by dotted key; other values than text as JSON; URLs without credentials."""
    flat: dict[str, str] = {}
    for key, value in params.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value)
            flat[f"{prefix}{key}"] = lineage.redact(text)[:MAX_VALUE]
    return flat


def describe(record: RunRecord, description: Description) -> None:
    """Set params, tags, name, group, parent and data set of ``record``."""
    git, changed = lineage.git_tags(Path.cwd()), rerun.changes(Path.cwd())
    record.params = flatten(description.params)
    record.tags = _tags(description, record.owner, git, changed)
    record.name = _name(description, changed)
    params = PARAMS.read_text(encoding="utf-8") if PARAMS.is_file() else ""
    own_group = f"repro-{digest_of([git[COMMIT], params])[:8]}"
    record.group = dvc_experiment() or group() or own_group
    by_commit = record.group == own_group and git[COMMIT] != "unknown"
    title = lineage.redact(rerun.title(changed))
    name = f"repro {git[COMMIT][:7]}" if by_commit else record.group
    record.parent = {
        "name": (f"{name}: {title}" if title else name)[:MAX_NAME],
        "params": flatten(rerun.read_params(Path.cwd())),
        "note": lineage.redact(rerun.note("", git, changed))[:MAX_TAG],
    }
    if description.data_digest:
        source, digest = lineage.redact(description.data_source), description.data_digest[:36]
        record.dataset = {"name": description.data_name, "digest": digest, "source": source}


def prefixed(tags: Mapping[str, Any]) -> dict[str, str]:
    """The tags as ``darkroom.<key>``."""
    return {f"darkroom.{key}": str(value) for key, value in tags.items()}


def md5_tags(stage: str) -> dict[str, str]:
    """DVC's md5s of the stage; empty unless DVC runs it, as dvc.lock may not match the files otherwise."""
    if dvc_stage() != stage:
        return {}
    return {f"dvc.md5.{path}": md5 for path, md5 in lineage.dvc_md5s(Path.cwd(), stage).items()}


def _note(description: Description, git: Mapping[str, str], changed: list[rerun.Change]) -> str:
    digest = description.data_digest[:12]
    data = f" on `{description.data_name}` (`{digest}`)" if digest else ""
    commands = rerun.note(description.stage, git, changed)
    return f"**{description.stage}**{data}. {commands}\n\nIts lineage: `darkroom trace <run id>`."


def _tags(
    description: Description, owner: Mapping[str, Any], git: Mapping[str, str], changed: list[rerun.Change]
) -> dict[str, str]:
    tags = {
        "mlflow.source.name": description.stage,
        "mlflow.source.type": "LOCAL",
        "mlflow.user": getpass.getuser(),
        "mlflow.note.content": _note(description, git, changed),
        delivery.EXPERIMENT_TAG: dvc_experiment(),
        "darkroom.stage": description.stage,
        "darkroom.fingerprint": description.fingerprint,
        "darkroom.data": description.data_digest,
        "darkroom.command": " && ".join(rerun.commands(description.stage, git, changed)),
        "darkroom.params.changed": ", ".join(change.override for change in changed),
        **dict(zip(delivery.OWNER, (owner["host"], owner["pid"], owner["started"]))),
        **git,
        **lineage.version_tags(),
        **prefixed(description.tags),
        **md5_tags(description.stage),
    }
    return {key: lineage.redact(str(value))[:MAX_TAG] for key, value in tags.items() if value != ""}


def _name(description: Description, changed: list[rerun.Change]) -> str:
    """The stage, its params that differ from the commit, and the seed."""
    seed = flatten(description.params).get("training.seed")
    own = [
        change
        for change in rerun.of_stage(changed, description.stage)
        if not (seed and change.key.endswith(".training.seed"))
    ]
    title = lineage.redact(rerun.title(own, description.stage))
    parts = [description.stage, title, f"seed {seed}" if seed else ""]
    return ", ".join(filter(None, parts))[:MAX_NAME]
