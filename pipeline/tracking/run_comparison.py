"""Several trainings compared: their results, the params that differ, their samples from the same noise."""

import re
import statistics
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import BadInput
from pipeline.estimate import Estimate
from pipeline.tracking import identity, promotion, registry
from pipeline.tracking.connection import find_run, search

if TYPE_CHECKING:
    from mlflow import MlflowClient

SEED = "training.seed"
SAMPLES = re.compile(r"images/(?:train~)?samples\+step\+(\d+)\+.*\.png")


@dataclass(frozen=True)
class Compared:
    """One training. ``picture``: its last sample grid (PNG). ``tags``: of its MLflow run."""

    title: str
    run_id: str
    params: Mapping[str, str]
    results: Mapping[str, Mapping[str, Estimate]]  # by protocol, the newest last
    picture: bytes
    tags: Mapping[str, str]


def collect(client: "MlflowClient", things: list[str]) -> list[Compared]:
    """The trainings NAME@ALIAS, NAME/VERSION or run id. Raises ``BadInput`` for an unknown one."""
    from mlflow.exceptions import MlflowException

    compared = []
    for thing in things:
        version = None if re.fullmatch(r"[0-9a-f]{32}", thing) else promotion.find(client, thing)
        run_id = version.run_id if version else thing
        try:
            compared.append(_compared(client, client.get_run(run_id), thing, version))
        except MlflowException:
            remedy = "name NAME@ALIAS, NAME/VERSION or a run id from the MLflow UI"
            raise BadInput("no such run", where=thing, remedy=remedy) from None
    return compared


def differing(compared: list[Compared]) -> dict[str, list[str]]:
    """The params that differ, by name: the value of each training, empty if it lacks the param."""
    names = sorted({name for one in compared for name in one.params})
    values = {name: [one.params.get(name, "") for one in compared] for name in names}
    return {name: row for name, row in values.items() if len(set(row)) > 1}


def numbers(compared: list[Compared]) -> tuple[list[Mapping[str, Estimate]], bool]:
    """The newest results of one protocol that all share, else the newest of each; whether all share it."""
    shared = [
        protocol for protocol in compared[0].results if all(protocol in one.results for one in compared)
    ]
    if shared:
        return [one.results[shared[-1]] for one in compared], True
    return [[{}, *one.results.values()][-1] for one in compared], False


def by_seed(
    client: "MlflowClient", experiment: str, name: str, params: Mapping[str, str], data: str
) -> dict[int, Compared]:
    """The finished trainings of a model with these params except the seed, and this data digest, by seed."""
    finished, found = "attributes.status = 'FINISHED'", dict[int, Any]()
    for run in search(client, experiment, finished, stage=f"train-{name}", data=data):
        if SEED in run.data.params and {**run.data.params, SEED: ""} == {**params, SEED: ""}:
            found[int(run.data.params[SEED])] = run  # the newest of each seed
    return {seed: _compared(client, found[seed], found[seed].info.run_name) for seed in sorted(found)}


def by_fingerprint(
    client: "MlflowClient", experiment: str, name: str, fingerprint: str, title: str
) -> Compared | None:
    """The finished training of a model with this fingerprint; None if there is none."""
    run = find_run(client, experiment, f"train-{name}", fingerprint)
    return _compared(client, run, title) if run is not None and run.info.status == "FINISHED" else None


def failure(client: "MlflowClient", experiment: str, name: str, fingerprint: str) -> str:
    """Why the training of a model with this fingerprint failed; empty if that is not known."""
    run = find_run(client, experiment, f"train-{name}", fingerprint)
    return run.data.tags.get("darkroom.failure", "") if run is not None else ""


def curve(client: "MlflowClient", run_id: str, metric: str) -> list[float]:
    """The values of a metric of a training, by step."""
    return [point.value for point in sorted(client.get_metric_history(run_id, metric), key=lambda p: p.step)]


def spread(values: list[float]) -> tuple[float, float]:
    """Mean and sample standard deviation (over n - 1; 0 for a single value)."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def _compared(client: "MlflowClient", run: Any, title: str, version: Any | None = None) -> Compared:
    run_id, picture = run.info.run_id, b""
    # By its identity: a model that another run has registered keeps its version.
    name, known = run.data.tags.get("darkroom.model", ""), identity.of_tags(run.data.tags)
    if version is None and name and known["sha256"]:
        version = registry.find_version(client, name, known)
    found = (SAMPLES.fullmatch(entry.path) for entry in client.list_artifacts(run_id, "images"))
    samples = {int(match[1]): match[0] for match in found if match}
    if samples:
        with tempfile.TemporaryDirectory() as temporary:
            picture = Path(client.download_artifacts(run_id, samples[max(samples)], temporary)).read_bytes()
    results = registry.results(version) if version else {}
    return Compared(title, run_id, run.data.params, results, picture, run.data.tags)
