"""Experiments outside the workspace (``dvc exp run --temp``, ``--queue``) see the present pictures."""

import json

import pytest

from pipeline.files import read_json
from tests.project import PARAMS
from tests.repository import commit, create, shell

from .conftest import fill

pytestmark = pytest.mark.slow
FOLDER = "data/own/pets"
RUN = ("python", "dvc", "exp", "run", "--temp", "--set-param", "++data.seed=1")


@pytest.fixture
def project(tmp_path):
    """Only the stages of the data, with pictures that git ignores."""
    project = create(tmp_path / "project", data={**PARAMS["data"], "source": "folder", "folder": FOLDER})
    plan = json.loads((project / "dvc.yaml").read_text())
    plan["stages"] = {name: plan["stages"][name] for name in ("download", "preprocess")}
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
    assert f"{FOLDER}: is tracked neither by git nor by DVC" in output and f"dvc add {FOLDER}" in output
    shell(project, "python", "dvc", "exp", "run", "--set-param", "++data.seed=1")  # in the workspace
