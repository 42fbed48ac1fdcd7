"""Commands run in the root of the project that contains the current folder, as those of git and DVC do."""

import contextlib
import functools
from pathlib import Path
from typing import Any

import click

from pipeline import environment
from pipeline.errors import BadInput


def find() -> Path:
    """The root of the project that contains the current folder. Raises ``BadInput`` outside a project."""
    if root := environment.find_project(Path()):
        return root
    remedy = "change to a folder of your project: its root is the folder with dvc.yaml and .dvc"
    raise BadInput("not inside a project", where=str(Path.cwd()), remedy=remedy)


def in_project(command: click.Command) -> click.Command:
    """Run ``command`` in the project's root, or refuse it outside a project.

    Paths among its arguments have to be absolute: ``click.Path(resolve_path=True)``.
    """
    callback = command.callback
    assert callback is not None

    @functools.wraps(callback)
    def run(*arguments: Any, **options: Any) -> Any:
        with contextlib.chdir(find()):
            return callback(*arguments, **options)

    command.callback = run
    return command
