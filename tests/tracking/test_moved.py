"""A project that was moved, renamed or copied works in the new folder and leaves the old one alone."""

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.environment import read as read_environment
from pipeline.files import write_json
from pipeline.tracking import connection, delivery_queue, moved
from pipeline.tracking.runs import Description, open_run
from tests.command import darkroom, done
from tests.tracking.conftest import write_lines, write_model, write_picture

READER = """
import sys
import mlflow, pandas as pd
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model("models:/gan@champion")
print(len(model.predict(pd.DataFrame({"count": [3], "seed": [1], "label": [-1]}))))
"""


def train(folder: Path, seed: int) -> str:
    """Track and register a GAN in the project of the current folder; the run's id."""
    write_lines(folder / f".darkroom/trainings/{seed}", range(3))
    write_picture(folder / f".darkroom/trainings/{seed}", seed)
    model = write_model(folder / f".darkroom/trainings/{seed}/model", "gan", seed)
    with open_run(
        read_environment(), Description("train-gan", f"{seed}" * 64, {"training": {"seed": seed}})
    ) as run:
        run.follow(folder / f".darkroom/trainings/{seed}")
        run.register(model, "gan")
    return run.id


@pytest.fixture
def project(tmp_path, monkeypatch, empty_database):
    """A project with a registered model, and a finished training that is not delivered yet."""
    for name in ("DVC_ROOT", "MLFLOW_TRACKING_URI", "DARKROOM_STORAGE"):
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "old folder, ü 100%"
    (folder / ".dvc").mkdir(parents=True)
    (folder / "dvc.yaml").write_text("stages: {}")
    (folder / ".dvc/config.local").write_text(f"[core]\n    site_cache_dir = {folder}/.dvc/site\n")
    shutil.copy(empty_database, folder)
    monkeypatch.chdir(folder)
    train(folder, 1)
    environment = read_environment()
    with open_run(
        replace(environment, tracking_uri="http://127.0.0.1:9"), Description("train-gan", "2" * 64)
    ) as run:
        write_lines(folder / ".darkroom/trainings/2", range(4))
        run.follow(folder / ".darkroom/trainings/2")
        run.register(write_model(folder / ".darkroom/trainings/2/model", "gan", 2), "gan")
        run.log_artifact(folder / "dvc.yaml")
    (kept,) = (folder / ".darkroom/tracking").glob("*.json")
    write_json(kept, json.loads(kept.read_text()) | {"address": delivery_queue.address(environment)})
    return folder


def locations(folder: Path) -> list[str]:
    """Every location in the database."""
    with closing(sqlite3.connect(folder / "mlflow.db")) as connection:
        columns = [(column, table) for table, columns in moved.LOCATIONS.items() for column in columns]
        rows = [connection.execute(f"SELECT {column} FROM {table}").fetchall() for column, table in columns]
    return [row[0] for found in rows for row in found if row[0]]


@pytest.mark.nightly
def test_after_a_move_one_sync_makes_everything_work_in_the_new_folder(project, tmp_path, monkeypatch):
    assert moved.moved_from(read_environment()) == ""
    new = tmp_path / "elsewhere/new & folder"
    new.parent.mkdir()
    project.rename(new)
    monkeypatch.chdir(new)
    environment = read_environment()
    assert environment.root == new and moved.moved_from(environment) == str(project)
    code, output, error = darkroom("sync")
    assert (
        code == 0
        and "1 runs sent; MLflow has everything" in output
        and f"moved from {project} to {new}" in error
    )
    assert moved.moved_from(environment) == "" and delivery_queue.load_all(environment) == []
    assert done("sync").startswith("0 runs sent")

    assert len(locations(new)) > 8 and not [
        location for location in locations(new) if "old%20folder" in location or str(project) in location
    ]
    client, experiment = connection.connect(environment)
    sent = connection.find_run(client, experiment, "train-gan", "2" * 64)
    assert [point.step for point in client.get_metric_history(sent.info.run_id, "validation/accuracy")] == [
        0,
        1,
        2,
        3,
    ]
    assert "dvc.yaml" in [entry.path for entry in client.list_artifacts(sent.info.run_id)]
    assert str(client.get_model_version_by_alias("gan", "challenger").run_id) == sent.info.run_id
    assert str(new) in (new / ".dvc/config.local").read_text()

    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    arguments = [sys.executable, "-P", "-c", READER, environment.tracking_uri]
    for folder in (new, tmp_path):
        done_there = subprocess.run(
            arguments, cwd=folder, env=clean, capture_output=True, text=True, timeout=120
        )
        assert (done_there.returncode, done_there.stdout) == (0, "3\n"), done_there.stderr

    run_id = train(new, 3)
    assert len(client.list_artifacts(run_id, "images")) == 2
    assert not project.exists()


def test_after_a_move_a_training_works_without_a_sync(project, tmp_path, monkeypatch, capsys):
    new = tmp_path / "new"
    project.rename(new)
    monkeypatch.chdir(new)
    run_id = train(new, 1)  # the same training again
    client, experiment = connection.connect(read_environment())
    assert "moved from" in capsys.readouterr().err and not project.exists()
    found = client.search_runs([experiment], "tags.`darkroom.stage` = 'train-gan'")
    assert sorted(run.data.tags["darkroom.fingerprint"][0] for run in found) == ["1", "2"]
    assert run_id in [run.info.run_id for run in found] and delivery_queue.load_all(read_environment()) == []


def test_a_copy_is_a_separate_project_and_the_original_is_unchanged(project, tmp_path, monkeypatch):
    before = locations(project)
    copy = Path(shutil.copytree(project, tmp_path / "copy"))
    monkeypatch.chdir(copy)
    assert "moved from" in darkroom("sync")[2]
    assert locations(project) == before and not [
        location for location in locations(copy) if "old%20folder" in location
    ]


def test_a_database_that_was_copied_without_its_artifacts_keeps_the_old_locations(
    project, tmp_path, monkeypatch
):
    copy = tmp_path / "copy"
    (copy / ".dvc").mkdir(parents=True)
    for name in ("mlflow.db", "dvc.yaml"):
        shutil.copy(project / name, copy)
    monkeypatch.chdir(copy)
    assert moved.moved_from(read_environment()) == ""


def test_a_database_of_another_project_is_unchanged(project, tmp_path, monkeypatch):
    before = locations(project)
    other = tmp_path / "other"
    (other / ".dvc").mkdir(parents=True)
    (other / "dvc.yaml").write_text("stages: {}")
    monkeypatch.chdir(other)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{project}/mlflow.db")
    done("sync")
    assert locations(project) == before


@pytest.mark.parametrize("content", [b"", b"no database", None])
def test_a_file_that_is_not_a_database_is_not_a_moved_project(environment, content):
    (environment.root / "mlflow.db").unlink()
    if content is not None:
        (environment.root / "mlflow.db").write_bytes(content)
    assert moved.moved_from(environment) == ""
