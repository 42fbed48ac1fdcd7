"""The runs and registered versions of a project, read from MLflow."""

import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

from pipeline.environment import Environment
from pipeline.files import HASHES, check_hashes, remove, sha256
from pipeline.tracking import connection, moved
from pipeline.tracking.dvc_lock import WEIGHTS, Problem
from pipeline.tracking.lineage import redact

ADDED = "registered_model_meta"  # MLflow writes it into a local version that it loads
MAX_RESULTS = 1000  # of runs and of versions, the newest


class MlflowIndex:
    """Empty if MLflow has no database yet or does not answer; then ``note`` gives the reason."""

    def __init__(self, environment: Environment) -> None:
        self.uri = environment.tracking_uri
        self.versions: dict[str, Any] = {}  # by name/number
        self.aliases: dict[str, str] = {}  # name@alias -> name/number
        self.runs: list[Any] = []  # newest first
        self.note = "no MLflow database yet: runs and registered versions are not shown"
        if not connection.is_local(environment) or Path(self.uri.removeprefix(connection.SQLITE)).is_file():
            moved.follow(environment)
            self.note = (
                f"MLflow does not answer at {redact(self.uri)}: runs and registered versions are not shown"
            )
            with suppress(Exception):  # requests have a time limit, see ``environment.QUIET``
                self._read()

    def _read(self) -> None:
        from mlflow import MlflowClient

        client = MlflowClient(self.uri)
        experiments = [experiment.experiment_id for experiment in client.search_experiments()]
        query = "tags.`darkroom.stage` LIKE '%'"
        runs = list(client.search_runs(experiments, query, max_results=MAX_RESULTS))
        versions = client.search_model_versions(max_results=MAX_RESULTS)
        for model in client.search_registered_models():
            for alias, number in model.aliases.items():
                self.aliases[f"{model.name}@{alias}"] = f"{model.name}/{number}"
        self.versions = {f"{version.name}/{version.version}": version for version in versions}
        self.runs, self.note = runs, ""

    def check(self, version: Any, fetch: bool = False) -> Problem | None:
        """Compare the stored files of a version with their hashes. ``fetch``: download them from a server."""
        from mlflow.artifacts import download_artifacts

        uri, local = version.source, is_local(version)
        expected = version.tags.get("darkroom.sha256", "")
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
            folder = local_files(version) if local else Path(temporary)
            if fetch and not local:
                with suppress(Exception):  # without the weights, the version is reported as lost
                    download_artifacts(artifact_uri=uri, dst_path=temporary, tracking_uri=self.uri)
            file = next(folder.rglob(WEIGHTS), folder)
            found = sha256(file) if file.is_file() else ""
            others = self._check_files(version, folder) if found == expected else None
        if others:
            file, expected, found = folder / others[0], *others[1:]
        elif found == expected:
            return None
        state = "differs" if found else "absent" if local or fetch else "unchecked"
        remedy = f"restore MLflow's artifacts, or train it again: dvc repro --force train-{version.name}"
        path = str(file) if local else f"{uri}/{file.relative_to(folder)}"
        return Problem(path, state, expected, found, remedy)

    def check_run(self, run: Any) -> Problem | None:
        """Compare the local files of a run, such as sample grids, with the hashes that its end recorded."""
        folder, recorded = connection.artifacts_folder(run), run.data.tags.get(connection.FILES, "")
        if folder is None or not recorded or run.info.status == "RUNNING":
            return None
        found = sha256(folder / HASHES) if (folder / HASHES).is_file() else ""
        first = check_hashes(folder) if found in recorded.split() else (HASHES, recorded, found)
        if first is None:
            return None
        remedy = "restore MLflow's artifacts, or delete this run in MLflow"
        return Problem(str(folder / first[0]), "differs", first[1], first[2], remedy)

    @staticmethod
    def _check_files(version: Any, folder: Path) -> tuple[str, str, str] | None:
        """The first file, such as code, that was changed: its name, recorded and found SHA-256."""
        if link := next((path for path in folder.rglob("*") if path.is_symlink() and path.is_dir()), None):
            return str(link.relative_to(folder)), "", f"a link to {link.readlink()}"  # may lead to other code
        recorded = version.tags.get(
            connection.FILES, ""
        )  # an earlier version of Darkroom recorded the weights only
        found = sha256(folder / HASHES) if (folder / HASHES).is_file() else ""
        return (HASHES, recorded, found) if recorded not in ("", found) else check_hashes(folder, ADDED)


def is_local(version: Any) -> bool:
    """Whether the files of a version are in a local folder."""
    return urlparse(version.source).scheme in ("", "file")


def folder_of(version: Any) -> Path:
    """The local folder of a version."""
    return Path(unquote(urlparse(version.source).path))


def local_files(version: Any) -> Path:
    """The local folder of a version, without what Python compiled of its code and will compile again.

    It would run whatever the code says. What cannot be removed counts as an added file.
    """
    folder = folder_of(version)
    for compiled in list(folder.rglob("__pycache__")):
        remove(compiled)
    return folder
