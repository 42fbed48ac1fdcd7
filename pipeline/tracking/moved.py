"""Correct the stored paths of a project whose folder was moved, renamed or copied.

MLflow stores the absolute location of each experiment, run and model, so after a move it would still read and
write in the old folder. Only the default database, ``mlflow.db`` in the project's root, is corrected: another
one may belong to other projects.
"""

import json
import re
import sqlite3
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote, unquote, urlparse

from pipeline.environment import Environment
from pipeline.files import write_text
from pipeline.tracking import delivery_queue

EXPERIMENT = "darkroom"
ARTIFACTS = "mlartifacts"
LOCATIONS = {
    "experiments": ("artifact_location",),
    "runs": ("artifact_uri",),
    "logged_models": ("artifact_location",),
    "model_versions": ("source", "storage_location"),
}  # the columns of MLflow's tables that hold a location
LOCK_SECONDS = 60


def moved_from(environment: Environment) -> str:
    """The folder of the project when MLflow's database was last used; empty if it was not moved since.

    It is also empty if the database was copied without the artifacts, which are still in the old folder.
    """
    root = environment.root
    database = root / "mlflow.db"
    if environment.tracking_uri != f"sqlite:///{database}" or not database.is_file():
        return ""
    try:
        with closing(sqlite3.connect(f"file:{quote(str(database))}?mode=ro", uri=True)) as connection:
            query = "SELECT artifact_location FROM experiments WHERE name = ?"
            (location,) = connection.execute(query, (EXPERIMENT,)).fetchone() or ("",)
    except sqlite3.Error:  # not a database of MLflow
        return ""
    artifacts = Path(unquote(urlparse(location).path))
    if not location.startswith("file:///") or artifacts.name != ARTIFACTS:
        return ""
    is_here = artifacts.parent.resolve() == root.resolve()
    is_there = artifacts.exists() and not (root / ARTIFACTS).exists()
    return "" if is_here or is_there else str(artifacts.parent)


def follow(environment: Environment) -> None:
    """If the project was moved, replace the old folder in run records, DVC's local settings and the database.

    The database is changed last, in one transaction: a killed call is repeated by the next one.
    """
    if not (old_root := moved_from(environment)):
        return
    root, address = str(environment.root), delivery_queue.address(environment)
    old_address = delivery_queue.address(replace(environment, tracking_uri=f"sqlite:///{old_root}/mlflow.db"))
    for path in delivery_queue.records_folder(environment).glob("*.json"):
        text = path.read_text(encoding="utf-8")
        if old_address in text:
            old, new = (json.dumps(f"{folder}/")[:-1] for folder in (old_root, root))
            write_text(path, text.replace(old, new).replace(old_address, address))
    settings = environment.root / ".dvc/config.local"
    if settings.is_file():
        text = settings.read_text(encoding="utf-8")
        changed = re.sub(rf"(?m)(=\s*){re.escape(old_root)}(?=/|\s*$)", lambda match: match[1] + root, text)
        write_text(settings, changed)
    database = sqlite3.connect(environment.root / "mlflow.db", timeout=LOCK_SECONDS, isolation_level=None)
    with closing(database):
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
    what = f"note: the project was moved from {old_root} to {root}; MLflow's locations were updated"
    print(what, file=sys.stderr, flush=True)
