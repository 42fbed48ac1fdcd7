"""Runs whose command never ran here: DVC brought their outputs from its cache or a remote, and they tell what they are."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline.core import model_files
from pipeline.environment import Environment
from pipeline.errors import BadInput
from pipeline.files import read_json
from pipeline.tracking import lineage, outbox
from pipeline.tracking.outbox import Record

TOLD = "run.json"
OWN_TAGS = (
    "darkroom.host",
    "darkroom.pid",
    "darkroom.process_started",
)  # of the process, not of what it makes
HEADLINES, DETAILS = Path("metrics/evaluation.json"), Path("metrics/details.json")
REPORT = Path("reports")


def records(environment: Environment, wanted: Callable[[str, str], bool]) -> Iterator[Record]:
    """A finished record for each training in history/ and for the evaluation in reports/, as far as they tell of themselves.

    ``wanted`` says of a stage and a fingerprint whether its record is needed.
    """
    for told in sorted(Path("history").glob(f"[!.]*/{TOLD}")):
        record = _record(environment, told, wanted)
        if record is not None:
            record.folder, name = str(told.parent.resolve()), told.parent.name
            metrics = told.parent / "metrics.jsonl"
            record.ended = (
                max([record.started, *(line["time"] for _, line in outbox.lines(metrics))])
                if metrics.is_file()
                else record.started
            )
            with suppress(OSError, ValueError, TypeError):
                times = read_json(told.parent / "times.json")
                record.tag(
                    {
                        f"darkroom.{key}": str(times[key])
                        for key in ("workers", "threads", "mode", "device")
                        if key in times
                    }
                )
            with suppress(BadInput):  # the run is told without its model, which verify will name
                weights = model_files.read_card(Path("models", name))["sha256"]
                record.model = {
                    "folder": str(Path("models", name).resolve()),
                    "name": name,
                    "sha256": weights,
                }
            yield record
    record = _record(environment, REPORT / TOLD, wanted)
    if record is not None and DETAILS.is_file():
        numbers = {name: values for name, values in read_json(DETAILS).items() if name != "protocol"}
        record.results = results_of(numbers, record.tags, record.started)
        logged = (HEADLINES, DETAILS, REPORT / "index.html", Path("plots/pictures"))
        record.artifacts = [[str(path.resolve()), ""] for path in logged]
        record.ended = record.started
        yield record


def results_of(
    results: Mapping[str, Mapping[str, Any]], tags: Mapping[str, str], time: int
) -> dict[str, dict[str, Any]]:
    """What a record keeps of an evaluation: the numbers by model, whose weights and protocol the tags name, and when (ms)."""
    return {
        name: {
            "metrics": {key: value for key, value in values.items() if isinstance(value, float)},
            "sha256": tags.get(f"darkroom.sha256.{name}", ""),
            "protocol": tags.get(f"darkroom.protocol.{name}", ""),
            "time": time,
        }
        for name, values in results.items()
    }


def _record(environment: Environment, path: Path, wanted: Callable[[str, str], bool]) -> Record | None:
    try:
        told = read_json(path)
        record = Record(outbox.address(environment), owner=asdict(lineage.Process.current()), **told)
    except (OSError, ValueError, TypeError):
        return None
    if not wanted(record.stage, record.fingerprint):
        return None
    md5s = {f"dvc.md5.{path}": md5 for path, md5 in lineage.dvc_md5s(Path.cwd(), record.stage).items()}
    record.tag({"darkroom.restored": "true", **md5s})
    record.status = "FINISHED"
    return record
