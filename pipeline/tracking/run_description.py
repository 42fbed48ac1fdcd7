"""What MLflow shows of a run apart from its results: params, tags, name, note; and its parent run."""

import getpass
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.environment import dvc_experiment, dvc_stage, group
from pipeline.files import digest_of
from pipeline.params import PARAMS
from pipeline.tracking import delivery, lineage, rerun
from pipeline.tracking.delivery_queue import RunRecord
from pipeline.tracking.lineage import redact

MAX_VALUE = 6000  # characters of a param; MLflow's limit
MAX_TAG = 5000
MAX_NAME = 250  # characters of a run's name; the database's limit
COMMIT = "mlflow.source.git.commit"


@dataclass(frozen=True)
class Description:
    """What a run is about. ``params`` may be nested: their keys are joined by dots.

    ``project``: the settings of the whole project, by dotted key, if they are not those of params.yaml.
    ``parent``: stage and fingerprint of the parent run, or nothing for a run without one; None: runs of one
    repro, experiment or retraining have a parent run in common.
    """

    stage: str  # the DVC stage; MLflow shows it as the source
    fingerprint: str  # identifies the training: the same fingerprint continues the same run
    params: Mapping[str, Any] = field(default_factory=dict)
    data_name: str = ""
    data_digest: str = ""  # SHA-256, hex
    data_source: str = ""  # the folder, relative to the project
    tags: Mapping[str, Any] = field(default_factory=dict)  # num_workers, device ...: shown as darkroom.<key>
    project: Mapping[str, Any] | None = None
    parent: tuple[str, ...] | None = None


def flatten(params: Mapping[str, Any]) -> dict[str, str]:
    """Nested params as text by dotted key, without credentials in URLs; other values than text as JSON."""
    return {key: redact(rerun.as_text(value))[:MAX_VALUE] for key, value in rerun.leaves(params).items()}


def describe(record: RunRecord, description: Description) -> None:
    """Set params, tags, name, group, parent and data set of ``record``."""
    stage, digest = description.stage, description.data_digest
    git, changed = lineage.git_tags(Path()), rerun.changes(Path(), description.project)
    record.params = flatten(description.params)
    data = f" on `{description.data_name}` (`{digest[:12]}`)" if digest else ""
    note = f"**{stage}**{data}. {rerun.note(stage, git, changed)}\n\nIts lineage: `darkroom trace <run id>`."
    owner = (record.owner[key] for key in ("host", "pid", "started"))
    tags = {
        "mlflow.source.name": stage,
        "mlflow.source.type": "LOCAL",
        "mlflow.user": getpass.getuser(),
        "mlflow.note.content": note,
        delivery.EXPERIMENT_TAG: dvc_experiment(),
        "darkroom.stage": stage,
        "darkroom.fingerprint": description.fingerprint,
        "darkroom.data": digest,
        "darkroom.command": " && ".join(rerun.commands(stage, git, changed)),
        "darkroom.params.changed": ", ".join(change.override for change in changed),
        **dict(zip(delivery.OWNER, owner)),
        **git,
        **lineage.version_tags(),
        **prefixed(description.tags),
        **md5_tags(stage),
    }
    record.tags = {key: redact(str(value))[:MAX_TAG] for key, value in tags.items() if value != ""}
    record.name = _name(stage, record.params.get("training.seed", ""), changed)
    if description.parent is None:
        _describe_parent(record, git, changed)
    else:
        record.parent = dict(zip(("stage", "fingerprint"), description.parent))
    if digest:
        source = redact(description.data_source)
        record.dataset = {"name": description.data_name, "digest": digest[:36], "source": source}


def _describe_parent(record: RunRecord, git: Mapping[str, str], changed: list[rerun.Change]) -> None:
    params = PARAMS.read_text(encoding="utf-8") if PARAMS.is_file() else ""
    own_group = f"repro-{digest_of([git[COMMIT], params])[:8]}"
    record.group = dvc_experiment() or group() or own_group
    by_commit = record.group == own_group and git[COMMIT] != "unknown"
    name = f"repro {git[COMMIT][:7]}" if by_commit else record.group
    title = redact(rerun.title(changed))
    record.parent = {
        "name": (f"{name}: {title}" if title else name)[:MAX_NAME],
        "params": flatten(rerun.read_params(Path())),
        "note": redact(rerun.note("", git, changed))[:MAX_TAG],
    }


def _name(stage: str, seed: str, changed: list[rerun.Change]) -> str:
    """The stage, its params that differ from the commit, and the seed."""
    own = rerun.of_stage(changed, stage)
    if seed:
        own = [change for change in own if not change.key.endswith(".training.seed")]
    parts = [stage, redact(rerun.title(own, stage)), f"seed {seed}" if seed else ""]
    return ", ".join(filter(None, parts))[:MAX_NAME]


def prefixed(tags: Mapping[str, Any]) -> dict[str, str]:
    """The tags as ``darkroom.<key>``."""
    return {f"darkroom.{key}": str(value) for key, value in tags.items()}


def md5_tags(stage: str) -> dict[str, str]:
    """DVC's md5s of the stage; empty unless DVC runs it, as dvc.lock may not match the files otherwise."""
    if dvc_stage() != stage:
        return {}
    return {f"dvc.md5.{path}": md5 for path, md5 in lineage.dvc_md5s(Path(), stage).items()}
