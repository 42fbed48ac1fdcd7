"""A case of bad input: how it is made, the stages that meet it, and what is printed."""

import contextlib
import importlib
import io
import json
import os
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

from pipeline import process
from pipeline.files import sha256
from tests.project import PARAMS

LEFT = (".darkroom/refused.csv", ".darkroom/downloads")  # documented: all names; what can be resumed
CLEAN = ("DARKROOM_", "MLFLOW_", "DVC_", "RAY_")
Build = Callable[[Path], None]


@dataclass(frozen=True)
class Case:
    """``build(project)`` writes the input into a project. The last of the ``stages`` refuses it, code 2.

    ``words``: parts of the error message, separated by ``|``. If it is empty, the input is accepted.
    """

    name: str
    build: Build
    words: str
    stages: tuple[str, ...] = ("download",)
    variables: dict[str, str] = field(default_factory=dict)


def write(folder: Path, **sections: object) -> None:
    """params.yaml with these sections in the place of those of the small project."""
    (folder / "params.yaml").write_text(json.dumps({**PARAMS, **sections}))  # JSON is YAML
    for name in ("own", "processed"):
        (folder / "data" / name).mkdir(parents=True, exist_ok=True)


def with_data(**settings: object) -> dict[str, object]:
    """The section ``data`` with these settings."""
    return {**PARAMS["data"], **settings}


def state(folder: Path) -> dict[str, str]:
    """The SHA-256 of each file, the target of each link and the mode of everything else, by name."""
    found = {}
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if not name.startswith(LEFT) and name != ".darkroom":
            link, is_file = path.is_symlink(), not path.is_symlink() and path.is_file()
            found[name] = (
                os.readlink(path) if link else sha256(path) if is_file else oct(path.lstat().st_mode)
            )
    return found


def run(folder: Path, stage: str, **variables: str) -> tuple[int, str]:
    """Run a stage as its own process would: (exit code, error output). Any other exception is raised."""
    name, *arguments = shlex.split(stage)
    error = io.StringIO()
    with _as_process(folder, variables), contextlib.redirect_stdout(io.StringIO()):
        try:
            with contextlib.redirect_stderr(error):
                process.run(importlib.import_module(f"stages.{name}").main, *arguments)
        except SystemExit as end:
            return int(end.code or 0), error.getvalue()
    return 0, error.getvalue()


@contextlib.contextmanager
def _as_process(folder: Path, variables: dict[str, str]) -> Iterator[None]:
    """In ``folder`` with these variables, without a change of the signals of this process."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(CLEAN)}
    with (
        contextlib.chdir(folder),
        mock.patch.dict(os.environ, {**kept, **variables}, clear=True),
        mock.patch.object(process, "die_with_parent"),
        mock.patch.object(process.signal, "signal"),
    ):
        yield
