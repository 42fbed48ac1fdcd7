"""Runs whose stage did not run here: DVC restored its outputs, and run.json in them describes the run."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline.core import model_files
from pipeline.environment import Environment
from pipeline.errors import BadInput
from pipeline.files import read_json
from pipeline.tracking import delivery_queue, lineage
from pipeline.tracking.delivery_queue import RunRecord

RUN_FILE = "run.json"
DETAILS, REPORT = Path("metrics/details.json"), Path("reports")


def records(environment: Environment, is_missing: Callable[[str, str], bool]) -> Iterator[RunRecord]:
    """A finished record for each training in history/ and for the evaluation in reports/ that MLflow lacks.

    ``is_missing``: whether MLflow lacks the run of a stage and fingerprint.
    """
    for run_file in sorted(Path("history").glob(f"[!.]*/{RUN_FILE}")):
        record = _record(environment, run_file, is_missing)
        if record is not None:
            folder, model = run_file.parent, Path("models", run_file.parent.name)
            record.folder, record.ended = str(folder.resolve()), record.started
            if (metrics := folder / "metrics.jsonl").is_file():
                times = (line["time"] for _, line in delivery_queue.read_lines(metrics))
                record.ended = max([record.started, *times])
            with suppress(OSError, ValueError, TypeError):
                resources = read_json(folder / "times.json")
                shown = [key for key in ("workers", "threads", "mode", "device", "total") if key in resources]
                record.tag({f"darkroom.{key}": str(resources[key]) for key in shown})
            with suppress(BadInput):  # the run is sent without its model; ``darkroom verify`` reports it
                sha256 = model_files.read_card(model)["sha256"]
                record.model = {"folder": str(model.resolve()), "name": model.name, "sha256": sha256}
            yield record
    record = _record(environment, REPORT / RUN_FILE, is_missing)
    if record is not None and DETAILS.is_file():
        numbers = {name: values for name, values in read_json(DETAILS).items() if name != "protocol"}
        record.results = results_of(numbers, record.tags, record.started)
        logged = (Path("metrics/evaluation.json"), DETAILS, REPORT / "index.html", Path("plots/pictures"))
        record.artifacts = [[str(path.resolve()), ""] for path in logged]
        record.ended = record.started
        yield record


def results_of(
    results: Mapping[str, Mapping[str, Any]], tags: Mapping[str, str], time: int
) -> dict[str, dict[str, Any]]:
    """The results by model, as a record stores them. ``tags``: name weights and protocol; ``time``: ms."""
    return {
        name: {
            "metrics": {key: value for key, value in values.items() if isinstance(value, float)},
            "sha256": tags.get(f"darkroom.sha256.{name}", ""),
            "protocol": tags.get(f"darkroom.protocol.{name}", ""),
            "time": time,
        }
        for name, values in results.items()
    }


def _record(environment: Environment, path: Path, is_missing: Callable[[str, str], bool]) -> RunRecord | None:
    owner = asdict(lineage.Process.current())
    try:
        record = RunRecord(delivery_queue.address(environment), owner=owner, **read_json(path))
    except (OSError, ValueError, TypeError):
        return None
    if not is_missing(record.stage, record.fingerprint):
        return None
    md5s = {f"dvc.md5.{path}": md5 for path, md5 in lineage.dvc_md5s(Path.cwd(), record.stage).items()}
    record.tag({"darkroom.restored": "true", **md5s})
    record.status = "FINISHED"
    return record
