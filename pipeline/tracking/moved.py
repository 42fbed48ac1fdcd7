"""A project whose folder was moved, renamed or copied: MLflow's local database and the local records follow it.

MLflow keeps the absolute location of each experiment, run and model, so after a move it would read from the former place and
write there. Only the default database, ``mlflow.db`` in the project's root, is corrected; another one is not the project's.
"""

import contextlib
import re
import sqlite3
import sys
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlparse

from pipeline.environment import Environment
from pipeline.files import read_json, write_json, write_text

EXPERIMENT = "darkroom"
ARTIFACTS = "mlartifacts"
LOCATIONS = {
    "experiments": ("artifact_location",),
    "runs": ("artifact_uri",),
    "logged_models": ("artifact_location",),
    "model_versions": ("source", "storage_location"),
}  # the columns of MLflow's tables that hold a location
PATHS = ("folder", "model", "artifacts")  # the fields of a record that hold paths
LOCK_SECONDS = 60


def default_uri(root: Path) -> str:
    """The tracking address of a project that names no other."""
    return f"sqlite:///{root}/mlflow.db"


def moved_from(environment: Environment) -> str:
    """The folder where this project lay when MLflow's database was last used; empty if that is still its place.

    It is empty too if the database was copied without the artifacts, which are still at the former place then.
    """
    database, root = environment.root / "mlflow.db", environment.root
    if environment.tracking_uri != default_uri(root) or not database.is_file():
        return ""
    try:
        with contextlib.closing(
            sqlite3.connect(f"file:{quote(str(database))}?mode=ro", uri=True)
        ) as connection:
            query = "SELECT artifact_location FROM experiments WHERE name = ?"
            found = connection.execute(query, (EXPERIMENT,)).fetchone()
    except sqlite3.Error:  # no database of MLflow's
        return ""
    artifacts = Path(unquote(urlparse(found[0]).path)) if found and found[0].startswith("file:///") else None
    if artifacts is None or artifacts.name != ARTIFACTS or artifacts.parent.resolve() == root.resolve():
        return ""
    if artifacts.exists() and not (root / ARTIFACTS).exists():
        return ""
    return str(artifacts.parent)


def follow(environment: Environment, former: str, records: Path, addresses: tuple[str, str]) -> None:
    """Replace the folder ``former`` by the project's root wherever a location starts with it.

    These are the records in the folder ``records`` whose address is ``addresses[0]``, which becomes ``addresses[1]``, DVC's
    local settings, and last, in one transaction, MLflow's database: a killed call is repeated as a whole.
    """
    root = str(environment.root)
    for path in sorted(records.glob("*.json")):
        try:
            record = read_json(path)
        except (OSError, ValueError):
            continue
        if isinstance(record, dict) and record.get("address") == addresses[0]:
            paths = {key: _replaced(record[key], former, root) for key in PATHS if key in record}
            write_json(path, {**record, **paths, "address": addresses[1]})
    settings = environment.root / ".dvc/config.local"
    if settings.is_file():
        text = settings.read_text(encoding="utf-8")
        changed = re.sub(rf"(?m)(=\s*){re.escape(former)}(?=/|\s*$)", lambda match: match[1] + root, text)
        if changed != text:
            write_text(settings, changed)
    database = environment.root / "mlflow.db"
    with contextlib.closing(
        sqlite3.connect(database, timeout=LOCK_SECONDS, isolation_level=None)
    ) as connection:
        connection.execute("BEGIN IMMEDIATE")
        place = ((Path(former) / ARTIFACTS).as_uri(),)
        if not connection.execute("SELECT 1 FROM experiments WHERE artifact_location = ?", place).fetchone():
            return  # another process was faster
        for old, new in ((former, root), (Path(former).as_uri(), Path(root).as_uri())):
            for table, columns in LOCATIONS.items():
                for column in columns:
                    change = f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE substr({column}, 1, ?) = ?"
                    connection.execute(change, (f"{new}/", len(old) + 2, len(old) + 1, f"{old}/"))
        connection.execute("COMMIT")
    print(
        f"note: the project was moved from {former} to {root}; MLflow's locations now lead there",
        file=sys.stderr,
        flush=True,
    )


def _replaced(value: Any, former: str, root: str) -> Any:
    """``value`` with ``root`` in place of ``former`` at the start of each path in it."""
    if isinstance(value, dict):
        return {key: _replaced(item, former, root) for key, item in value.items()}
    if isinstance(value, list):
        return [_replaced(item, former, root) for item in value]
    if isinstance(value, str) and value.startswith(f"{former}/"):
        return root + value.removeprefix(former)
    return value
