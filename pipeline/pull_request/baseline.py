"""What a working tree is compared with: the results of another git revision, or of the champions."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipeline.core import model_files
from pipeline.core.settings import read_training
from pipeline.environment import Environment
from pipeline.errors import BadInput, DarkroomError
from pipeline.estimate import Estimate
from pipeline.evaluation.evaluate import PROTOCOL, protocol_of
from pipeline.files import digest_of
from pipeline.git import git
from pipeline.params import PARAMS
from pipeline.retraining.gates import Numbers
from pipeline.tracking import connection, promotion, registry, rerun
from pipeline.tracking.run_description import flatten

DETAILS = "metrics/details.json"


@dataclass(frozen=True)
class Results:
    """The measures of one model, by the digest of the protocol. ``protocol``: the parts of the newest one."""

    numbers: Mapping[str, Numbers]
    protocol: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Baseline:
    """The other side of a comparison.

    ``params`` and ``now`` are the settings there and here, by dotted key. ``outputs`` has DVC's md5 of each
    output, or is None if they are not known.
    """

    title: str
    results: Mapping[str, Results]
    params: Mapping[str, Any]
    now: Mapping[str, Any]
    outputs: Mapping[str, str] | None = None
    notes: list[str] = field(default_factory=list)


def results_in(text: str) -> dict[str, Results]:
    """The results by model, of the text of metrics/details.json; empty if it cannot be read."""
    try:
        details = json.loads(text)
        protocols = {name: protocol_of(details, name) for name in details[PROTOCOL]}
    except (ValueError, TypeError, KeyError):
        return {}
    return {
        name: Results({digest_of(protocol): Estimate.read(details[name])}, protocol)
        for name, protocol in protocols.items()
    }


def of_revision(root: Path, revision: str) -> Baseline:
    """The results that a git revision has in its metrics/. It is not checked out.

    Raises ``BadInput`` if there is no such revision, or if it has no results.
    """
    name = ("rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
    commit = git(*name, cwd=root, check=False)
    if not commit:
        remedy = (
            "name a branch or commit that is here (git fetch origin main, then origin/main), or: champion"
        )
        raise BadInput("is not a git revision", where=f"--against {revision}", remedy=remedy)
    results = results_in(git("show", f"{commit}:./{DETAILS}", cwd=root, check=False))
    if not results:
        remedy = f"run dvc repro there and commit dvc.lock and {DETAILS}"
        raise BadInput(f"has no {DETAILS} that can be read", where=f"--against {revision}", remedy=remedy)
    try:
        lock = YAML(typ="safe", pure=True).load(git("show", f"{commit}:./dvc.lock", cwd=root, check=False))
        stages = lock["stages"].values()
        outs = {out["path"]: out.get("md5", "") for stage in stages for out in stage.get("outs", [])}
    except (YAMLError, TypeError, KeyError, AttributeError):
        outs = None
    behind = git("rev-list", "--count", f"HEAD..{commit}", cwd=root, check=False)
    notes = []
    if behind not in ("", "0"):
        notes.append(
            f"`{revision}` has {behind} commit(s) that are not here; what they changed is also listed below"
        )
    title, now = f"`{revision}` ({commit[:8]})", rerun.read_params(root)
    return Baseline(title, results, rerun.committed(root, commit), now, outs, notes)


def of_champions(environment: Environment, models: Iterable[str]) -> Baseline:
    """The results of the champions of ``models``, from MLflow's registry."""
    client, _ = connection.connect(environment)
    known = {model.name for model in client.search_registered_models(max_results=1000)}
    results, before, now, serving = dict[str, Results](), dict[str, str](), dict[str, str](), list[str]()
    for name in models:
        version = promotion.champion(client, name) if name in known else None
        if version is None:
            continue
        run = client.get_run(version.run_id)
        results[name] = Results(registry.results(version), {"data_digest": run.data.tags["darkroom.data"]})
        serving.append(f"`{name}/{version.version}`")
        try:
            settings, config = read_training(name, model_files.find(name).Config, environment.root / PARAMS)
        except DarkroomError:  # the results were not measured with these settings
            continue
        parts = (("training", settings), ("model", config))
        params = flatten({part: json.loads(section.model_dump_json()) for part, section in parts})
        now |= {f"{name}.{key}": value for key, value in params.items()}
        before |= {f"{name}.{key}": value for key, value in run.data.params.items()}
    notes = [f"Champions: {', '.join(serving) or 'none'}"]
    return Baseline("the champions", results, before, now, notes=notes)
