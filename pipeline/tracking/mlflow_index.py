"""The runs and registered versions of a project, read from MLflow with a time limit."""

import tempfile
from collections.abc import Callable
from concurrent.futures import wait
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

from pipeline.environment import Environment
from pipeline.files import sha256
from pipeline.process import in_thread
from pipeline.tracking import connection, moved
from pipeline.tracking.dvc_lock import WEIGHTS, Problem
from pipeline.tracking.lineage import redact

MAX_RESULTS = 1000  # of runs and of versions, the newest
DATABASE_SECONDS, SERVER_SECONDS = 60, 10


class MlflowIndex:
    """Empty if MLflow has no database yet or does not answer; then ``note`` gives the reason."""

    def __init__(self, environment: Environment) -> None:
        self.uri = environment.tracking_uri
        moved.follow(environment)
        self.versions: dict[str, Any] = {}  # by name/number
        self.aliases: dict[str, str] = {}  # name@alias -> name/number
        self.runs: list[Any] = []  # newest first
        self.note = "no MLflow database yet: runs and registered versions are not shown"
        local = connection.is_local(environment)
        self._seconds = DATABASE_SECONDS if local else SERVER_SECONDS
        if not local or Path(self.uri.removeprefix(connection.SQLITE)).is_file():
            self.note = (
                f"MLflow does not answer at {redact(self.uri)}: runs and registered versions are not shown"
            )
            self._wait(self._read)

    def check(self, version: Any, fetch: bool = False) -> Problem | None:
        """Compare the stored weights of a version with its tag. ``fetch``: download them from a server."""
        from mlflow.artifacts import download_artifacts

        uri, expected = f"{version.source}/artifacts", version.tags.get("darkroom.sha256", "")
        available = local = is_local(version)
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
            folder = Path(unquote(urlparse(uri).path) if local else temporary)
            if fetch and not local:
                available = self._wait(
                    lambda: download_artifacts(artifact_uri=uri, dst_path=temporary, tracking_uri=self.uri)
                )
            file = next(folder.rglob(WEIGHTS), folder)
            found = sha256(file) if available and file.is_file() else ""
        if found == expected:
            return None
        state = "differs" if found else "absent" if available else "unchecked"
        remedy = f"restore MLflow's artifacts, or train it again: dvc repro --force train-{version.name}"
        path = str(file) if local else f"{uri}/{file.relative_to(folder)}"
        return Problem(path, state, expected, found, remedy)

    def _wait(self, function: Callable[[], Any]) -> bool:
        """Call a function that may fail or hang; whether it has ended in time."""
        import mlflow  # noqa: F401 - imported here, so that the import does not count as waiting

        return not wait([in_thread(function)], self._seconds).not_done

    def _read(self) -> None:
        from mlflow import MlflowClient

        client = MlflowClient(self.uri)
        experiments = [experiment.experiment_id for experiment in client.search_experiments()]
        query = "tags.`darkroom.stage` LIKE '%'"
        runs = list(client.search_runs(experiments, query, max_results=MAX_RESULTS))
        versions = client.search_model_versions(max_results=MAX_RESULTS)
        self.aliases = {
            f"{model.name}@{alias}": f"{model.name}/{number}"
            for model in client.search_registered_models()
            for alias, number in model.aliases.items()
        }
        self.versions = {f"{version.name}/{version.version}": version for version in versions}
        self.runs, self.note = runs, ""


def is_local(version: Any) -> bool:
    """Whether the files of a version are in a local folder."""
    return urlparse(version.source).scheme in ("", "file")
