"""Tracking on a real sqlite database in a temporary folder."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.core import model_files
from pipeline.core.task import DataSpec
from pipeline.environment import Environment, prepare
from pipeline.tracking.runs import Description
from tests import forked
from tests.tracking.traced_project import make_project, shell

prepare()  # before mlflow is imported

SPEC = DataSpec.labelled_images(1, 16, 4)
SMALL = {
    "gan": {"width": 8, "latent_size": 8},
    "vae": {"width": 8, "latent_size": 4},
    "ae": {"width": 8, "code_size": 4},
}
SMALL["cnn"] = {"channels": [4], "dense": [8]}
ROOT = Path(__file__).parents[2]
DEAD = "http://user:hunter2@127.0.0.1:9"
CHILD = """
import os, signal, sys
from pathlib import Path
from pipeline.environment import Environment, prepare
prepare()
from pipeline.tracking.runs import Description, open_run
root = Path(sys.argv[1])
artifacts = str(root / "mlartifacts")
environment = Environment(root=root, storage=root / "storage", tracking_uri=sys.argv[2], artifacts=artifacts)
with open_run(environment, Description(sys.argv[3], "f" * 64, {"seed": 1})) as run:
    run.follow(root / "training")
    if sys.argv[4] == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
"""
forked.CODES.add(CHILD)


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory) -> Path:
    """A database without runs. Creating its tables takes a second."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("database") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments(max_results=1)
    return path


@pytest.fixture
def environment(tmp_path: Path, empty_database: Path) -> Environment:
    """A project with an empty database."""
    shutil.copy(empty_database, tmp_path)
    return Environment(
        root=tmp_path,
        storage=tmp_path / "storage",
        tracking_uri=f"sqlite:///{tmp_path}/mlflow.db",
        artifacts=str(tmp_path / "mlartifacts"),
    )


@pytest.fixture
def description() -> Description:
    """A training of the GAN."""
    params = {"training": {"seed": 7, "clip_norm": None}, "model": {"dense": [64, 32], "kind": "hinge"}}
    return Description(
        "train-gan",
        "f" * 64,
        params,
        "digits",
        "d" * 64,
        "data/processed/images",
        {"num_workers": 2, "device": "cpu"},
    )


@pytest.fixture
def client(environment: Environment):
    """Makes a client of its own for the same database."""
    from mlflow import MlflowClient

    return lambda: MlflowClient(environment.tracking_uri)


def write_lines(folder: Path, steps: range, **metrics: float) -> None:
    """Append a line for each step to metrics.jsonl, as a training does."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "metrics.jsonl", "a") as file:
        for step in steps:
            values = {"train/discriminator/loss": step / 2, "validation/accuracy": 0.5, **metrics}
            file.write(json.dumps({"step": step, "time": 1_700_000_000_000 + step, "metrics": values}) + "\n")


def write_picture(folder: Path, step: int) -> None:
    """Write a sample grid, as a training does."""
    from PIL import Image

    (folder / "samples").mkdir(parents=True, exist_ok=True)
    Image.new("L", (20, 20), step % 256).save(folder / "samples" / f"step-{step:08d}.png")


def write_model(folder: Path, name: str, seed: int = 0) -> Path:
    """Write a small model with its initial weights; its folder."""
    task = model_files.build(name, SMALL[name], SPEC, seed)
    model_files.write(task, folder, {})
    return folder


def child(environment: Environment, stage: str = "train-gan", end: str = "kill") -> subprocess.Popen:
    """A process that tracks tmp_path/training and then kills itself, or finishes."""
    arguments = [sys.executable, "-c", CHILD, str(environment.root), environment.tracking_uri, stage, end]
    return subprocess.Popen(
        arguments,
        cwd=environment.root,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def all_runs(client) -> list:
    """All runs except the parents."""
    found = client.search_runs([client.get_experiment_by_name("darkroom").experiment_id])
    return [run for run in found if run.data.tags["darkroom.stage"] != "repro"]


@pytest.fixture(scope="session")
def origin(tmp_path_factory) -> Path:
    """A project after a repro, committed and pushed, with its training in MLflow."""
    return make_project(tmp_path_factory.mktemp("traced"), write_model)


@pytest.fixture(scope="session")
def pulled(origin) -> Path:
    """A fresh clone after ``dvc pull``: no MLflow, no run cache."""
    shell(origin.parent, "git clone -q origin clone")
    shell(origin.parent / "clone", "dvc pull -q")
    return origin.parent / "clone"


@pytest.fixture
def clone(pulled, tmp_path) -> Path:
    return Path(shutil.copytree(pulled, tmp_path / "clone"))
