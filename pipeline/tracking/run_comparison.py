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
from pipeline.tracking import promotion, registry

if TYPE_CHECKING:
    from mlflow import MlflowClient

SEED = "training.seed"
SAMPLES = re.compile(r"images/(?:train~)?samples\+step\+(\d+)\+.*\.png")


@dataclass(frozen=True)
class Compared:
    """One training. ``picture``: its last sample grid (PNG)."""

    title: str
    run_id: str
    params: Mapping[str, str]
    results: Mapping[str, Mapping[str, Estimate]]  # by protocol, the newest last
    picture: bytes


def collect(client: "MlflowClient", things: list[str]) -> list[Compared]:
    """The trainings NAME@ALIAS, NAME/VERSION or run id. Raises ``BadInput`` for an unknown one."""
    return [_compared(client, _run(client, thing), thing) for thing in things]


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
    query = f"tags.`darkroom.stage` = 'train-{name}' and attributes.status = 'FINISHED'"
    found: dict[int, Compared] = {}
    for run in client.search_runs([experiment], query, order_by=["attributes.start_time DESC"]):
        if (
            SEED in run.data.params
            and (seed := int(run.data.params[SEED])) not in found
            and _without_seed(run.data.params) == _without_seed(params)
            and run.data.tags.get("darkroom.data") == data
        ):
            found[seed] = _compared(client, run, run.info.run_name)
    return dict(sorted(found.items()))


def spread(values: list[float]) -> tuple[float, float]:
    """Mean and sample standard deviation (over n - 1; 0 for a single value)."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def _without_seed(params: Mapping[str, str]) -> dict[str, str]:
    return {key: value for key, value in params.items() if key != SEED}


def _run(client: "MlflowClient", thing: str) -> Any:
    from mlflow.exceptions import MlflowException

    run_id = thing if re.fullmatch(r"[0-9a-f]{32}", thing) else promotion.find(client, thing).run_id
    try:
        return client.get_run(run_id)
    except MlflowException:
        remedy = "name NAME@ALIAS, NAME/VERSION or a run id from the MLflow UI"
        raise BadInput("no such run", where=thing, remedy=remedy) from None


def _compared(client: "MlflowClient", run: Any, title: str) -> Compared:
    versions = client.search_model_versions(f"run_id = '{run.info.run_id}'")
    results = registry.results(versions[0]) if versions else {}
    samples = {
        int(match[1]): entry.path
        for entry in client.list_artifacts(run.info.run_id, "images")
        if (match := SAMPLES.fullmatch(entry.path))
    }
    picture = b""
    if samples:
        with tempfile.TemporaryDirectory() as temporary:
            path = client.download_artifacts(run.info.run_id, samples[max(samples)], temporary)
            picture = Path(path).read_bytes()
    return Compared(title, run.info.run_id, run.data.params, results, picture)
