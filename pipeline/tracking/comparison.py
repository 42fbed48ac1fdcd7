"""Runs laid side by side: what was measured of them, which params differ, what they drew from the same noise."""

import re
import statistics
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import BadInput
from pipeline.tracking import promotion, registry

if TYPE_CHECKING:
    from mlflow import MlflowClient

SEED = "training.seed"
PICTURE = re.compile(r"images/(?:train~)?samples\+step\+(\d+)\+.*\.png")


@dataclass(frozen=True)
class Compared:
    """One training: its title, params, measures (as ``evaluate`` flattens them) and its last sample grid (a PNG)."""

    title: str
    run_id: str
    params: Mapping[str, str]
    results: Mapping[str, Mapping[str, float]]  # by protocol, the newest last
    picture: bytes


def collect(client: "MlflowClient", things: list[str]) -> list[Compared]:
    """The trainings that ``things`` name: NAME@ALIAS, NAME/VERSION or a run id. Raises ``BadInput`` for one that is none."""
    return [_compared(client, _run(client, thing), thing) for thing in things]


def differing(compared: list[Compared]) -> dict[str, list[str]]:
    """The params that are not the same for all, by name; a param that a run lacks is empty."""
    names = sorted({name for one in compared for name in one.params})
    values = {name: [one.params.get(name, "") for one in compared] for name in names}
    return {name: row for name, row in values.items() if len(set(row)) > 1}


def numbers(compared: list[Compared]) -> tuple[list[Mapping[str, float]], bool]:
    """The measures of each, and whether one protocol took all of them: the newest that they share, else each one's newest."""
    shared = [
        protocol for protocol in compared[0].results if all(protocol in one.results for one in compared)
    ]
    if shared:
        return [one.results[shared[-1]] for one in compared], True
    return [[{}, *one.results.values()][-1] for one in compared], False


def by_seed(
    client: "MlflowClient", experiment: str, name: str, params: Mapping[str, str], data: str
) -> dict[int, Compared]:
    """The finished trainings of model ``name`` with these params, but for the seed, on the data with this digest; by seed."""
    query = f"tags.`darkroom.stage` = 'train-{name}' and attributes.status = 'FINISHED'"
    runs = client.search_runs([experiment], query, order_by=["attributes.start_time DESC"])
    found: dict[int, Compared] = {}
    for run in runs:
        alike = (
            _without_seed(run.data.params) == _without_seed(params)
            and run.data.tags.get("darkroom.data") == data
        )
        if alike and SEED in run.data.params and int(run.data.params[SEED]) not in found:
            found[int(run.data.params[SEED])] = _compared(client, run, run.info.run_name)
    return dict(sorted(found.items()))


def spread(values: list[float]) -> tuple[float, float]:
    """Mean and standard deviation (of the sample: over n - 1); 0 for a single value."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def _without_seed(params: Mapping[str, str]) -> dict[str, str]:
    return {key: value for key, value in params.items() if key != SEED}


def _run(client: "MlflowClient", thing: str) -> Any:
    from mlflow.exceptions import MlflowException

    run_id = thing if re.fullmatch(r"[0-9a-f]{32}", thing) else promotion.find(client, thing).run_id
    try:
        return client.get_run(run_id)
    except MlflowException:
        raise BadInput(
            "no such run", where=thing, remedy="name NAME@ALIAS, NAME/VERSION or a run id of the MLflow UI"
        ) from None


def _compared(client: "MlflowClient", run: Any, title: str) -> Compared:
    versions = client.search_model_versions(f"run_id = '{run.info.run_id}'")
    results = registry.results(versions[0]) if versions else {}
    drawn = {
        int(match[1]): entry.path
        for entry in client.list_artifacts(run.info.run_id, "images")
        if (match := PICTURE.fullmatch(entry.path))
    }
    picture = b""
    if drawn:
        with tempfile.TemporaryDirectory() as beside:
            picture = Path(client.download_artifacts(run.info.run_id, drawn[max(drawn)], beside)).read_bytes()
    return Compared(title, run.info.run_id, run.data.params, results, picture)
