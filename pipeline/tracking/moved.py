"""Correct the stored paths of a project whose folder was moved, renamed or copied.

MLflow stores the absolute location of each experiment, run and model, so after a move it would still read and
write in the old folder. Only the default database, ``mlflow.db`` in the project's root, is corrected: another
one may belong to other projects.
"""

import contextlib
import re
import sqlite3
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlparse

from pipeline.environment import Environment
from pipeline.files import read_json, write_json, write_text
from pipeline.tracking import delivery_queue

EXPERIMENT = "darkroom"
ARTIFACTS = "mlartifacts"
LOCATIONS = {
    "experiments": ("artifact_location",),
    "runs": ("artifact_uri",),
    "logged_models": ("artifact_location",),
    "model_versions": ("source", "storage_location"),
}  # the columns of MLflow's tables that hold a location
PATHS = ("folder", "model", "artifacts")  # the fields of a run record that hold paths
LOCK_SECONDS = 60


def default_uri(root: Path) -> str:
    """The tracking address of a project that sets none."""
    return f"sqlite:///{root}/mlflow.db"


def moved_from(environment: Environment) -> str:
    """The folder of the project when MLflow's database was last used; empty if it was not moved since.

    It is also empty if the database was copied without the artifacts, which are still in the old folder.
    """
    database, root = environment.root / "mlflow.db", environment.root
    if environment.tracking_uri != default_uri(root) or not database.is_file():
        return ""
    uri = f"file:{quote(str(database))}?mode=ro"
    try:
        with contextlib.closing(sqlite3.connect(uri, uri=True)) as connection:
            query = "SELECT artifact_location FROM experiments WHERE name = ?"
            found = connection.execute(query, (EXPERIMENT,)).fetchone()
    except sqlite3.Error:  # not a database of MLflow
        return ""
    artifacts = Path(unquote(urlparse(found[0]).path)) if found and found[0].startswith("file:///") else None
    if artifacts is None or artifacts.name != ARTIFACTS or artifacts.parent.resolve() == root.resolve():
        return ""
    if artifacts.exists() and not (root / ARTIFACTS).exists():
        return ""
    return str(artifacts.parent)


def follow(environment: Environment) -> None:
    """If the project was moved, replace the old folder in run records, DVC's local settings and the database.

    The database is changed last, in one transaction: a killed call is repeated by the next one.
    """
    if not (old_root := moved_from(environment)):
        return
    root, address = str(environment.root), delivery_queue.address(environment)
    old_address = delivery_queue.address(replace(environment, tracking_uri=default_uri(Path(old_root))))
    for path in sorted(delivery_queue.records_folder(environment).glob("*.json")):
        try:
            record = read_json(path)
        except (OSError, ValueError):
            continue
        if isinstance(record, dict) and record.get("address") == old_address:
            paths = {key: _replaced(record[key], old_root, root) for key in PATHS if key in record}
            write_json(path, {**record, **paths, "address": address})
    settings = environment.root / ".dvc/config.local"
    if settings.is_file():
        text = settings.read_text(encoding="utf-8")
        changed = re.sub(rf"(?m)(=\s*){re.escape(old_root)}(?=/|\s*$)", lambda match: match[1] + root, text)
        if changed != text:
            write_text(settings, changed)
    database = sqlite3.connect(environment.root / "mlflow.db", timeout=LOCK_SECONDS, isolation_level=None)
    with contextlib.closing(database):
        database.execute("BEGIN IMMEDIATE")
        location = ((Path(old_root) / ARTIFACTS).as_uri(),)
        query = "SELECT 1 FROM experiments WHERE artifact_location = ?"
        if not database.execute(query, location).fetchone():
            return  # another process has corrected it in the meantime
        for old, new in ((old_root, root), (Path(old_root).as_uri(), Path(root).as_uri())):
            values = (f"{new}/", len(old) + 2, len(old) + 1, f"{old}/")
            for table, columns in LOCATIONS.items():
                for column in columns:
                    change = f"{column} = ? || substr({column}, ?) WHERE substr({column}, 1, ?) = ?"
                    database.execute(f"UPDATE {table} SET {change}", values)
        database.execute("COMMIT")
    print(
        f"note: the project was moved from {old_root} to {root}; MLflow's locations were updated",
        file=sys.stderr,
        flush=True,
    )


def _replaced(value: Any, old_root: str, root: str) -> Any:
    """``value`` with ``root`` instead of ``old_root`` at the start of each path in it."""
    if isinstance(value, dict):
        return {key: _replaced(item, old_root, root) for key, item in value.items()}
    if isinstance(value, list):
        return [_replaced(item, old_root, root) for item in value]
    if isinstance(value, str) and value.startswith(f"{old_root}/"):
        return root + value.removeprefix(old_root)
    return value
