"""The stages and runs of a lineage as OpenLineage events, for a file or an HTTP server."""

import uuid
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

import requests

from pipeline.environment import openlineage_key
from pipeline.errors import BadInput, DarkroomError
from pipeline.files import write_text
from pipeline.tracking.lineage import redact
from pipeline.tracking.rerun import as_text, leaves
from pipeline.tracking.trace import MD5_TAG
from pipeline.tracking.trace_tree import Node, Trace

SECONDS = 5  # to connect, and for an answer
STATES = {"FINISHED": "COMPLETE", "FAILED": "FAIL", "KILLED": "ABORT"}


def send(lineage: Trace, project: str, target: str) -> int:
    """Send the events of a lineage to ``target``, an http(s) URL or a file; their number.

    ``project`` names jobs and data sets. A file is replaced; it has one event on each line. A server is
    given up at the first event that it does not accept in ``SECONDS``. Raises ``DarkroomError`` then, and
    ``BadInput`` if the package openlineage-python is not installed.
    """
    try:
        from openlineage.client import event_v2
        from openlineage.client.serde import Serde
        from openlineage.client.transport import http
    except ImportError as error:
        what, remedy = f"the package {error.name} is not installed", "pip install 'darkroom[outward]'"
        raise BadInput(what, where="--openlineage", remedy=remedy) from None
    event_v2.set_producer(_producer())
    events = list(_Events(event_v2, lineage, f"darkroom://{project}").all())
    if urlsplit(target).scheme not in ("http", "https"):
        write_text(Path(target), "".join(f"{Serde.to_json(event)}\n" for event in events))
        return len(events)
    key = openlineage_key()
    auth = http.ApiKeyTokenProvider({"api_key": key}) if key else http.TokenProvider({})
    transport = http.HttpTransport(http.HttpConfig(target, timeout=SECONDS, auth=auth, retry={"total": 0}))
    for number, event in enumerate(events):
        try:
            transport.emit(event)
        except requests.RequestException as error:
            what = f"{number} of {len(events)} events sent, then: {redact(str(error))[:300]}"
            remedy = "check the URL and OPENLINEAGE_API_KEY, then repeat: events may be sent again"
            raise DarkroomError(what, where=redact(target), remedy=remedy) from None
    return len(events)


class _Events:
    """Makes the events. ``base``: the module with the classes of OpenLineage."""

    def __init__(self, base: ModuleType, lineage: Trace, namespace: str) -> None:
        self.base, self.namespace = base, namespace
        nodes = {node.id: node for node in lineage.walk()}.values()
        kinds = ("stage", "run", "version", "file")
        self.stages, self.runs, self.versions, files = (
            [node for node in nodes if node.kind == kind] for kind in kinds
        )
        self.outputs = {path for stage in self.stages for path in stage.details["outs"]}
        self.downloads = {  # by the md5 of the folder with the downloaded files
            file.hash: [child for child in file.children if child.kind == "source" and child.hash]
            for file in files
        }

    def all(self) -> Iterator[Any]:
        """The start and the end of each run, and the end of each stage of which no run is known."""
        for stage in self.stages:
            content = stage.details["deps"] | stage.details["outs"]
            runs = [run for run in self.runs if content.items() <= _md5s(run.details).items()]
            for run in runs:
                tags, run_id = run.details, str(uuid.UUID(run.hash))
                times = {"START": tags["start_time"], STATES.get(tags["status"], ""): tags["end_time"]}
                for state, milliseconds in times.items():
                    if state and milliseconds:
                        time = datetime.fromtimestamp(milliseconds / 1000, UTC)
                        yield self._event(state, time, run_id, stage, tags)
            if not runs:  # DVC does not record when it ran
                run_id = str(uuid.uuid5(uuid.NAMESPACE_URL, f"{self.namespace}/{stage.id}"))
                yield self._event("COMPLETE", datetime.now(UTC), run_id, stage, {})

    def _event(self, state: str, time: datetime, run_id: str, stage: Node, tags: Mapping[str, Any]) -> Any:
        from openlineage.client.facet_v2 import job_type_job, source_code_location_job, tags_run

        base, entry = self.base, stage.details
        commit = tags.get("mlflow.source.git.commit", "")
        params = leaves(entry["params"].get("params.yaml", entry["params"]))
        known = {"command": entry["cmd"], "git.commit": commit} | params
        shown = [tags_run.TagsRunFacetFields(key, as_text(value), "DVC") for key, value in known.items()]
        about: dict[str, Any] = {"jobType": job_type_job.JobTypeJobFacet("BATCH", "DVC", "STAGE")}
        if url := tags.get("mlflow.source.git.repoURL"):
            branch = tags.get("mlflow.source.git.branch")
            location = source_code_location_job.SourceCodeLocationJobFacet
            about["sourceCodeLocation"] = location("git", url, version=commit, branch=branch)
        data = [dep for dep in entry["deps"].items() if dep[0].startswith("data/") or dep[0] in self.outputs]
        inputs = [self._dataset(base.InputDataset, *dep) for dep in data]
        outputs = [self._dataset(base.OutputDataset, *out) for out in entry["outs"].items()]
        for md5 in entry["outs"].values():
            for file in self.downloads.get(md5, []):
                name, _, address = file.title.partition(" from ")
                inputs.append(self._dataset(base.InputDataset, address or name, file.hash, "downloads"))
        for version in self.versions:
            if tags and version.details.get("darkroom.run", "") == tags.get("run_id"):
                name = version.title.split()[1]
                outputs.append(self._dataset(base.OutputDataset, name, version.hash, "registry"))
        return base.RunEvent(
            eventTime=time.isoformat(timespec="milliseconds"),
            producer=_producer(),
            eventType=base.RunState[state],
            run=base.Run(run_id, {"tags": tags_run.TagsRunFacet(shown)}),
            job=base.Job(self.namespace, stage.details["name"], about),
            inputs=inputs,
            outputs=outputs,
        )

    def _dataset(self, kind: Any, name: str, digest: str, part: str = "") -> Any:
        from openlineage.client.facet_v2 import dataset_version_dataset

        version = dataset_version_dataset.DatasetVersionDatasetFacet(digest)
        return kind(f"{self.namespace}/{part}".rstrip("/"), name, facets={"version": version})


def _producer() -> str:
    return f"pkg:pypi/darkroom@{metadata.version('darkroom')}"


def _md5s(tags: Mapping[str, Any]) -> dict[str, str]:
    return {key.removeprefix(MD5_TAG): md5 for key, md5 in tags.items() if key.startswith(MD5_TAG)}
