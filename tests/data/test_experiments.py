"""Experiments outside the workspace (``dvc exp run --temp``, ``--queue``) see the present pictures."""

import json

import pytest

from pipeline.files import read_json
from tests.project import PARAMS, TRAINING
from tests.repository import commit, create, shell

from .conftest import fill

pytestmark = pytest.mark.slow
FOLDER = "data/own/pets"
REMEDY = f"dvc add {FOLDER} && git add {FOLDER}.dvc"
QUEUE = ("python", "dvc", "exp", "run", "--queue", "--set-param", "++data.seed=1")
RUN = ("python", "dvc", "exp", "run", "--temp", "--set-param", "++data.seed=1")


@pytest.fixture
def project(tmp_path):
    return made(tmp_path)


def made(tmp_path, *more_stages):
    """Only the stages of the data, with pictures that git ignores, and ``more_stages``."""
    data = {**PARAMS["data"], "source": "folder", "folder": FOLDER}
    training = {**TRAINING, "num_steps": 20, "sample_every": 20, "batch_size": 4}
    project = create(tmp_path / "project", data=data, cnn={**PARAMS["cnn"], "training": training})
    plan = json.loads((project / "dvc.yaml").read_text())
    plan["stages"] = {name: plan["stages"][name] for name in ("download", "preprocess", *more_stages)}
    (project / "dvc.yaml").write_text(json.dumps(plan))
    fill(project / FOLDER, {"cat": 9, "dog": 9})
    return project


def num_pictures(project, experiment: str) -> int:
    shell(project, "python", "dvc", "exp", "apply", experiment)
    manifest = read_json(project / "data/processed/images/manifest.json")
    return sum(entry["count"] for entry in manifest["splits"].values())


def test_an_experiment_sees_pictures_that_were_added_since_the_last_one(project):
    shell(project, "python", "dvc", "add", "-q", FOLDER)
    commit(project, "pictures")
    shell(project, *RUN, "--name", "before")
    fill(project / FOLDER, {"cat": 12}, seed=77)
    shell(project, *RUN, "--name", "after")
    assert num_pictures(project, "after") == 21


def test_an_experiment_whose_pictures_nothing_tracks_is_refused_with_the_remedy(project):
    commit(project, "without pictures")
    output = shell(project, *RUN, code=255)
    assert f"{FOLDER}: is tracked neither by git nor by DVC" in output and REMEDY in output
    shell(project, "python", "dvc", "exp", "run", "--set-param", "++data.seed=1")  # in the workspace
    shell(project, "sh", "-c", REMEDY)
    fill(project / FOLDER, {"cat": 12}, seed=77)
    shell(project, *RUN, "--name", "tracked")
    assert num_pictures(project, "tracked") == 21


@pytest.mark.nightly
def test_queued_experiments_see_the_pictures_of_the_time_when_they_were_queued(project):
    shell(project, "python", "dvc", "add", "-q", FOLDER)
    commit(project, "pictures")
    shell(project, *QUEUE, "--name", "before")
    fill(project / FOLDER, {"cat": 12}, seed=77)
    shell(project, *QUEUE, "--name", "after")
    shell(project, "python", "dvc", "exp", "run", "--run-all")
    assert [num_pictures(project, name) for name in ("before", "after")] == [18, 21]


@pytest.mark.nightly
def test_a_queued_experiment_whose_pictures_nothing_tracks_is_refused_with_the_remedy(project):
    shell(project, "python", "dvc", "repro")
    commit(project, "with a dvc.lock, without pictures")
    fill(project / FOLDER, {"cat": 12}, seed=77)
    shell(project, *QUEUE, "--name", "untracked")
    output = shell(project, "python", "dvc", "exp", "run", "--run-all")
    assert f"{FOLDER}: is tracked neither by git nor by DVC" in output and REMEDY in output


@pytest.mark.nightly
def test_seeds_are_trained_on_the_present_pictures_or_refused_with_the_remedy(tmp_path):
    project = made(tmp_path, "train-cnn")
    commit(project, "without pictures")
    shell(project, "python", "dvc", "repro")
    output = shell(project, "darkroom", "seeds", "cnn", "1", code=1)
    assert REMEDY in output and "the experiment failed" in output
    shell(project, "sh", "-c", REMEDY)
    fill(project / FOLDER, {"cat": 12}, seed=77)
    shell(project, "darkroom", "seeds", "cnn", "1")  # brings the data up to date first
    manifest = read_json(project / "data/processed/images/manifest.json")
    assert sum(entry["count"] for entry in manifest["splits"].values()) == 21
    output = shell(project, "darkroom", "seeds", "cnn", "0", "1")
    assert "seed 0" in output and "seed 1" in output
